"""All figures of a detector's scores, or of answers in free text, at once."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from llava_forgery.constants import FAKE, REAL
from llava_forgery.evaluation.checks import (
    checked_labels,
    finite_values,
    probabilities,
    same_length,
)
from llava_forgery.evaluation.intervals import bootstrap, percentiles
from llava_forgery.evaluation.metrics import (
    accuracy,
    agreement,
    auc,
    average_precision,
    calibration_error,
    equal_error_rate,
    error_rates,
    region_scores,
    tpr_at_fpr,
)
from llava_forgery.evaluation.video import parent_folder, video_level
from llava_forgery.kfd.calibration import Thresholds
from llava_forgery.qa.answers import parse_answer

RANKING = {
    "auc": auc,
    "ap": average_precision,
    "eer": equal_error_rate,
    "tpr_at_fpr_1": lambda labels, scores: tpr_at_fpr(labels, scores, 0.01),
    "tpr_at_fpr_5": lambda labels, scores: tpr_at_fpr(labels, scores, 0.05),
}
"""Figures that only depend on the order of the scores."""


def detection_report(
    labels: ArrayLike,
    scores: ArrayLike,
    video_ids: Sequence[Hashable] | None = None,
    *,
    reduce: str = "mean",
    k: int = 5,
    grouping: str = "video_id",
    threshold: float = 0.5,
    are_probabilities: bool = True,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Figures of frames and, if ``video_ids`` are given, of videos.

    Args:
        labels: (N,) of 0 and 1. If only one class is present, its error rate is reported, and the
            figures that rank fakes against real images are None.
        scores: (N,) finite, higher for fake.
        video_ids: (N,), as for :func:`video_level`; the intervals then draw videos.
        reduce: How frames are pooled.
        k: Number of frames for ``reduce="top_k"``.
        grouping: "video_id" or "deepfakebench".
        threshold: Score from which an image is called fake.
        are_probabilities: Whether scores lie in [0, 1]; adds ``ece``.
        resamples: Number of resamples for the intervals; 0 for none.
        confidence: Nominal coverage of the intervals.
        seed: Seed of the intervals.

    Returns:
        ``frame`` and ``video`` (None without ids), each with ``count``, ``real``, ``fake``,
        ``auc``, ``ap``, ``eer``, ``tpr_at_fpr_1``, ``tpr_at_fpr_5``, ``accuracy``, ``fpr``,
        ``fnr``, ``ece`` if scores are probabilities, and, unless ``resamples`` is 0, ``intervals``
        (name to [low, high], or None, for the first five) and ``redrawn``. A figure is None if the
        class that it needs is missing.

    Raises:
        ValueError: As for the measures.
    """
    labels = checked_labels(labels)
    scores = (probabilities if are_probabilities else finite_values)(scores, "scores")
    same_length(labels=labels, scores=scores)
    groups = video_ids
    if video_ids is not None and grouping == "deepfakebench":
        groups = [parent_folder(path) for path in video_ids]
    options = (threshold, are_probabilities, resamples, confidence, seed)
    report = {"frame": _figures(labels, scores, groups, *options), "video": None}
    if video_ids is not None:
        videos = video_level(scores, video_ids, labels, reduce, k=k, grouping=grouping)
        report["video"] = _figures(videos.labels, videos.scores, None, *options)
    return report


def answer_report(
    labels: ArrayLike, answers: Sequence[str], regions: Sequence[Sequence[str]] | None = None
) -> dict[str, Any]:
    """Figures of answers to "Is this a deepfake image?", parsed by :func:`parse_answer`.

    Args:
        labels: (N,) of 0 and 1.
        answers: (N,) free texts. One that says neither is wrong and counts as ``unparsed``.
        regions: (N,) forged regions of each image, none for a real one; None omits the figures of
            regions.

    Returns:
        ``count``, ``accuracy``, ``unparsed`` and, over the fake images, ``region_precision``,
        ``region_recall`` and ``region_f1``.

    Raises:
        ValueError: Lengths differ, a label is invalid, or a fake image has no region.
    """
    if isinstance(answers, str):
        raise ValueError("expected a sequence of answers, got a single text")
    labels = checked_labels(labels)
    same_length(labels=labels, answers=answers)
    parsed = [parse_answer(answer) for answer in answers]
    report: dict[str, Any] = {
        "count": len(labels),
        "accuracy": accuracy(labels, [answer.label for answer in parsed]),
        "unparsed": sum(answer.label is None for answer in parsed),
    }
    if regions is not None:
        same_length(labels=labels, regions=regions)
        fakes = np.flatnonzero(labels == FAKE).tolist()
        found = region_scores([parsed[i].regions for i in fakes], [regions[i] for i in fakes])
        report |= {f"region_{name}": value for name, value in found._asdict().items()}
    return report


def agreement_report(
    scores: ArrayLike, p_yes: ArrayLike, thresholds: Thresholds
) -> dict[str, float | None]:
    """How often score and P(yes) agree on an image's label.

    Args:
        scores: (N,) scores of the detector in [0, 1].
        p_yes: (N,) P(yes) of the language model in [0, 1].
        thresholds: Thresholds of the scores.

    Returns:
        ``agreement`` over all images, ``agreement_if_certain`` over those whose score lies outside
        the uncertain band (None if there are none), and ``uncertain``, the share of the others.

    Raises:
        ValueError: As for :func:`~llava_forgery.evaluation.metrics.agreement`.
    """
    scores, p_yes = np.asarray(scores), np.asarray(p_yes)
    certain = np.array([thresholds.band(score) != "uncertain" for score in scores])
    return {
        "agreement": agreement(scores, p_yes, thresholds.fake),
        "agreement_if_certain": (
            agreement(scores[certain], p_yes[certain], thresholds.fake) if certain.any() else None
        ),
        "uncertain": float(1 - certain.mean()),
    }


def _figures(
    labels: np.ndarray,
    scores: np.ndarray,
    groups: Sequence[Hashable] | None,
    threshold: float,
    are_probabilities: bool,
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, Any]:
    fpr, fnr = error_rates(labels, scores, threshold)
    both = len(np.unique(labels)) == 2
    figures: dict[str, Any] = {
        "count": len(labels),
        "real": int((labels == REAL).sum()),
        "fake": int((labels == FAKE).sum()),
        **{name: measure(labels, scores) if both else None for name, measure in RANKING.items()},
        "accuracy": accuracy(labels, (scores >= threshold).astype(int)),
        "fpr": fpr,
        "fnr": fnr,
    }
    if are_probabilities:
        figures["ece"] = calibration_error(labels, scores)
    if resamples and not both:
        figures |= {"redrawn": 0, "intervals": dict.fromkeys(RANKING)}
    elif resamples:
        # All figures use the same resamples, so that their intervals are comparable.
        values, figures["redrawn"] = bootstrap(
            lambda *drawn: [measure(*drawn) for measure in RANKING.values()],
            labels,
            scores,
            groups=groups,
            resamples=resamples,
            seed=seed,
        )
        low, high = percentiles(values, confidence)
        figures["intervals"] = {
            name: [float(low[i]), float(high[i])] for i, name in enumerate(RANKING)
        }
    return figures
