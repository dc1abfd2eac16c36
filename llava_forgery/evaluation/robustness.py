"""AUC of a detector against the strength of perturbations."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from llava_forgery.evaluation.checks import checked_labels
from llava_forgery.evaluation.figures import robustness_figure, save_figure
from llava_forgery.evaluation.images import ManifestImages, PairImages
from llava_forgery.evaluation.intervals import bootstrap_interval
from llava_forgery.evaluation.metrics import auc
from llava_forgery.evaluation.perturb import (
    LEVELS,
    PERTURBATIONS,
    Perturbation,
    RobustnessPoint,
    perturb,
)
from llava_forgery.evaluation.records import KeptRecords
from llava_forgery.evaluation.scorers import Scorer
from llava_forgery.files import write_json, write_text

UNTOUCHED = "none"


def measure_robustness(
    scorer: Scorer,
    images: ManifestImages | PairImages,
    perturbations: Sequence[Perturbation] = PERTURBATIONS,
    *,
    seed: int = 0,
    batch_size: int = 16,
    resamples: int = 500,
    output_dir: str | PathLike | None = None,
) -> list[RobustnessPoint]:
    """Judge every image unchanged and under each perturbation.

    The perturbation is applied to the square that the detector sees, so that a strength means the
    same for photographs of any size.

    Args:
        scorer: Detector, or host with the skill.
        images: Images of both classes, of the scorer's size.
        perturbations: Kinds of perturbation.
        seed: Seed of the perturbations and of the intervals.
        batch_size: Number of images judged at once.
        resamples: Number of resamples for the intervals.
        output_dir: Keeps the scores of an interrupted call, which the same call resumes; None
            keeps nothing.

    Returns:
        For each score the point of the unchanged images, then five for each kind.

    Raises:
        ValueError: One class is missing, there is nothing to do, or an interrupted call had
            different settings.
    """
    if not perturbations:
        raise ValueError("expected at least one kind of change")
    labels = checked_labels(images.labels, both="robustness")
    settings = {
        "scores": scorer.names,
        "images": images.describe(),
        "perturbations": [perturbation.name for perturbation in perturbations],
        "seed": seed,
    }
    steps: list[tuple[Perturbation | None, int]] = [(None, 0)]
    steps += [(p, level) for p in perturbations for level in range(1, LEVELS + 1)]
    with KeptRecords(output_dir, settings, scorer.model, batch_size) as kept:
        for places in kept.batches(len(images), "robustness"):
            batch = [images[place] for place in places]
            found: list[dict[str, list[float]]] = [{n: [] for n in scorer.names} for _ in batch]
            for kind, level in steps:
                changed = [
                    one.image if kind is None else perturb(one.image, kind, level, one.key, seed)
                    for one in batch
                ]
                for name, values in scorer(changed).items():
                    for record, value in zip(found, values, strict=True):
                        record[name].append(value)
            kept.add(found)
        kept.remove()
    points = []
    for name in scorer.names:
        # (steps, images)
        scores = np.array([record[name] for record in kept.records]).T
        for (kind, level), values in zip(steps, scores, strict=True):
            interval = bootstrap_interval(
                auc,
                labels,
                values,
                groups=images.groups,
                resamples=resamples,
                seed=seed,
            )
            points.append(
                RobustnessPoint(
                    score=name,
                    perturbation=UNTOUCHED if kind is None else kind.name,
                    level=level,
                    strength=None if kind is None else float(kind.strengths[level - 1]),
                    auc=interval.value,
                    low=interval.low,
                    high=interval.high,
                )
            )
    return points


def write_robustness(
    points: Iterable[RobustnessPoint], output_dir: str | PathLike, about: dict[str, Any]
) -> None:
    """Write ``robustness.json``, ``robustness.csv`` and ``robustness.png``.

    Args:
        points: Output of :func:`measure_robustness`.
        output_dir: Output folder; its files are replaced.
        about: Description of the measurement for the JSON: model, images, seed ...

    Raises:
        ImportError: matplotlib is missing.
    """
    rows = [asdict(point) for point in points]
    output_dir = Path(output_dir)
    write_json(output_dir / "robustness.json", {**about, "points": rows})
    table = io.StringIO()
    writer = csv.DictWriter(table, [f.name for f in fields(RobustnessPoint)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(output_dir / "robustness.csv", table.getvalue())
    figure = robustness_figure([RobustnessPoint(**row) for row in rows])
    save_figure(figure, output_dir / "robustness.png", "AUC against the strength of changes")
