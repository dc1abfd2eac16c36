"""Commands for photographs: verdicts and dialogues."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from llava_forgery.cli.app import app, load_predictor
from llava_forgery.cli.options import (
    AllowDownload,
    Answers,
    Backend,
    BaseModel,
    Cache,
    Cropped,
    Device,
    Dtype,
    Every,
    FaceFinder,
    Frames,
    JudgingModel,
    MaxMemory,
    MaxNewTokens,
    MaxPixels,
    writable_folder,
)
from llava_forgery.files import to_json

CUT = "(the answer was cut off: --max-new-tokens)"


@app.command()
def detect(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files and folders.")],
    model: JudgingModel = None,
    answers: Answers = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of lines.")
    ] = False,
    as_jsonl: Annotated[
        bool,
        typer.Option("--jsonl", help="Print one line of JSON per file as soon as it is judged."),
    ] = False,
    overlay: Annotated[
        Path | None,
        typer.Option("--overlay", help="Folder for pictures with maps.", callback=writable_folder),
    ] = None,
    cropped: Cropped = False,
    frames: Frames = None,
    every: Every = None,
    max_memory: MaxMemory = None,
    max_pixels: MaxPixels = None,
    pool: Annotated[
        str, typer.Option(help="How frames of a video are pooled: mean, median, max or top_k.")
    ] = "mean",
    detector: FaceFinder = None,
    base_model: BaseModel = None,
    backend: Backend = "auto",
    device: Device = None,
    dtype: Dtype = "auto",
    max_new_tokens: MaxNewTokens = 64,
    allow_download: AllowDownload = False,
    cache: Cache = None,
) -> None:
    """Judge the faces in photographs and videos.

    Exit status: 0 if every file was judged, 1 if some were not, 2 for wrong usage, 130 if it was
    interrupted (Ctrl-C); results so far are printed.
    """
    from llava_forgery.faces.video import frame_choice
    from llava_forgery.pooling import check_reduction
    from llava_forgery.progress import progress

    if as_json and as_jsonl:
        raise ValueError("give either --json, one document, or --jsonl, a line for each file")
    check_reduction(pool)
    choice = frame_choice(frames, every)
    predictor = load_predictor(
        model,
        base_model,
        backend,
        device,
        detector,
        allow_download,
        dtype,
        max_new_tokens,
        answers,
        cache,
        max_memory,
    )
    from llava_forgery.infer.batch import judge_files

    results, interrupted = [], False
    judged = judge_files(
        predictor, paths, cropped=cropped, overlay_dir=overlay, frames=choice, reduce=pool
    )
    try:
        # Verdicts on a terminal show the progress themselves.
        for result in progress(judged, "detect", "file", hidden=sys.stdout.isatty()):
            results.append(result)
            if as_jsonl:
                # echo flushes, so results are out even if the next file kills the process.
                typer.echo(to_json(result.to_dict()))
            elif not as_json:
                typer.echo("\n".join(_lines(result)))
    except KeyboardInterrupt:
        interrupted = True
    finally:
        # Also if a picture cannot be written, so that results so far are not lost.
        if as_json:
            document = [result.to_dict() for result in results]
            typer.echo(to_json(document, indent=2))
    if interrupted:
        typer.echo(f"interrupted: {len(results)} files were judged, the others not", err=True)
        raise typer.Exit(130)
    if any(result.error for result in results):
        raise typer.Exit(1)


@app.command()
def chat(
    image: Annotated[Path, typer.Argument(help="Photograph.")],
    model: JudgingModel = None,
    cropped: Cropped = False,
    max_pixels: MaxPixels = None,
    detector: FaceFinder = None,
    base_model: BaseModel = None,
    backend: Backend = "auto",
    device: Device = None,
    dtype: Dtype = "auto",
    max_new_tokens: MaxNewTokens = 64,
    allow_download: AllowDownload = False,
    cache: Cache = None,
) -> None:
    """Talk about the largest face of a photograph; an empty line or Ctrl-D ends it."""
    predictor = load_predictor(
        model,
        base_model,
        backend,
        device,
        detector,
        allow_download,
        dtype,
        max_new_tokens,
        cache=cache,
    )
    dialogue = predictor.dialogue(image, cropped)
    typer.echo(f"Score of the detector: {dialogue.score:.3f} (0 real, 1 fake). Ask a question.")
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            break
        if not question:
            break
        typer.echo(dialogue.ask(question))
        if dialogue.truncated:
            typer.echo(CUT, err=True)


def printable(text: str) -> str:
    """A text with control characters, as in file names, escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _lines(result) -> list[str]:
    """A result as human-readable lines."""
    if result.error:
        return [f"{printable(result.file)}: not judged: {printable(result.error)}"]
    from llava_forgery.infer.video import VideoVerdict

    lines = [f"{printable(result.file)}:"]
    for face in result.faces:
        agree = "  (detector and answer disagree)" if face.agree is False else ""
        if face.agree is None and face.answer is not None:
            agree = "  (the answer says neither)"
        what, whose = "", ""
        if isinstance(face, VideoVerdict):
            what = f"  over {len(face.frames)} frames"
            whose = f"frame {face.frame}: "
        said = "" if face.p_yes is None else f"  P(yes) {face.p_yes:.3f}"
        lines.append(f"  {face.band}  score {face.score:.3f}{said}{what}{agree}")
        if face.answer is not None:
            lines.append(f"        {whose}{printable(face.answer)}")
        if face.truncated:
            lines.append(f"        {CUT}; it may name more regions")
        lines += [f"        warning: {warning}" for warning in face.warnings]
        for part in face.segments if isinstance(face, VideoVerdict) else ():
            name = face.thresholds.band(part.score)
            times = f"{part.start:.1f} to {part.end:.1f} s"
            lines.append(
                f"        frames {part.first} to {part.last} ({times}): {name}  "
                f"score {part.score:.3f}"
            )
    return lines
