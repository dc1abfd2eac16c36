"""What `eval real` compares a detector with: two classifiers, trained on the same faces.

    python -m eval.real_baselines --model KFD --data REAL --faces FACES --recipe RECIPE --out OUT

Both are EfficientNet-Lite0 with cross-entropy on real and forged, from the same ImageNet weights,
for as many steps, with as many pairs a step, and with the framing, degradation, schedule, averaging
of the weights and measuring of the batch norms that the recipe has:

- ``classifier`` learns the recipe's forgeries. Of three learning rates it takes the one with the
  highest AUC, after ``--rate-steps``, on forgeries of people who are not in its training;
- ``self-blending`` learns whole faces blended with themselves (Shiohara and Yamasaki 2022), in our
  words, at the same learning rate.

OUT gets the models, what `eval real` writes of all three, ``comparison.md`` with their paired
differences, and ``histograms.png``. An interrupted run resumes when it is repeated.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import datasets
import torch
import typer

from eval.papers.baselines import (
    WEIGHTS,
    Baseline,
    BaselineScorer,
    SelfBlendedBaseline,
    fill_baseline,
    train_baseline,
)
from eval.papers.table_settings import SelfBlendedSettings
from llava_forgery.cli.app import run
from llava_forgery.convert.sources import import_efficientnet
from llava_forgery.evaluation.figures import save_figure
from llava_forgery.evaluation.images import PairImages
from llava_forgery.evaluation.metrics import auc
from llava_forgery.evaluation.paired import compare_real
from llava_forgery.evaluation.real import evaluate_real, real_figure, real_table
from llava_forgery.evaluation.records import RECORDS
from llava_forgery.evaluation.scorers import DetectorScorer
from llava_forgery.faces.records import load_faces
from llava_forgery.files import read_json_lines, write_json
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.simulate.config import SimulatorConfig
from llava_forgery.simulate.pairs import FacePairs
from llava_forgery.train.recipe import Stage1Recipe, read_recipe
from llava_forgery.train.trainer import last_checkpoint

RATES = (3e-4, 1e-3, 3e-3)


class RealScorer(BaselineScorer):
    """A baseline's score under the name of the detector's, as `eval real` records it."""

    names = ("kfd",)

    def __call__(self, images):
        """Scores in [0, 1] of images (S, S, 3) uint8."""
        return {"kfd": super().__call__(images)["classifier"]}


def main(
    model: Annotated[Path, typer.Option(help="Folder of the detector.")],
    data: Annotated[Path, typer.Option(help="Face crops, as `eval real` takes them.")],
    faces: Annotated[Path, typer.Option(help="Prepared faces that the detector was trained on.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    recipe: Annotated[Path | None, typer.Option(help="The detector's recipe.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of its training.")] = 4000,
    rate_steps: Annotated[
        int | None, typer.Option(help="Steps of the trainings that choose the rate; default: all.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pairs a step of its training.")] = 8,
    val_split: Annotated[
        str, typer.Option(help="People of FACES who choose the rate: val or test.")
    ] = "test",
    val_pairs: Annotated[int, typer.Option(help="Forgeries that choose the rate.")] = 200,
    sets: Annotated[
        str | None, typer.Option(help="Sets whose mean AUC is compared; default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the trainings.")] = 0,
) -> None:
    """Train both baselines, measure all three, and print one table."""
    chosen = Stage1Recipe() if recipe is None else read_recipe(recipe)
    train, val = load_faces(faces, split="train"), load_faces(faces, split=val_split)
    trunk = out / "trunk.safetensors"
    if not trunk.is_file():
        import_efficientnet(trunk)
    kfd = KnowledgeGuidedForgeryDetector.from_pretrained(model)
    settings = SelfBlendedSettings(
        weights=str(trunk), image_size=kfd.config.encoder.image_size, steps=steps,
        batch_size=batch_size,
    )  # fmt: skip
    blended = replace(
        chosen, simulator=replace(SimulatorConfig(), whole_face=1.0, swap=0, reenactment=0)
    )
    measured = PairImages(
        FacePairs(
            val, val_pairs, size=settings.image_size, seed=seed, simulator=chosen.simulator,
            framing=chosen.framing, degradation=chosen.degradation, role="validation",
        )
    )  # fmt: skip
    rates = {}
    for rate in RATES:
        own = replace(settings, learning_rate=rate, steps=rate_steps or steps)
        trained = _train(own, chosen, train, out / f"classifier-{rate:g}-{own.steps}", seed)
        rates[rate] = _auc(trained, measured)
    best = max(rates, key=rates.__getitem__)
    write_json(out / "rates.json", {f"{rate:g}": value for rate, value in rates.items()})
    settings = replace(settings, learning_rate=best)
    models = {
        "classifier": _train(settings, chosen, train, out / f"classifier-{best:g}-{steps}", seed),
        "self-blending": _train(settings, blended, train, out / "self-blending", seed),
    }
    metrics = {
        "detector": evaluate_real(
            DetectorScorer(kfd), data, out / "real-detector", threshold=kfd.thresholds.fake
        )
    }
    for name, trained in models.items():
        metrics[name] = evaluate_real(RealScorer(trained), data, out / f"real-{name}")
    for name, found in metrics.items():
        save_figure(real_figure(found), out / f"histograms-{name}.png", f"Scores of the {name}")
        typer.echo(f"\n{name}\n\n{real_table(found)}", nl=False)
    others = {name: read_json_lines(out / f"real-{name}" / RECORDS) for name in models}
    typer.echo(f"\n{compare_real(out / 'real-detector', others, sets)}", nl=False)


def _train(
    settings: SelfBlendedSettings,
    recipe: Stage1Recipe,
    faces: datasets.Dataset,
    folder: Path,
    seed: int,
) -> Baseline:
    model = SelfBlendedBaseline(settings, seed)
    model.simulator = recipe.simulator
    if (folder / WEIGHTS).is_file():
        fill_baseline(model, folder)
        return model.eval()
    return train_baseline(
        model,
        faces,
        folder,
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        seed=seed,
        save_steps=200,
        workers=1,
        framing=recipe.framing,
        degradation=recipe.degradation,
        average=recipe.average,
        schedule=recipe.schedule,
        norm_degradation=recipe.norm_degradation,
        norm_batches=recipe.norm_batches,
        resume=last_checkpoint(folder) is not None,
    )


@torch.inference_mode()
def _auc(model: Baseline, images: PairImages, batch_size: int = 16) -> float:
    """On forgeries and what they were made of."""
    scorer = RealScorer(model)
    scores: list[float] = []
    for start in range(0, len(images), batch_size):
        stop = min(start + batch_size, len(images))
        scores += scorer([images[i].image for i in range(start, stop)])["kfd"]
    return auc(images.labels, scores)


if __name__ == "__main__":
    run(lambda: typer.run(main), "%(message)s")
