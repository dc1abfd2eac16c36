"""Options that several commands share."""

import re
from pathlib import Path
from typing import Annotated

import typer

from llava_forgery.files import check_output


def writable_folder(folder: Path | None) -> Path | None:
    """Callback of an option: a full or read-only disk fails before models are loaded."""
    if folder is not None:
        check_output(folder, inside=True)
    return folder


def writable_file(file: Path | None) -> Path | None:
    """The same for a file."""
    if file is not None:
        check_output(file)
    return file


def pixel_limit(pixels: int | None) -> int | None:
    """Callback of an option: sets the largest size of pictures and frames."""
    from llava_forgery.images import set_pixel_limit

    if pixels is not None:
        set_pixel_limit(pixels)
    return pixels


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def memory_size(text: str) -> int:
    """Parser of an option: bytes, also as ``500M``, ``2GB`` or ``1.5 GiB``, in powers of 1024.

    Raises:
        typer.BadParameter: The text is not a size, or 0.
    """
    found = re.fullmatch(r"([0-9.]+)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    try:
        size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    except ValueError:
        size = 0
    if size < 1:
        raise typer.BadParameter(f"expected a size such as 500M or 2G, got {text!r}")
    return size


Out = Annotated[Path, typer.Option("--out", help="Folder to write.", callback=writable_folder)]
Faces = Annotated[Path, typer.Option("--faces", help="Folder written by prepare.")]
Model = Annotated[Path, typer.Option("--model", help="Folder or hub name of a forgery adapter.")]
JudgingModel = Annotated[
    Path | None,
    typer.Option(
        "--model",
        help="Folder or hub name of a forgery adapter or of a detector; default: the shipped "
        "model.",
    ),
]
Answers = Annotated[
    str | None,
    typer.Option(
        "--answers",
        help="Faces that the language model is asked about: all (default), flagged (those not "
        "certainly real) or none (it is not loaded).",
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache", help="Folder for the shipped model's language model; default: ~/.cache."
    ),
]
BaseModel = Annotated[
    str | None,
    typer.Option(
        "--base-model", help="Folder or hub name of the host; default: as the adapter says."
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        "--backend",
        help="transformers, llava (the package), or auto: according to the folder's layout.",
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda ...; default: a GPU if there is one.")
]
AllowDownload = Annotated[
    bool,
    typer.Option(
        "--allow-download",
        help="Download models that a model's files name, such as its host; not needed for names "
        "that you give yourself.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
Cropped = Annotated[
    bool,
    typer.Option(
        "--cropped",
        help="The files show one face each and little else. A face is framed as in training as far "
        "as its file allows; a tight crop is judged with a warning.",
    ),
]
Frames = Annotated[
    int | None,
    typer.Option("--frames", help="Number of evenly spaced frames of a video; default: 32."),
]
Every = Annotated[
    int | None, typer.Option("--every", help="Use every Nth frame instead of --frames.")
]
MaxNewTokens = Annotated[
    int,
    typer.Option(
        "--max-new-tokens", min=1, help="Maximum tokens of an answer; longer ones are cut."
    ),
]
MaxMemory = Annotated[
    int | None,
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        parser=memory_size,
        help="Maximum memory of batches, besides the weights, such as 2G; default: half of the "
        "free memory.",
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        help="Largest picture or frame to read, in pixels; default: 89 million.",
        callback=pixel_limit,
    ),
]
FaceFinder = Annotated[
    str | None,
    typer.Option("--face-detector", help="Face detector: dlib (default) or mediapipe."),
]
Uncited = Annotated[
    bool,
    typer.Option(
        "--uncited", help="Ask a second time, without the detector's score in the prompt."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume from the last checkpoint.")]
ReportTo = Annotated[str, typer.Option("--report-to", help="none, tensorboard or wandb.")]
Quantization = Annotated[
    str | None, typer.Option("--quantization", help="Quantise the host's weights: 4bit or 8bit.")
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="Of the host's weights: auto (the checkpoint's), float32, bfloat16, float16.",
    ),
]
DeepSpeed = Annotated[
    Path | None,
    typer.Option("--deepspeed", help="DeepSpeed's JSON file, such as scripts/zero2.json."),
]
Images = Annotated[
    list[Path],
    typer.Option(
        "--data", help="Folder with real/ and fake/, or CSV path,label[,set]; repeatable."
    ),
]
Word = Annotated[Path, typer.Option("--word", help="Folder or hub name of a pseudo-word.")]
