"""Measures of scores, answers, masks and named regions.

Pure functions of arrays. Labels are 0 (real) and 1 (fake); higher scores mean fake.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import average_precision_score, roc_auc_score

from llava_forgery.constants import FAKE, REAL

_REDUCTIONS = {"mean": np.mean, "median": np.median, "max": np.max}


class RegionScores(NamedTuple):
    """Micro-averaged over (image, region) pairs, each in [0, 1]."""

    precision: float
    recall: float
    f1: float


class VideoScores(NamedTuple):
    """One entry for each video, in the order in which the videos first appear."""

    scores: np.ndarray
    labels: np.ndarray
    video_ids: tuple[Hashable, ...]


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a fake scores higher than a real one.

    Args:
        labels: (N,) of 0 and 1, both present.
        scores: (N,) finite.

    Raises:
        ValueError: Lengths differ, a value is not valid, or one class is missing.
    """
    labels, scores = _labels(labels, both="AUC"), _values(scores, "scores")
    _same_length(labels=labels, scores=scores)
    return float(roc_auc_score(labels, scores))


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Average precision with fake as the positive class; arguments and errors as :func:`auc`."""
    labels, scores = _labels(labels, both="average precision"), _values(scores, "scores")
    _same_length(labels=labels, scores=scores)
    return float(average_precision_score(labels, scores, pos_label=FAKE))


def accuracy(labels: ArrayLike, predictions: Sequence[int | None] | np.ndarray) -> float:
    """Share of right predictions; None and -1 stand for an answer without one and are wrong.

    Raises:
        ValueError: Lengths differ, there is nothing to count, or a value is not valid.
    """
    labels = _labels(labels)
    plain = np.array([-1 if p is None else p for p in predictions])
    _same_length(labels=labels, predictions=plain)
    if not np.isin(plain, (-1, REAL, FAKE)).all():
        raise ValueError(f"predictions must be 0, 1, -1 or None, got {sorted(set(plain.tolist()))}")
    return float((plain == labels).mean())


def mask_iou(predicted: np.ndarray, true: np.ndarray) -> float:
    """Intersection over union of masks: each image's, then the mean over the images.

    Two empty masks agree and count as 1; an empty one against one that is not counts as 0.

    Args:
        predicted: (N, H, W) bool.
        true: (N, H, W) bool.

    Raises:
        ValueError: Shape or dtype differ from that, or N is 0.
    """
    intersection, union, _ = _overlap(predicted, true)
    return float(np.where(union > 0, intersection / np.maximum(union, 1), 1.0).mean())


def mask_dice(predicted: np.ndarray, true: np.ndarray) -> float:
    """Dice coefficient 2 |A and B| / (|A| + |B|) of masks; the rest as :func:`mask_iou`."""
    intersection, _, total = _overlap(predicted, true)
    return float(np.where(total > 0, 2 * intersection / np.maximum(total, 1), 1.0).mean())


def region_scores(
    predicted: Sequence[Sequence[str]], true: Sequence[Sequence[str]]
) -> RegionScores:
    """Precision, recall and F1 of the named regions, micro-averaged over the fake images.

    Names are compared as they are: "face" and "nose" are different regions.

    Args:
        predicted: Regions that each answer names.
        true: Forged regions of each image, never empty: real images have none to find.

    Returns:
        0 for each figure that has nothing to divide by.

    Raises:
        ValueError: Lengths differ, there is no image, or an image has no forged region.
    """
    if isinstance(predicted, str) or isinstance(true, str):
        raise ValueError("expected a sequence of region names for each image, got a string")
    _same_length(predicted=predicted, true=true)
    hits = named = forged = 0
    for i, (names, truth) in enumerate(zip(predicted, true, strict=True)):
        if not truth:
            raise ValueError(f"image {i} has no forged region; pass the fake images alone")
        hits += len(set(names) & set(truth))
        named += len(set(names))
        forged += len(set(truth))
    precision = hits / named if named else 0.0
    recall = hits / forged
    f1 = 2 * hits / (named + forged)
    return RegionScores(precision, recall, f1)


def agreement(scores: ArrayLike, p_yes: ArrayLike, threshold: float = 0.5) -> float:
    """Share of images whose score and P(yes) lie on the same side of the threshold.

    Args:
        scores: (N,) in [0, 1], the detector's.
        p_yes: (N,) in [0, 1], the language model's.
        threshold: From here on the image is called fake.

    Raises:
        ValueError: Lengths differ, there is nothing to count, or a value is not in [0, 1].
    """
    scores, p_yes = _values(scores, "scores"), _values(p_yes, "p_yes")
    _same_length(scores=scores, p_yes=p_yes)
    for name, values in (("scores", scores), ("p_yes", p_yes)):
        if values.min() < 0 or values.max() > 1:
            raise ValueError(
                f"{name} must lie in [0, 1], got {values.min():.3g} to {values.max():.3g}"
            )
    return float(((scores >= threshold) == (p_yes >= threshold)).mean())


def video_level(
    scores: ArrayLike, video_ids: Sequence[Hashable], labels: ArrayLike, reduce: str = "mean"
) -> VideoScores:
    """Scores of videos from the scores of their frames.

    Args:
        scores: (N,) one for each frame.
        video_ids: (N,) of which video the frame is. The same name for two videos merges them.
        labels: (N,) alike within a video.
        reduce: "mean", "median" or "max".

    Raises:
        ValueError: Lengths differ, a value is not valid, or a video's frames differ in label.
    """
    if reduce not in _REDUCTIONS:
        raise ValueError(f"reduce must be one of {', '.join(_REDUCTIONS)}, got {reduce!r}")
    scores, labels = _values(scores, "scores"), _labels(labels)
    _same_length(scores=scores, video_ids=video_ids, labels=labels)
    frames: dict[Hashable, list[int]] = {}
    for i, video in enumerate(video_ids):
        frames.setdefault(video, []).append(i)
    for video, rows in frames.items():
        if len(set(labels[rows].tolist())) > 1:
            raise ValueError(
                f"the frames of video {video!r} differ in label; are two videos named alike?"
            )
    return VideoScores(
        scores=np.array([_REDUCTIONS[reduce](scores[rows]) for rows in frames.values()]),
        labels=np.array([labels[rows[0]] for rows in frames.values()]),
        video_ids=tuple(frames),
    )


def _values(values: ArrayLike, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{name} must be of shape (N,) with N > 0, got {values.shape}")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(f"{name} must be finite, got {values[bad[0]]} at position {bad[0]}")
    return values


def _labels(labels: ArrayLike, both: str | None = None) -> np.ndarray:
    """(N,) int64; ``both`` names the measure that needs the two classes."""
    values = _values(labels, "labels")
    found = sorted(set(values.tolist()))
    if not set(found) <= {REAL, FAKE}:
        raise ValueError(f"labels must be 0 (real) or 1 (fake), got {found}")
    if both and len(found) < 2:
        raise ValueError(f"{both} needs real and fake images, got labels {found} alone")
    return values.astype(np.int64)


def _same_length(**arrays: Sequence | np.ndarray) -> None:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"lengths differ: {lengths}")
    if not any(lengths.values()):
        raise ValueError(f"{' and '.join(lengths)} are empty")


def _overlap(predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N,) areas in pixels: of the intersection, of the union, and of both masks added."""
    for name, mask in (("predicted", predicted), ("true", true)):
        if mask.ndim != 3 or mask.dtype != bool or not len(mask):
            raise ValueError(
                f"{name} must be (N, H, W) bool with N > 0, got {mask.shape} {mask.dtype}; "
                "compare with a threshold first"
            )
    if predicted.shape != true.shape:
        raise ValueError(f"masks differ in shape: predicted {predicted.shape}, true {true.shape}")
    areas = (1, 2)
    return (
        (predicted & true).sum(axis=areas),
        (predicted | true).sum(axis=areas),
        predicted.sum(axis=areas) + true.sum(axis=areas),
    )
