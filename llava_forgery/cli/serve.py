"""The command that serves verdicts and dialogues over HTTP."""

import signal
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from llava_forgery.cli.app import app, load_predictor, notice
from llava_forgery.cli.options import AllowDownload, Backend, Device, FaceFinder, MaxMemory
from llava_forgery.optional import require


@app.command()
def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="Folder of a forgery adapter, or NAME=FOLDER; repeatable; default: the shipped "
            "model.",
            metavar="DIR",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="LLAVA_FORGERY_TOKEN",
            help="Bearer token that clients must send; needed beyond the loopback. Prefer the "
            "variable, as other users can read command lines.",
        ),
    ] = None,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch pictures from public addresses.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Maximum faces in a batch.")] = 8,
    batch_wait: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Most seconds for which a batch waits for announced faces; default: as long as "
            "a face takes.",
        ),
    ] = None,
    queue: Annotated[int, typer.Option(help="Maximum waiting faces; then 429.")] = 256,
    max_requests: Annotated[int, typer.Option(help="Maximum concurrent requests; then 429.")] = 128,
    max_bytes: Annotated[int, typer.Option(help="Maximum bytes of a request.")] = 64 * 2**20,
    max_memory: MaxMemory = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(help="Maximum pixels of a picture or frame; default: 89 million."),
    ] = None,
    max_frames: Annotated[int, typer.Option(help="Maximum frames of a video.")] = 256,
    max_seconds: Annotated[int, typer.Option(help="Longest video, in seconds.")] = 600,
    dialogues: Annotated[int, typer.Option(help="Maximum dialogues with kept caches.")] = 8,
    drain_seconds: Annotated[
        int, typer.Option(help="Seconds to finish running work on shutdown.")
    ] = 60,
    ray: Annotated[
        bool, typer.Option("--ray", help="Serve with replicas on a Ray cluster (extra ray).")
    ] = False,
    replicas: Annotated[int, typer.Option(help="With --ray: minimum number of replicas.")] = 1,
    max_replicas: Annotated[
        int | None, typer.Option(help="With --ray: maximum replicas; default: --replicas.")
    ] = None,
    replica_gpus: Annotated[
        float, typer.Option(help="With --ray: GPUs per replica, or a share of one.")
    ] = 0,
    address: Annotated[
        str | None,
        typer.Option(help="With --ray: cluster to join, such as auto; default: start one."),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option("--base-model", help="Folder or hub name of the host, as for detect."),
    ] = None,
    detector: FaceFinder = None,
    backend: Backend = "auto",
    device: Device = None,
    allow_download: AllowDownload = False,
) -> None:
    """Serve verdicts and dialogues over HTTP, to programs and to people (a page at /).

    On SIGTERM or Ctrl-C running work is finished and new work refused; a second one ends at once.
    """
    for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        require(package, extra="serve", feature="the server")
    from llava_forgery.serve.replicas import Replicas, serve_replicas
    from llava_forgery.serve.server import Server
    from llava_forgery.serve.service import Service
    from llava_forgery.serve.settings import Settings

    # Errors in the options are reported before models are loaded.
    settings = Settings(
        host=host,
        port=port,
        token=token,
        allow_urls=allow_urls,
        queue=queue,
        max_requests=max_requests,
        max_bytes=max_bytes,
        max_bytes_at_once=max(8 * max_bytes, Settings.max_bytes_at_once),
        max_frames=max_frames,
        max_seconds=max_seconds,
        dialogues=dialogues,
        drain_seconds=drain_seconds,
    )
    common = {
        "base_model": base_model,
        "backend": backend,
        "device": device,
        "face_detector": detector,
        "allow_download": allow_download,
        "max_memory": max_memory,
    }
    load = partial(load_models, named_models(model or []), common, max_pixels)
    say = partial(notice, f"http://{f'[{host}]' if ':' in host else host}:{port}")
    if ray:
        placed = Replicas(replicas, max_replicas, address, gpus=replica_gpus)
        stop = threading.Event()

        def started() -> None:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: stop.set())
            say()

        serve_replicas(load, settings, placed, batch_size, batch_wait, stop, started)
        return
    server = Server(Service(load(), settings, batch_size, batch_wait))
    say()
    server.run()
    if not server.started:
        raise typer.Exit(1)


def load_models(
    folders: Mapping[str, Path | None], common: Mapping[str, Any], max_pixels: int | None
) -> dict[str, Any]:
    """The predictors by name, in the process that serves them.

    Args:
        folders: Output of :func:`named_models`.
        common: Options of :func:`load_predictor` for all models.
        max_pixels: Maximum pixels of a picture; None for the default.
    """
    from llava_forgery.images import set_pixel_limit

    if max_pixels is not None:
        set_pixel_limit(max_pixels)
    return {
        name: load_predictor(folder, dtype="auto", **common) for name, folder in folders.items()
    }


def named_models(values: list[str]) -> dict[str, Path | None]:
    """Names and folders from ``NAME=FOLDER``, or from ``FOLDER``, which is also the name.

    Returns:
        Folders by name; without values the shipped model, as None, with the name "default".

    Raises:
        ValueError: A name is empty or given twice.
    """
    found: dict[str, Path | None] = {} if values else {"default": None}
    for value in values:
        name, equals, folder = value.partition("=")
        path = Path(folder if equals else value)
        name = name if equals else path.resolve().name
        if not name or name in found:
            raise ValueError(
                f"the model name {name!r} is empty or given twice; name each by NAME=DIR"
            )
        found[name] = path
    return found
