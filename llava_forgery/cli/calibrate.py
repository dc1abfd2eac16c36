"""The command that calibrates a detector."""

from pathlib import Path
from typing import Annotated

import typer

from llava_forgery.cli.app import evaluation
from llava_forgery.cli.evaluate import AnyModel
from llava_forgery.cli.options import AllowDownload, Device, Faces, Out, Seed


@evaluation.command("calibrate")
def calibrate(
    model: AnyModel,
    faces: Faces,
    out: Out,
    split: Annotated[
        str, typer.Option(help="train, val, test or all: people who were not in training.")
    ] = "test",
    pairs: Annotated[
        int | None,
        typer.Option(min=1, help="Forged faces if all are real; default: four for each face."),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="If all are real: JSON file as for `train detector --recipe` that says how they "
            "are forged and degraded; default: forged and compressed like videos."
        ),
    ] = None,
    fpr: Annotated[
        float | None,
        typer.Option(
            help="Share of the real faces that the threshold calls fake; default: equal to the "
            "share of the fakes that it calls real."
        ),
    ] = None,
    plot: Annotated[
        bool, typer.Option("--plot", help="Also draw reliability.png, the reliability diagram.")
    ] = False,
    write: Annotated[
        bool, typer.Option(" /--no-write", help="Only measure: do not change the model.")
    ] = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Images judged at once.")] = 16,
    device: Device = None,
    allow_download: AllowDownload = False,
    seed: Seed = 0,
) -> None:
    """Fit score, threshold, uncertain band and warnings on people who were not in training.

    They are written into the detector's kfd_config.json. The scores of an adapter's detector are
    not changed, as it was trained on them; the rest is fitted. Figures are cross-fitted: each
    person's come from a fit on the others. An interrupted run resumes when it is repeated.
    """
    from llava_forgery.evaluation.calibration import (
        calibrate,
        calibration_images,
        calibration_table,
        reliability_figure,
        undegraded,
        video_recipe,
    )
    from llava_forgery.evaluation.figures import save_figure
    from llava_forgery.faces.records import load_faces
    from llava_forgery.hosts.names import KFD
    from llava_forgery.hosts.quantized import pick_device
    from llava_forgery.kfd.checkpoint import CONFIG, write_calibration
    from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
    from llava_forgery.optional import require
    from llava_forgery.train.recipe import read_recipe

    if plot:
        require("matplotlib", extra="eval", feature="--plot")
    alone = (model / CONFIG).is_file()
    folder = model if alone else model / KFD
    rows = load_faces(faces, split=None if split == "all" else split)
    chosen = video_recipe() if recipe is None else read_recipe(recipe)
    detector = KnowledgeGuidedForgeryDetector.from_pretrained(
        folder, allow_download=allow_download
    ).to(pick_device(device))
    size = detector.config.encoder.image_size
    images = calibration_images(rows, size, pairs=pairs, recipe=chosen, seed=seed)
    forged = images.source == "simulated forgeries"
    smallest = size * chosen.degradation.video_scale[0] if forged else 0.0
    photographs = None
    if forged:
        photographs = calibration_images(
            rows, size, pairs=min(len(rows), 150), recipe=undegraded(chosen), seed=seed + 1
        )
    fitted, metrics = calibrate(
        detector, images, out, fpr=fpr, keep_scores=not alone, batch_size=batch_size,
        smallest=smallest, photographs=photographs,
    )  # fmt: skip
    if plot:
        note = f"Reliability of {model} on the faces of {faces}"
        save_figure(reliability_figure(metrics), out / "reliability.png", note)
    if write:
        write_calibration(folder, fitted)
    typer.echo(calibration_table(metrics), nl=False)
