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
        typer.Argument(help="Folder; for deepfakebench the JSON, for antifakeprompt the CSV."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="Manifest to write, such as ffpp.jsonl.", callback=writable_file
        ),
    ],
    method: Annotated[
        list[str] | None, typer.Option(help="Methods of FaceForensics++; repeatable; default: all.")
    ] = None,
    compression: Annotated[
        list[str] | None, typer.Option(help="raw, c23 or c40; repeatable; default: c23.")
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(
            help="For dfdc and deepfakebench the splits to read; for folders and antifakeprompt "
            "the split of all files."
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="For deepfakebench: folder its paths are relative to.")
    ] = None,
    masks: Annotated[
        bool | None,
        typer.Option("--masks/--no-masks", help="Require or ignore masks; default: read any."),
    ] = None,
    frames: Annotated[
        bool | None,
        typer.Option(
            "--frames/--no-frames",
            help="For folders: whether the pictures of one folder are the frames of a video; "
            "default: if their names only differ by a number.",
        ),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Accept an incomplete download.")
    ] = False,
) -> None:
    """List a benchmark's files with label, split, method and mask for prepare."""
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
            raise ValueError(f"{name} takes at most one --split, got {', '.join(split)}")
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
