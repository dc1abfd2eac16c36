"""The application of all commands, and functions that several of them share."""

import gc
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from llava_forgery import __version__
from llava_forgery.files import sentence
from llava_forgery.noise import notices_wanted, quiet, without_notices

Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="Show only results, warnings and errors: no progress, no notices."
    ),
]


class Commands(typer.Typer):
    """Group whose commands all take ``--quiet``."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        """As for Typer."""
        register = super().command(name, **options)

        def decorate(function: Any) -> Any:
            register(_with_quiet(function))
            return function

        return decorate


def _with_quiet(function: Callable[..., None]) -> Callable[..., None]:
    @wraps(function)
    def command(*given: Any, quiet: bool = False, **named: Any) -> None:
        if not quiet:
            return function(*given, **named)
        with without_notices():
            return function(*given, **named)

    # Typer reads both.
    option = inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False,
                               annotation=Quiet)  # fmt: skip
    parameters = inspect.signature(function).parameters.values()
    command.__signature__ = inspect.Signature([*parameters, option])
    command.__annotations__ = {**function.__annotations__, "quiet": Quiet}
    return command


app = Commands(
    help="Forgery skills for LLaVA-style vision-language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llava-forgery {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def _group(name: str, text: str) -> typer.Typer:
    group = Commands(help=text, no_args_is_help=True)
    app.add_typer(group, name=name)
    return group


data = _group("data", "Make data: faces, forgeries, conversations, evaluation sets.")
train = _group("train", "Train detectors, adapters and pseudo-words.")
evaluation = _group("eval", "Measure models.")
convert = _group("convert", "Convert adapters and third-party weights.")


def notice(text: str) -> None:
    """Report on stderr what was done, unless ``--quiet`` is given."""
    if notices_wanted():
        typer.echo(text, err=True)


@contextmanager
def _loading() -> Iterator[None]:
    """Nothing is collected while packages are imported and weights loaded, as nearly all of it
    stays: looking through it again and again takes a fifth of the start."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if collects:
            gc.enable()


@_loading()
def load_predictor(
    model: Path | None = None,
    base_model: str | None = None,
    backend: str = "auto",
    device: str | None = None,
    face_detector: str | None = None,
    allow_download: bool = False,
    dtype: str | None = None,
    max_new_tokens: int | None = None,
    answers: str | None = None,
    cache: Path | None = None,
    max_memory: int | None = None,
):
    """The predictor for an adapter.

    Args:
        model: Folder of an adapter or a detector; None for the shipped model.
        base_model: Folder or hub name of the host; None for the one that the adapter names.
        backend: "transformers", "llava" or "auto".
        device: Device to load onto.
        face_detector: Name of the face detector; None for dlib's, loaded once it is needed.
        allow_download: Whether models that the adapter's files name may be downloaded.
        dtype: Dtype of the host's weights; None for the checkpoint's. With "auto" a CPU multiplies
            float32 matrices in its fastest way, for this process: PyTorch's "medium" precision.
        max_new_tokens: Maximum number of tokens of an answer; None for the predictor's default.
        answers: As for the predictor.
        cache: Cache folder of the shipped model's host.
        max_memory: Number of bytes that batches may take.
    """
    import torch

    from llava_forgery.faces.detect import get_detector
    from llava_forgery.infer.predictor import ForgeryPredictor

    # Before the host, which takes long to load.
    finder = None if face_detector is None else get_detector(face_detector)
    predictor = ForgeryPredictor.from_pretrained(
        model,
        base_model,
        backend,
        device=device,
        dtype=dtype or "auto",
        allow_download=allow_download,
        answers=answers,
        cache=cache,
        max_memory=max_memory,
    )
    if dtype == "auto" and predictor.device.type == "cpu":
        torch.set_float32_matmul_precision("medium")
    if max_new_tokens is not None:
        predictor.max_new_tokens = max_new_tokens
    if finder is not None:
        predictor.face_detector = finder
    return predictor


def main() -> None:
    """The command ``llava-forgery``."""
    run(app)


def run(command: Callable[[], Any], form: str = "%(levelname)s %(message)s") -> None:
    """Run a command line; user errors and system errors print one line and exit with status 2.

    Args:
        command: Command, such as ``lambda: typer.run(main)``.
        form: Format of the log on stderr.
    """
    logging.basicConfig(format=form, stream=sys.stderr)
    # Only warnings of other packages.
    for ours in ("llava_forgery", "eval", "demo"):
        logging.getLogger(ours).setLevel(logging.INFO)
    try:
        with quiet():
            command()
    except (ValueError, OSError, ImportError) as error:
        logging.getLogger(__name__).debug("where it happened", exc_info=True)
        typer.echo(f"error: {sentence(error)}", err=True)
        sys.exit(2)
