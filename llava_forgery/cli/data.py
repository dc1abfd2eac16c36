"""Commands that make data: faces, forgeries, conversations."""

from pathlib import Path
from typing import Annotated

import typer

from llava_forgery.cli.app import app
from llava_forgery.cli.options import Faces, Out, Seed


@app.command()
def prepare(
    src: Annotated[Path, typer.Argument(help="Photograph, or folder of photographs.")],
    out: Out,
    size: Annotated[int, typer.Option(help="Side of the crops in pixels.")] = 320,
    margin: Annotated[
        float, typer.Option(help="Space around the landmarks, as a share of their box's side.")
    ] = 0.4,
    identities: Annotated[
        Path | None, typer.Option(help="CSV with the columns file and identity.")
    ] = None,
    identity_pattern: Annotated[
        str | None,
        typer.Option(help="Regular expression over the file name whose group is the identity."),
    ] = None,
    test_share: Annotated[
        float, typer.Option(help="Share of the identities that are kept for testing.")
    ] = 0.0,
    seed: Seed = 0,
) -> None:
    """Turn photographs into face crops with landmarks and identities."""
    from llava_forgery.faces.prepare import prepare as run

    report = run(
        src,
        out,
        size=size,
        margin=margin,
        identities_csv=identities,
        identity_pattern=identity_pattern,
        test_share=test_share,
        seed=seed,
    )
    typer.echo(
        f"{report.faces} faces in {report.files} images; {len(report.skipped)} images were left "
        f"out, see {out / 'report.json'}",
        err=True,
    )


@app.command()
def generate_faces(
    out: Out,
    identities: Annotated[int, typer.Option(help="Number of drawn people.")] = 60,
    photos: Annotated[int, typer.Option(help="Pictures of each.")] = 2,
    size: Annotated[int, typer.Option(help="Side of the crops in pixels.")] = 320,
    test_share: Annotated[
        float, typer.Option(help="Share of the identities that are kept for testing.")
    ] = 0.25,
    seed: Seed = 0,
) -> None:
    """Draw faces by program, where there are no photographs."""
    from llava_forgery.faces.generated import generate_faces as run

    run(out, identities=identities, photos=photos, size=size, test_share=test_share, seed=seed)


@app.command()
def build_qa(
    faces: Faces,
    kfd: Annotated[Path, typer.Option("--kfd", help="Folder of a trained detector.")],
    out: Out,
    pairs: Annotated[int, typer.Option(help="Forged faces; as many pristine ones.")] = 400,
    follow_ups: Annotated[
        float, typer.Option(help="Probability of follow-up turns in a conversation.")
    ] = 0.3,
    task_descriptions: Annotated[
        float, typer.Option(help="Probability of a task description at the beginning.")
    ] = 1.0,
    kfd_results: Annotated[
        float, typer.Option(help="Probability of the sentence that cites the score.")
    ] = 1.0,
    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            help="For a detector on a host's vision tower: that host's folder or hub name; "
            "default: where it was trained.",
        ),
    ] = None,
    seed: Seed = 1,
) -> None:
    """Make the training conversations: forge, score, ask, answer."""
    from llava_forgery.faces.records import load_faces
    from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
    from llava_forgery.simulate.degrade import DegradeConfig
    from llava_forgery.simulate.pairs import FacePairs
    from llava_forgery.train.conversations import build_conversations

    detector = KnowledgeGuidedForgeryDetector.from_pretrained(kfd, host=host)
    source = FacePairs(
        load_faces(faces, split="train"),
        pairs,
        size=detector.config.encoder.image_size,
        seed=seed,
        degradation=DegradeConfig(),
    )
    build_conversations(
        source,
        detector,
        out,
        follow_ups=follow_ups,
        task_descriptions=task_descriptions,
        kfd_results=kfd_results,
        seed=seed,
    )


@app.command()
def forge(
    faces: Faces,
    out: Out,
    pairs: Annotated[int, typer.Option(help="Forged faces; as many pristine ones.")] = 400,
    split: Annotated[str, typer.Option(help="Whose faces: train or test.")] = "train",
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 224,
    seed: Seed = 1,
) -> None:
    """Write simulated forgeries and pristine faces as the folders real/ and fake/."""
    from llava_forgery.faces.records import load_faces
    from llava_forgery.simulate.pairs import FacePairs
    from llava_forgery.train.forge import forge_folders

    forge_folders(FacePairs(load_faces(faces, split=split), pairs, size=size, seed=seed), out)


@app.command()
def preview(
    faces: Faces,
    out: Annotated[Path, typer.Option("--out", help="PNG to write.")],
    count: Annotated[int, typer.Option("--count", "-n", help="Rows of the sheet.")] = 6,
    split: Annotated[
        str | None, typer.Option(help="train, val or test; default: all faces.")
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 224,
    seed: Seed = 1,
) -> None:
    """Draw a sheet of pristine face, forgery, mask and conversation, to look at."""
    from llava_forgery.faces.records import load_faces
    from llava_forgery.simulate.pairs import FacePairs
    from llava_forgery.train.preview import draw_preview

    draw_preview(FacePairs(load_faces(faces, split=split), count, size=size, seed=seed), out)


@app.command()
def export_eval(
    faces: Faces,
    out: Out,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    as_is: Annotated[
        bool,
        typer.Option("--as-is", help="Keep the faces' own labels instead of simulating forgeries."),
    ] = False,
    pairs: Annotated[
        int | None, typer.Option(help="Forged faces; default: two for each face.")
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 224,
    seed: Seed = 2,
) -> None:
    """Write faces, forged and pristine, as a data set for the tasks of lmms-eval."""
    from llava_forgery.evaluation.export import export_faces, export_simulated
    from llava_forgery.faces.records import load_faces
    from llava_forgery.simulate.pairs import CENTRED, FacePairs

    rows = load_faces(faces, split=split)
    if as_is:
        count = export_faces(rows, out)
    else:
        source = FacePairs(rows, pairs or 2 * len(rows), size=size, seed=seed, framing=CENTRED)
        count = export_simulated(source, out)
    typer.echo(f"{count} images in {out}", err=True)
