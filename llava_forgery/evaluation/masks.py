"""Measures that compare the map of the forged area with the true mask."""

import numpy as np
from scipy.stats import rankdata

from llava_forgery.evaluation.checks import OneClassError


def mask_iou(predicted: np.ndarray, true: np.ndarray) -> float:
    """Intersection over union of masks, averaged over the images.

    Two empty masks agree and count as 1; an empty one against a non-empty one counts as 0.

    Args:
        predicted: (N, H, W) bool.
        true: (N, H, W) bool.

    Raises:
        ValueError: Shape or dtype differ, or N is 0.
    """
    intersection, union, _ = _overlap(predicted, true)
    return float(np.where(union > 0, intersection / np.maximum(union, 1), 1.0).mean())


def mask_dice(predicted: np.ndarray, true: np.ndarray) -> float:
    """Dice coefficient 2 |A and B| / (|A| + |B|) of masks; otherwise as :func:`mask_iou`."""
    intersection, _, total = _overlap(predicted, true)
    return float(np.where(total > 0, 2 * intersection / np.maximum(total, 1), 1.0).mean())


def pixel_auc(maps: np.ndarray, true: np.ndarray) -> float:
    """Area under the ROC curve of forged against untouched pixels, over all images at once.

    Args:
        maps: (N, H, W) finite floats, higher where forged.
        true: (N, H, W) bool; real images have an empty mask.

    Raises:
        ValueError: Shape or dtype differ, N is 0, or a value is not finite.
        OneClassError: All pixels are forged, or none is.
    """
    if maps.ndim != 3 or not len(maps) or not np.issubdtype(maps.dtype, np.floating):
        raise ValueError(f"maps must be (N, H, W) floats with N > 0, got {maps.shape} {maps.dtype}")
    _check_mask("true", true)
    if maps.shape != true.shape:
        raise ValueError(f"maps and masks differ in shape: {maps.shape} and {true.shape}")
    if not np.isfinite(maps).all():
        raise ValueError("maps must be finite")
    if true.all() or not true.any():
        kind = "forged" if true.all() else "untouched"
        raise OneClassError(f"pixel AUC needs forged and untouched pixels, got only {kind} ones")
    # Share of the pairs of a forged and an untouched pixel in the right order; ties count a half.
    forged = true.ravel()
    count, total = int(forged.sum()), forged.size
    ranks = rankdata(maps.ravel())[forged].sum()
    return float((ranks - count * (count + 1) / 2) / (count * (total - count)))


def _check_mask(name: str, mask: np.ndarray) -> None:
    if mask.ndim != 3 or mask.dtype != bool or not len(mask):
        raise ValueError(
            f"{name} must be (N, H, W) bool with N > 0, got {mask.shape} {mask.dtype}; "
            "compare with a threshold first"
        )


def _overlap(predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N,) areas in pixels: intersection, union, and sum of both masks."""
    _check_mask("predicted", predicted)
    _check_mask("true", true)
    if predicted.shape != true.shape:
        raise ValueError(f"masks differ in shape: predicted {predicted.shape}, true {true.shape}")
    areas = (1, 2)
    return (
        (predicted & true).sum(axis=areas),
        (predicted | true).sum(axis=areas),
        predicted.sum(axis=areas) + true.sum(axis=areas),
    )
