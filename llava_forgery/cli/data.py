"""Commands that make data: faces and forgeries."""

from pathlib import Path
from typing import Annotated

import typer

from llava_forgery.cli.app import data, notice
from llava_forgery.cli.options import Every, Faces, Frames, MaxPixels, Out, Seed, writable_file


@data.command("prepare")
def prepare(
    src: Annotated[
        Path,
        typer.Argument(
            help="Folder of photographs and videos, a single file, or a manifest (.jsonl) from "
            "import-benchmark, which gives labels, identities and splits."
        ),
    ],
    out: Out,
    size: Annotated[int, typer.Option(help="Side of the crops in pixels.")] = 320,
    margin: Annotated[
        float, typer.Option(help="Space around the landmarks, as a share of their box's side.")
    ] = 0.4,
    align: Annotated[
        bool, typer.Option("--align", help="Rotate the crops until the eyes are level.")
    ] = False,
    frames: Frames = None,
    every: Every = None,
    max_pixels: MaxPixels = None,
    all_faces: Annotated[
        bool, typer.Option("--all-faces", help="Keep all faces of a file, not only the largest.")
    ] = False,
    face_detector: Annotated[
        str, typer.Option(help="Detector of faces and landmarks: dlib or mediapipe.")
    ] = "dlib",
    identities: Annotated[
        Path | None, typer.Option(help="CSV with the columns file and identity.")
    ] = None,
    identity_pattern: Annotated[
        str | None,
        typer.Option(help="Regular expression for file names whose group is the identity."),
    ] = None,
    test_share: Annotated[
        float, typer.Option(help="Share of the identities held out for testing.")
    ] = 0.0,
    val_share: Annotated[
        float, typer.Option(help="Share held out to choose steps and thresholds.")
    ] = 0.0,
    fake: Annotated[bool, typer.Option("--fake", help="The faces are forged: label 1.")] = False,
    workers: Annotated[int, typer.Option(help="Number of processes; the result is the same.")] = 1,
    seed: Seed = 0,
) -> None:
    """Turn photographs and videos into face crops with landmarks and identities.

    After an interruption the same command resumes. Exit status: 0 if every picture and video was
    read, 1 if some could not be read (the rest is written), 2 for wrong usage.
    """
    from llava_forgery.constants import FAKE, REAL
    from llava_forgery.faces.benchmarks.manifest import read_manifest
    from llava_forgery.faces.extract import CropSettings
    from llava_forgery.faces.prepare import prepare as run
    from llava_forgery.faces.prepare import prepare_sources
    from llava_forgery.faces.video import frame_choice

    choice = frame_choice(frames, every)
    if src.suffix == ".jsonl":
        if (
            identities is not None
            or identity_pattern is not None
            or any((test_share, val_share, fake, seed))
        ):
            raise ValueError(
                f"{src} gives labels, identities and splits itself; omit --identities, "
                "--identity-pattern, --test-share, --val-share, --fake and --seed"
            )
        settings = CropSettings(size, margin, align, not all_faces, choice)
        sources = read_manifest(src)
        report = prepare_sources(
            sources, out, settings=settings, detector=face_detector, workers=workers
        )
    else:
        report = run(
            src,
            out,
            size=size,
            margin=margin,
            align=align,
            frames=choice,
            detector=face_detector,
            identities_csv=identities,
            identity_pattern=identity_pattern,
            test_share=test_share,
            val_share=val_share,
            seed=seed,
            largest_only=not all_faces,
            label=FAKE if fake else REAL,
            workers=workers,
        )
    notice(
        f"{report.faces} faces in {report.files} files; {len(report.skipped)} files were "
        f"skipped, {report.unread} of them unread, see {out / 'report.json'}"
    )
    if report.unread:
        raise typer.Exit(1)


@data.command("forge")
def forge(
    faces: Faces,
    out: Out,
    pairs: Annotated[int, typer.Option(help="Number of forged and of pristine faces.")] = 400,
    split: Annotated[str, typer.Option(help="Split of the faces: train or test.")] = "train",
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 224,
    seed: Seed = 1,
) -> None:
    """Write simulated forgeries and pristine faces as the folders real/ and fake/."""
    from llava_forgery.data.forge import forge_folders
    from llava_forgery.simulate.pairs import FacePairs, Role, load_real_faces

    rows = load_real_faces(faces, split)
    # For training or testing a pseudo-word.
    role: Role = "test" if split == "test" else "validation" if split == "val" else "stage2"
    forge_folders(FacePairs(rows, pairs, size=size, seed=seed, role=role), out)


@data.command("preview")
def preview(
    faces: Faces,
    out: Annotated[Path, typer.Option("--out", help="PNG to write.", callback=writable_file)],
    count: Annotated[int, typer.Option("--count", "-n", help="Number of rows.")] = 6,
    split: Annotated[
        str | None, typer.Option(help="train, val or test; default: all faces.")
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 224,
    seed: Seed = 1,
) -> None:
    """Draw a sheet of pristine face, forgery, mask and conversation for inspection."""
    from llava_forgery.data.preview import draw_preview
    from llava_forgery.simulate.pairs import FacePairs, load_real_faces

    rows = load_real_faces(faces, split)
    draw_preview(FacePairs(rows, count, size=size, seed=seed, role="preview"), out)


@data.command("export-eval")
def export_eval(
    faces: Faces,
    out: Out,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    as_is: Annotated[
        bool,
        typer.Option("--as-is", help="Keep the faces' own labels instead of simulating forgeries."),
    ] = False,
    pairs: Annotated[
        int | None, typer.Option(help="Number of forged faces; default: two for each face.")
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 224,
    seed: Seed = 2,
) -> None:
    """Write faces, forged and pristine, as a data set for the tasks of lmms-eval."""
    from llava_forgery.data.export_eval import export_faces, export_simulated
    from llava_forgery.faces.records import load_faces
    from llava_forgery.simulate.pairs import CENTRED, FacePairs

    rows = load_faces(faces, split=split)
    if as_is:
        count = export_faces(rows, out)
    else:
        source = FacePairs(
            rows, pairs or 2 * len(rows), size=size, seed=seed, framing=CENTRED, role="test"
        )
        count = export_simulated(source, out)
    notice(f"{count} images in {out}")
