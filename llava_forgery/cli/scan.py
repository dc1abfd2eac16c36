"""Commands for archives: any number of files, on Ray."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from llava_forgery.cli.app import app, notice
from llava_forgery.cli.options import (
    AllowDownload,
    BaseModel,
    Cropped,
    Device,
    Every,
    FaceFinder,
    Frames,
    MaxPixels,
    Out,
    Seed,
    writable_file,
)
from llava_forgery.files import read_json, to_json


@app.command()
def scan(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC...",
            help="Folders, globs, lists of files (.jsonl, .csv, .parquet) and addresses such as "
            "s3://bucket/folder.",
        ),
    ],
    out: Out,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", help="Folder or hub name of an adapter or detector; default: the shipped."
        ),
    ] = None,
    answers: Annotated[
        str, typer.Option(help="Faces for the language model: none, flagged or all.")
    ] = "flagged",
    overlays: Annotated[
        bool, typer.Option("--overlays", help="Write pictures with maps of flagged files.")
    ] = False,
    masks: Annotated[
        bool, typer.Option("--masks", help="Keep the maps of flagged faces in the records, as PNG.")
    ] = False,
    cropped: Cropped = False,
    frames: Frames = None,
    every: Every = None,
    pool: Annotated[
        str, typer.Option(help="How frames of a video are pooled: mean, median, max or top_k.")
    ] = "mean",
    batch_size: Annotated[int, typer.Option(min=1, help="Faces judged at once.")] = 16,
    limit: Annotated[
        int | None, typer.Option(help="Judge at most this many files, the first in order.")
    ] = None,
    shuffle: Annotated[
        bool, typer.Option("--shuffle", help="Judge in random order, by --seed.")
    ] = False,
    sample: Annotated[
        str, typer.Option(help="Judge a random share of the files, such as 1%, by --seed.")
    ] = "100%",
    seed: Seed = 0,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Count files and bytes, estimate the time, judge nothing."),
    ] = False,
    verify: Annotated[
        str,
        typer.Option(help="How unchanged files are recognised: stat (size, time) or hash."),
    ] = "stat",
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Retry files that could not be judged.")
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(help="Join a running Ray cluster: auto, or its address; default: start one."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that read files and find faces; default: one per CPU."),
    ] = None,
    detectors: Annotated[
        int | None,
        typer.Option(help="Processes with the detector; default: one per GPU, else as --workers."),
    ] = None,
    speakers: Annotated[
        int | None,
        typer.Option(help="Processes with the language model; default: as --detectors."),
    ] = None,
    runtime_env: Annotated[
        Path | None,
        typer.Option(help="JSON file with Ray's runtime environment for the workers."),
    ] = None,
    max_pixels: MaxPixels = None,
    face_detector: FaceFinder = None,
    base_model: BaseModel = None,
    device: Device = None,
    allow_download: AllowDownload = False,
) -> None:
    """Judge the faces of an archive into Parquet files, on all processors or a Ray cluster.

    The same command resumes after any interruption: unchanged files with a record are skipped. Exit
    status: 0 if every file was judged, 1 if some were not, 2 for wrong usage, 130 if it was
    interrupted.
    """
    from llava_forgery.faces.video import frame_choice
    from llava_forgery.infer.default import default_host, is_detector, missing_for_answers
    from llava_forgery.pooling import check_reduction
    from llava_forgery.scan.engine import Cluster, ray_data
    from llava_forgery.scan.judge import JudgeSettings
    from llava_forgery.scan.models import ModelSettings
    from llava_forgery.scan.plan import Selection, parse_share
    from llava_forgery.scan.reader import ReadSettings
    from llava_forgery.scan.run import estimate, scan_archive
    from llava_forgery.scan.stages import ScanSettings

    check_reduction(pool)
    if verify not in ("stat", "hash"):
        raise ValueError(f"--verify must be stat or hash, got {verify!r}")
    ray_data()
    name = None if model is None else str(model.resolve() if model.exists() else model)
    chosen = ModelSettings(name, base_model, device, face_detector or "dlib", allow_download)
    # What every worker would fail for stops here.
    _ = chosen.size
    missing = missing_for_answers() if model is None else None
    if is_detector(chosen.folder):
        missing = f"{chosen.folder} holds only a detector"
    if missing and answers != "none":
        notice(f"no answers: {missing}")
        answers = "none"
    if answers != "none" and model is None and base_model is None:
        # Here once, not by each process of this machine.
        default_host()
    settings = ScanSettings(
        chosen,
        answers,
        ReadSettings(frame_choice(frames, every), cropped, max_pixels),
        JudgeSettings(pool, batch_size, overlays, masks),
    )
    selection = Selection(limit, parse_share(sample), shuffle, seed)
    environment = read_json(runtime_env) if runtime_env else {}
    cluster = Cluster(address, workers, detectors, speakers, runtime_env=environment)
    # Batch systems stop jobs with this signal. It is not passed on as SIGINT, which is ignored in
    # the background of a shell script.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if dry_run:
        typer.echo(to_json(estimate(sources, out, settings, selection, cluster), indent=2))
        return
    summary = scan_archive(
        sources, out, settings, selection, cluster, verify == "hash", retry_errors
    )
    typer.echo("\n".join(summary.lines()))
    if summary.interrupted:
        raise typer.Exit(130)
    if summary.failed:
        raise typer.Exit(1)


@app.command()
def scan_report(
    folder: Annotated[Path, typer.Argument(help="Folder written by scan.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="HTML file to write; default: report.html in the folder.", callback=writable_file
        ),
    ] = None,
    most: Annotated[int, typer.Option(help="Number of faces on the contact sheet.")] = 60,
) -> None:
    """Write a page about a scan, from its Parquet files only."""
    from llava_forgery.scan.report import write_report

    page = write_report(folder, out or folder / "report.html", most)
    typer.echo(f"wrote {page}")
