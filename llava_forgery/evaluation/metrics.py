"""Measures of scores and answers, one number each; those of masks and videos are re-exported.

Pure functions of arrays. Labels are 0 (real) and 1 (fake); higher scores mean fake. Intervals are
in :mod:`.intervals`.

The ranking measures are implemented in NumPy, since a bootstrap calls them thousands of times and
scikit-learn's argument checks take about thirty times as long as the computation. The tests compare
them with scikit-learn's to within 1e-9.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from llava_forgery.constants import FAKE, REAL
from llava_forgery.evaluation.checks import (
    checked_labels,
    finite_values,
    probabilities,
    same_length,
)
from llava_forgery.evaluation.masks import mask_dice, mask_iou, pixel_auc
from llava_forgery.evaluation.video import VideoScores, video_level
from llava_forgery.infer.verdict import P_YES_THRESHOLD

__all__ = [
    "RegionScores",
    "RocCurve",
    "VideoScores",
    "accuracy",
    "agreement",
    "auc",
    "average_precision",
    "calibration_error",
    "equal_error_rate",
    "error_rates",
    "mask_dice",
    "mask_iou",
    "pixel_auc",
    "region_scores",
    "roc",
    "tpr_at_fpr",
    "video_level",
]


class RegionScores(NamedTuple):
    """Micro-averaged over (image, region) pairs, each in [0, 1]."""

    precision: float
    recall: float
    f1: float


class RocCurve(NamedTuple):
    """A point for every threshold, from (0, 0) to (1, 1)."""

    fpr: np.ndarray
    """Share of the real images that are called fake, increasing."""
    tpr: np.ndarray
    """Share of the fake images that are called fake, increasing."""


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: the probability that a fake scores higher than a real image.

    Args:
        labels: (N,) of 0 and 1, both present.
        scores: (N,) finite.

    Raises:
        ValueError: Lengths differ or a value is not valid.
        OneClassError: One class is missing.
    """
    curve = _roc(*_ranked(labels, scores, "AUC"))
    return float(np.trapezoid(curve.tpr, curve.fpr))


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Average precision with fake as the positive class; arguments and errors as for :func:`auc`.

    It is the mean of the precision over the steps of the recall, without interpolation.
    """
    found, alarms = _counts(*_ranked(labels, scores, "average precision"))
    precision = found / (found + alarms)
    return float(np.sum(np.diff(found, prepend=0) / found[-1] * precision))


def roc(labels: ArrayLike, scores: ArrayLike) -> RocCurve:
    """The ROC curve with all its points; arguments and errors as for :func:`auc`."""
    return _roc(*_ranked(labels, scores, "the ROC curve"))


def equal_error_rate(labels: ArrayLike, scores: ArrayLike) -> float:
    """Error rate in [0, 1] at which false-positive and false-negative rate are equal.

    The point is interpolated linearly between the two neighbouring points of the ROC curve.
    DeepfakeBench (``training/metrics/utils.py`` at 35cc2d4) uses the false-positive rate of the
    nearer one instead. Arguments and errors as for :func:`auc`.
    """
    fpr, tpr = _roc(*_ranked(labels, scores, "the equal error rate"))
    # Increases from -1 to 1.
    excess = fpr - (1 - tpr)
    after = int(np.argmax(excess >= 0))
    before = after - 1
    share = -excess[before] / (excess[after] - excess[before])
    return float(fpr[before] + share * (fpr[after] - fpr[before]))


def tpr_at_fpr(labels: ArrayLike, scores: ArrayLike, fpr: float) -> float:
    """Largest share of the fakes that a threshold finds with at most this false-positive rate.

    There is no interpolation: the threshold exists. With fewer than ``1 / fpr`` real images it has
    no false positives.

    Args:
        labels: (N,) of 0 and 1, both present.
        scores: (N,) finite.
        fpr: Share of the real images that may be called fake, in (0, 1), such as 0.01.

    Raises:
        ValueError: As for :func:`auc`, or ``fpr`` is out of range.
        OneClassError: One class is missing.
    """
    if not 0 < fpr < 1:
        raise ValueError(f"fpr must lie between 0 and 1, such as 0.01, got {fpr}")
    curve = _roc(*_ranked(labels, scores, f"TPR at {fpr:.0%} FPR"))
    return float(curve.tpr[curve.fpr <= fpr].max())


def accuracy(labels: ArrayLike, predictions: Sequence[int | None] | np.ndarray) -> float:
    """Share of correct predictions; None and -1 stand for no prediction and count as wrong.

    Raises:
        ValueError: Lengths differ, there is nothing to count, or a value is invalid.
    """
    labels = checked_labels(labels)
    plain = np.array([-1 if p is None else p for p in predictions])
    same_length(labels=labels, predictions=plain)
    if not np.isin(plain, (-1, REAL, FAKE)).all():
        raise ValueError(f"predictions must be 0, 1, -1 or None, got {sorted(set(plain.tolist()))}")
    return float((plain == labels).mean())


def error_rates(
    labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5
) -> tuple[float | None, float | None]:
    """FPR (share of real images called fake) and FNR (share of fakes called real) at a threshold.

    Args:
        labels: (N,) of 0 and 1.
        scores: (N,) finite.
        threshold: Score from which an image is called fake.

    Returns:
        FPR and FNR in [0, 1]; None if the respective class is missing.

    Raises:
        ValueError: Lengths differ or a value is invalid.
    """
    labels, scores = checked_labels(labels), finite_values(scores, "scores")
    same_length(labels=labels, scores=scores)
    called_fake = scores >= threshold
    alarms, found = called_fake[labels == REAL], called_fake[labels == FAKE]
    return (
        float(alarms.mean()) if len(alarms) else None,
        float(1 - found.mean()) if len(found) else None,
    )


def calibration_error(labels: ArrayLike, p_fake: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error of the probability of fake, in [0, 1].

    [0, 1] is divided into bins of equal width (each includes its upper edge, the first also 0). In
    each, the mean probability is compared with the share of fakes; the gaps are averaged, weighted
    by the number of images. Guo et al. 2017 (arXiv:1706.04599, equation 3) do the same with the
    probability of the predicted class; this one also detects a shift common to both classes.

    Args:
        labels: (N,) of 0 and 1.
        p_fake: (N,) in [0, 1].
        bins: Number of bins.

    Raises:
        ValueError: Lengths differ, a value is invalid, or there is no bin.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    labels, p_fake = checked_labels(labels), probabilities(p_fake, "p_fake")
    same_length(labels=labels, p_fake=p_fake)
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], p_fake)
    gaps = np.bincount(place, weights=p_fake - labels, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def agreement(scores: ArrayLike, p_yes: ArrayLike, threshold: float = 0.5) -> float:
    """Share of images on whose label score and P(yes) agree.

    Args:
        scores: (N,) scores of the detector in [0, 1].
        p_yes: (N,) P(yes) of the language model in [0, 1]; from 0.5 on the image is called fake.
        threshold: Score from which the image is called fake.

    Raises:
        ValueError: Lengths differ, there is nothing to count, or a value is not in [0, 1].
    """
    scores, p_yes = probabilities(scores, "scores"), probabilities(p_yes, "p_yes")
    same_length(scores=scores, p_yes=p_yes)
    return float(((scores >= threshold) == (p_yes >= P_YES_THRESHOLD)).mean())


def region_scores(
    predicted: Sequence[Sequence[str]], true: Sequence[Sequence[str]]
) -> RegionScores:
    """Precision, recall and F1 of the named regions, micro-averaged over the fake images.

    Names are compared literally: "face" and "nose" are different regions.

    Args:
        predicted: Regions that each answer names.
        true: Forged regions of each image, at least one each; real images have none to find.

    Returns:
        The figures; 0 for each whose denominator is 0.

    Raises:
        ValueError: Lengths differ, there is no image, or an image has no forged region.
    """
    if isinstance(predicted, str) or isinstance(true, str):
        raise ValueError("expected a sequence of region names for each image, got a string")
    same_length(predicted=predicted, true=true)
    hits = named = forged = 0
    for i, (names, truth) in enumerate(zip(predicted, true, strict=True)):
        if not truth:
            raise ValueError(f"image {i} has no forged region; pass the fake images only")
        hits += len(set(names) & set(truth))
        named += len(set(names))
        forged += len(set(truth))
    precision = hits / named if named else 0.0
    recall = hits / forged
    f1 = 2 * hits / (named + forged)
    return RegionScores(precision, recall, f1)


def _ranked(labels: ArrayLike, scores: ArrayLike, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores, checked; both classes are present."""
    labels, scores = checked_labels(labels, both=measure), finite_values(scores, "scores")
    same_length(labels=labels, scores=scores)
    return labels, scores


def _counts(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of true and false positives with each distinct score as threshold, highest first."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    # Images of equal score are called fake together.
    last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
    found = np.cumsum(labels[order] == FAKE)[last]
    return found, last + 1 - found


def _roc(labels: np.ndarray, scores: np.ndarray) -> RocCurve:
    found, alarms = _counts(labels, scores)
    start = np.zeros(1)
    return RocCurve(
        fpr=np.concatenate([start, alarms / alarms[-1]]),
        tpr=np.concatenate([start, found / found[-1]]),
    )
