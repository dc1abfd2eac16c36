"""Commands for public benchmarks."""

from pathlib import Path
from typing import Annotated

import typer

from llava_forgery.cli.app import data, notice
from llava_forgery.cli.options import Faces, Out, writable_file

_NAMES = (
    "ff++, dfd, celeb-df-v1, celeb-df-v2, celeb-df++, dfdcp, dfdc, deepfakebench (DF40 too), "
    "folders, antifakeprompt"
)


@data.command("import-benchmark")
def import_benchmark(
    name: Annotated[str, typer.Argument(help=_NAMES)],
    root: Annotated[
        Path,
        typer.Argument(help="Its folder; of deepfakebench the JSON, of antifakeprompt the CSV."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="Manifest to write, such as ffpp.jsonl.", callback=writable_file
        ),
    ],
    method: Annotated[
        list[str] | None, typer.Option(help="Of FaceForensics++; repeatable; default: all.")
    ] = None,
    compression: Annotated[
        list[str] | None, typer.Option(help="raw, c23 or c40; repeatable; default: c23.")
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(
            help="Of dfdc and deepfakebench which to read; of folders and antifakeprompt what "
            "all files count as."
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Of deepfakebench: the folder its paths are relative to.")
    ] = None,
    masks: Annotated[
        bool | None,
        typer.Option("--masks/--no-masks", help="Ask for masks, or leave them; default: if there."),
    ] = None,
    frames: Annotated[
        bool | None,
        typer.Option(
            "--frames/--no-frames",
            help="Of folders: whether the pictures of one folder are the frames of a video; "
            "default: where their names differ by a number alone.",
        ),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Take what is there of an incomplete download.")
    ] = False,
) -> None:
    """List a benchmark's files with label, split, method and mask, for prepare."""
    from collections import Counter

    from llava_forgery.constants import LABEL_NAMES
    from llava_forgery.faces.benchmarks.manifest import BENCHMARKS, read_benchmark, write_manifest

    known = BENCHMARKS[name][1] if name in BENCHMARKS else ()
    options = {
        "methods": method,
        "compressions": compression,
        "images": images,
        "masks": masks,
        "frames": frames,
        "partial": partial or None,
    }
    if split and "splits" not in known:
        if len(split) > 1:
            raise ValueError(f"{name} takes one --split at most, got {', '.join(split)}")
        options["split"] = split[0]
    else:
        options["splits"] = split
    if name == "deepfakebench" and images is None:
        raise ValueError("deepfakebench needs --images, the folder that its paths are relative to")
    sources = read_benchmark(name, root, **options)
    write_manifest(sources, out)
    counts = Counter((s.split, s.method or LABEL_NAMES[s.label]) for s in sources)
    for (where, made_by), count in sorted(counts.items()):
        notice(f"{where} {made_by}: {count}")
    notice(f"{len(sources)} files in {out}")


@data.command("export-deepfakebench")
def export_deepfakebench(
    faces: Faces,
    out: Out,
    dataset: Annotated[
        str, typer.Option(help="DeepfakeBench's name, such as FaceForensics++ or Celeb-DF-v2.")
    ],
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 256,
) -> None:
    """Write prepared faces as DeepfakeBench's pictures and data set JSON."""
    from llava_forgery.data.export_deepfakebench import export_deepfakebench as run
    from llava_forgery.faces.records import load_faces

    count = run(load_faces(faces), out, dataset, size=size)
    notice(f"{count} pictures in {out}")
