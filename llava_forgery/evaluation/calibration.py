"""Fit a detector's calibration on people who were not in training, and measure how good it is.

    llava-forgery eval calibrate --model KFD --faces FACES --out OUT

The calibration's figures are cross-fitted: each person's scores come from a fit on the others.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch

from llava_forgery.constants import FAKE, REAL
from llava_forgery.evaluation.figures import COLOURS, new_figure
from llava_forgery.evaluation.images import ManifestImages, PairImages
from llava_forgery.evaluation.metrics import auc, error_rates
from llava_forgery.evaluation.records import KeptRecords
from llava_forgery.evaluation.reliability import (
    balanced_calibration_error,
    choose_thresholds,
    class_weights,
    fit_temperature,
    reliability,
)
from llava_forgery.files import write_json, write_text
from llava_forgery.kfd.calibration import (
    Calibration,
    Domain,
    map_features,
    measure_picture,
)
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.simulate.degrade import DegradeConfig
from llava_forgery.simulate.pairs import FacePairs
from llava_forgery.tensors import from_bytes
from llava_forgery.train.recipe import Stage1Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDS = 5
# Share of the calibration's pictures that the domain excludes at either end.
_UNUSUAL = 0.005


def video_recipe() -> Stage1Recipe:
    """The default forgeries, with video compression of most pictures.

    Raises:
        ImportError: PyAV is not installed (extra ``train``).
    """
    return Stage1Recipe(
        degradation=DegradeConfig(
            video=0.8, crf=(18, 38), frames=(1, 4), video_scale=(0.5, 1.4), again=0.25, before=0.5
        )
    )


def calibration_images(
    faces: datasets.Dataset,
    size: int,
    *,
    pairs: int | None = None,
    recipe: Stage1Recipe | None = None,
    seed: int = 0,
) -> ManifestImages | PairImages:
    """Images to calibrate on: faces of both classes as they are, or forgeries of real faces.

    Args:
        faces: Rows of ``FaceCrop``, of people who were not in training.
        size: Side S of the images in pixels.
        pairs: Number of simulated forgeries; by default four for each face. Only if all faces are
            real.
        recipe: Recipe of forgeries, framing and degradation; None for :func:`video_recipe`.
        seed: Seed of the forgeries, which differ from those of training for any seed.

    Raises:
        ValueError: As for the images; or ``pairs`` is given for faces of both classes.
    """
    if set(faces["label"]) == {REAL, FAKE}:
        if pairs is not None:
            raise ValueError("these faces hold fakes and are judged as they are; leave pairs out")
        return ManifestImages(faces, size)
    recipe = recipe or video_recipe()
    count = 4 * len(faces) if pairs is None else pairs
    return PairImages(
        FacePairs(
            faces,
            count,
            size=size,
            seed=seed,
            simulator=recipe.simulator,
            framing=recipe.framing,
            degradation=recipe.degradation,
            role="calibration",
        )
    )


def undegraded(recipe: Stage1Recipe) -> Stage1Recipe:
    """The same recipe without degradation."""
    return replace(recipe, degradation=DegradeConfig(probability=0, before=0, video=0))


def calibrate(
    detector: KnowledgeGuidedForgeryDetector,
    images: ManifestImages | PairImages,
    output_dir: str | PathLike,
    *,
    fpr: float | None = None,
    keep_scores: bool = False,
    batch_size: int = 16,
    smallest: float = 0.0,
    photographs: ManifestImages | PairImages | None = None,
) -> tuple[Calibration, dict[str, Any]]:
    """Fit a calibration; the detector itself is left unchanged.

    Args:
        detector: Detector in eval mode.
        images: Images of people who were not in training.
        output_dir: Receives ``records.jsonl`` (a line for each image: label, person, logit,
            measures of the picture), ``metrics.json`` and ``table.md``. An interrupted call resumes
            if images and weights are the same.
        fpr: As for :func:`choose_thresholds`.
        keep_scores: Keep temperature and offset and only fit the rest, for an adapter that was
            trained on its detector's scores.
        batch_size: Number of images judged at once.
        smallest: Side of the smallest squares that the images represent, in pixels.
        photographs: Further images that must cause no warning, such as the same faces without
            compression; scores and thresholds are not fitted to them.

    Returns:
        The calibration and its figures: ``images``, ``people``, ``auc``, ``ece_before``,
        ``ece_after`` (cross-fitted), ``fpr``, ``fnr``, ``uncertain`` and ``wrong_if_certain``
        (shares, cross-fitted, both classes weighted equally), ``bins_before``, ``bins_after`` and
        ``calibration``.

    Raises:
        ValueError: As for the measures; there are fewer people than folds; or an interrupted call
            had different settings.
    """
    plain, detector.calibration = detector.calibration, None
    try:
        records = _records(detector, images, output_dir, batch_size)
        known = list(records)
        if photographs is not None:
            folder = Path(output_dir) / "photographs"
            known += _records(detector, photographs, folder, batch_size)
    finally:
        detector.calibration = plain
    before = (plain or Calibration()) if keep_scores else None
    labels = np.array([record["label"] for record in records])
    logits = np.array([record["logit"] for record in records])
    people = [record["person"] for record in records]
    fitted = _fit(labels, logits, fpr, before)
    domain = _domain(known, smallest)
    calibration = replace(fitted, domain=domain)
    metrics = _figures(labels, logits, people, fpr, before)
    metrics["calibration"] = calibration.to_dict()
    write_text(Path(output_dir) / "table.md", calibration_table(metrics))
    write_json(Path(output_dir) / "metrics.json", metrics)
    return calibration, metrics


def _records(
    detector: KnowledgeGuidedForgeryDetector,
    images: ManifestImages | PairImages,
    output_dir: str | PathLike,
    batch_size: int,
) -> list[dict[str, Any]]:
    people = _people(images)
    reference = next(detector.consistency.parameters())
    with KeptRecords(output_dir, {"images": images.describe()}, detector, batch_size) as kept:
        for places in kept.batches(len(images), "calibrate"):
            batch = [images[place] for place in places]
            with torch.inference_mode():
                pixels = torch.stack([from_bytes(image.image) for image in batch])
                output = detector(pixels.to(reference))
            logits = (output.class_logits[:, FAKE] - output.class_logits[:, REAL]).tolist()
            features = map_features(output.consistency_maps).tolist()
            kept.add(
                [
                    {
                        "label": image.label,
                        "person": people[place],
                        "logit": logit,
                        "features": own,
                        **measure_picture(image.image),
                    }
                    for place, image, logit, own in zip(
                        places, batch, logits, features, strict=True
                    )
                ]
            )
        kept.finish()
        return kept.records


def _people(images: ManifestImages | PairImages) -> list[str]:
    """The person of each image, whose images stay in one fold."""
    if isinstance(images, ManifestImages):
        return list(images.faces["identity"])
    known = images.pairs.faces["identity"]
    return [known[images.pairs.row_of(i // 2)] for i in range(len(images))]


def _fit(
    labels: np.ndarray, logits: np.ndarray, fpr: float | None, before: Calibration | None
) -> Calibration:
    if before is None:
        temperature, offset = fit_temperature(labels, logits)
    else:
        temperature, offset = before.temperature, before.offset
    scores = _score(logits, temperature, offset)
    return Calibration(temperature, offset, choose_thresholds(labels, scores, fpr))


def _score(logits: np.ndarray, temperature: float, offset: float) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip((logits - offset) / temperature, -500, 500)))


def _domain(records: Sequence[dict[str, Any]], smallest: float) -> Domain:
    features = np.array([record["features"] for record in records])
    mean = features.mean(axis=0)
    covariance = np.cov(features.T) + 1e-6 * np.eye(features.shape[1])
    values, vectors = np.linalg.eigh(covariance)
    whitening = vectors / np.sqrt(values)
    norms = np.linalg.norm((features - mean) @ whitening, axis=1)
    measures = {
        name: np.quantile([record[name] for record in records], [_UNUSUAL, 1 - _UNUSUAL])
        for name in ("sharpness", "flatness")
    }
    return Domain(
        sharpness=tuple(measures["sharpness"]),
        flatness=tuple(measures["flatness"]),
        side=float(smallest),
        mean=tuple(mean),
        whitening=whitening.tolist(),
        distance=float(np.quantile(norms, 1 - 2 * _UNUSUAL)),
    )


def _figures(
    labels: np.ndarray,
    logits: np.ndarray,
    people: Sequence[str],
    fpr: float | None,
    before: Calibration | None,
) -> dict[str, Any]:
    names = sorted(set(people))
    if len(names) < FOLDS:
        raise ValueError(
            f"cross-fitting needs at least {FOLDS} people, got {len(names)}; give more faces"
        )
    order = np.random.default_rng(0).permutation(len(names))
    fold_of = {names[i]: place % FOLDS for place, i in enumerate(order)}
    folds = np.array([fold_of[person] for person in people])
    after = np.zeros(len(labels))
    called, band = np.zeros(len(labels), bool), np.empty(len(labels), object)
    for fold in range(FOLDS):
        inside = folds == fold
        own = _fit(labels[~inside], logits[~inside], fpr, before)
        after[inside] = _score(logits[inside], own.temperature, own.offset)
        called[inside] = after[inside] >= own.thresholds.fake
        band[inside] = [own.thresholds.band(score) for score in after[inside]]
    alarms, missed = error_rates(labels, called.astype(float))
    weights, uncertain = class_weights(labels), band == "uncertain"
    certain = weights[~uncertain].sum()
    wrong = ~uncertain & (called != (labels == FAKE))
    plain = _score(logits, 1.0, 0.0)
    bins = {"before": reliability(labels, plain), "after": reliability(labels, after)}
    return {
        "images": len(labels),
        "people": len(names),
        "auc": auc(labels, logits),
        "ece_before": balanced_calibration_error(labels, plain),
        "ece_after": balanced_calibration_error(labels, after),
        "fpr": alarms,
        "fnr": missed,
        "uncertain": float(weights[uncertain].sum()),
        "wrong_if_certain": float(weights[wrong].sum() / certain) if certain else None,
        **{f"bins_{name}": [asdict(own) for own in found] for name, found in bins.items()},
    }


def calibration_table(metrics: dict[str, Any]) -> str:
    """The figures of :func:`calibrate` as a Markdown table."""
    own = metrics["calibration"]
    thresholds = own["thresholds"]
    rows = [
        ("images, people", f"{metrics['images']}, {metrics['people']}"),
        ("AUC", _number(metrics["auc"])),
        ("ECE before", _number(metrics["ece_before"])),
        ("ECE after, cross-fitted", _number(metrics["ece_after"])),
        ("temperature, offset", f"{own['temperature']:.3f}, {own['offset']:.3f}"),
        ("threshold", _number(thresholds["fake"])),
        ("uncertain from, to", f"{thresholds['low']:.3f}, {thresholds['high']:.3f}"),
        ("FPR at the threshold, cross-fitted", _number(metrics["fpr"])),
        ("FNR at the threshold, cross-fitted", _number(metrics["fnr"])),
        ("uncertain, cross-fitted", _number(metrics["uncertain"])),
        ("wrong where certain, cross-fitted", _number(metrics["wrong_if_certain"])),
    ]
    lines = ["| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def reliability_figure(metrics: dict[str, Any]) -> "Figure":
    """Reliability diagram: share of fakes against the score, before and after calibration.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure = new_figure(4.5, 4.5)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    for name, colour in zip(("before", "after"), COLOURS, strict=False):
        bins = metrics[f"bins_{name}"]
        label = f"{name}: ECE {metrics[f'ece_{name}']:.3f}"
        axes.plot(
            [own["score"] for own in bins], [own["fakes"] for own in bins], "o-", color=colour,
            label=label, markersize=4,
        )  # fmt: skip
    axes.set(xlabel="mean score", ylabel="share of fakes", xlim=(0, 1), ylim=(0, 1))
    axes.set_aspect("equal")
    axes.legend(loc="upper left", fontsize=9)
    return figure
