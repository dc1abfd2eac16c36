"""How far scores are probabilities: error, temperature, and the thresholds of verdicts."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize

from llava_forgery.constants import FAKE, REAL
from llava_forgery.evaluation.checks import (
    checked_labels,
    finite_values,
    probabilities,
    same_length,
)
from llava_forgery.evaluation.metrics import auc
from llava_forgery.kfd.calibration import Thresholds

BINS = 15
# Share of the fakes below the lower threshold, and of the real faces above the upper one.
BAND_ERROR = 0.05


@dataclass(frozen=True)
class ReliabilityBin:
    """One of several bins of equal mass."""

    score: float
    """Mean score, in [0, 1]."""
    fakes: float
    """Share of fakes, with both classes weighted equally."""
    mass: float
    """Share of all images, with both classes weighted equally."""


def reliability(labels: ArrayLike, scores: ArrayLike, bins: int = BINS) -> list[ReliabilityBin]:
    """Mean score against the share of fakes, in bins of equal mass, both classes weighted equally.

    Args:
        labels: (N,) of 0 and 1, both present.
        scores: (N,) in [0, 1].
        bins: Maximum number of bins; equal scores share one.

    Raises:
        ValueError: Lengths differ or a value is invalid.
        OneClassError: One class is missing.
    """
    labels = checked_labels(labels, both="a reliability diagram")
    scores = probabilities(scores, "scores")
    same_length(labels=labels, scores=scores)
    weights = class_weights(labels)
    _, place = np.unique(scores, return_inverse=True)
    mass = np.bincount(place, weights=weights)
    # Equal scores go to the bin of the middle of the mass that they cover.
    middle = np.cumsum(mass) - mass / 2
    own = np.minimum((middle * bins).astype(int), bins - 1)[place]
    found = []
    for number in range(bins):
        inside = own == number
        if not inside.any():
            continue
        share = weights[inside]
        found.append(
            ReliabilityBin(
                float(np.average(scores[inside], weights=share)),
                float(np.average(labels[inside], weights=share)),
                float(share.sum()),
            )
        )
    return found


def balanced_calibration_error(labels: ArrayLike, scores: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error over :func:`reliability`'s bins, in [0, 1]."""
    return sum(bin.mass * abs(bin.score - bin.fakes) for bin in reliability(labels, scores, bins))


def fit_temperature(labels: ArrayLike, logits: ArrayLike) -> tuple[float, float]:
    """Temperature and offset with the smallest cross-entropy, both classes weighted equally.

    Source: Platt 1999; with an offset of 0 it is Guo et al. 2017 (arXiv:1706.04599, section 4.2).

    Args:
        labels: (N,) of 0 and 1, both present.
        logits: (N,) logits of fake against real.

    Raises:
        ValueError: Lengths differ or a value is invalid; or fakes do not score higher than real
            images.
        OneClassError: One class is missing.
    """
    labels = checked_labels(labels, both="a calibration")
    logits = finite_values(logits, "logits")
    same_length(labels=labels, logits=logits)
    if auc(labels, logits) <= 0.5:
        raise ValueError(
            "the fakes do not score higher than the real faces (AUC at most 0.5): no temperature "
            "repairs this detector, so train it longer or check the labels"
        )
    weights, signs = class_weights(labels), 1 - 2 * labels

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        slope = np.exp(point[0])
        wrong = signs * (slope * logits - point[1])
        pull = weights * signs / (1 + np.exp(-np.clip(wrong, -500, 500)))
        gradient = [float((pull * slope * logits).sum()), -float(pull.sum())]
        return float((weights * np.logaddexp(0, wrong)).sum()), np.array(gradient)

    spread = max(float(logits.std()), 1e-6)
    found = minimize(loss, [-np.log(spread), 0.0], jac=True, method="L-BFGS-B",
                     bounds=[(-np.log(spread) - 5, -np.log(spread) + 5), (None, None)])  # fmt: skip
    slope = float(np.exp(found.x[0]))
    return 1 / slope, float(found.x[1]) / slope


def choose_thresholds(labels: ArrayLike, scores: ArrayLike, fpr: float | None = None) -> Thresholds:
    """Thresholds of the verdict, from scores of real and fake faces.

    Args:
        labels: (N,) of 0 and 1, both present.
        scores: (N,) in [0, 1].
        fpr: Share of the real faces that may be called fake; None for equal FPR and FNR.

    Returns:
        The threshold, and a band from 5 % FNR below it to 5 % FPR above it. If one threshold
        satisfies both rates, there is no band.

    Raises:
        ValueError: As for the measures; or ``fpr`` is not in (0, 1).
    """
    labels, scores = checked_labels(labels, both="thresholds"), probabilities(scores, "scores")
    same_length(labels=labels, scores=scores)
    if fpr is not None and not 0 < fpr < 1:
        raise ValueError(f"fpr must lie between 0 and 1, such as 0.05, got {fpr}")
    real, fake = np.sort(scores[labels == REAL]), np.sort(scores[labels == FAKE])
    places = np.unique(scores)
    middles = np.concatenate([[places[0]], (places[1:] + places[:-1]) / 2])
    alarms = 1 - np.searchsorted(real, middles) / len(real)
    missed = np.searchsorted(fake, middles) / len(fake)
    equal = float(middles[np.argmin(np.abs(alarms - missed))])
    low, high = float(np.quantile(fake, BAND_ERROR)), float(np.quantile(real, 1 - BAND_ERROR))
    threshold = equal if fpr is None else float(np.quantile(real, 1 - fpr))
    if low >= high:
        low = high = threshold
    return Thresholds(threshold, min(low, threshold), max(high, threshold))


def class_weights(labels: np.ndarray) -> np.ndarray:
    """(N,) weights that sum to one half over each class."""
    fakes = labels == FAKE
    return np.where(fakes, 0.5 / fakes.sum(), 0.5 / (~fakes).sum())
