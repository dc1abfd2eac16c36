"""Bootstrap confidence intervals that resample independent units: videos, not frames."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llava_forgery.evaluation.checks import OneClassError, same_length
from llava_forgery.evaluation.metrics import roc
from llava_forgery.evaluation.video import rows_of

# Number of redrawn resamples per kept one before giving up.
PATIENCE = 20


@dataclass(frozen=True)
class Interval:
    """A figure with its bootstrap confidence interval."""

    value: float
    """Value on all the data."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""
    confidence: float
    """Nominal coverage, such as 0.95."""
    resamples: int
    """Number of resamples behind the ends."""
    redrawn: int
    """Number of resamples that held only one class and were drawn again."""
    units: int
    """Number of resampled units: groups, or images if no groups were given."""

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def bootstrap(
    statistic: Callable[..., Any],
    *arrays: Sequence | np.ndarray,
    groups: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[np.ndarray, int]:
    """Evaluate a statistic on resamples drawn with replacement.

    With groups, whole groups are drawn: frames of one video are alike, and drawing them separately
    would make the interval too narrow. ``scipy.stats.bootstrap`` draws the same if there are no
    groups and nothing is redrawn (the tests compare them); it cannot redraw.

    Args:
        statistic: Function of arrays like ``arrays``; a resample on which it raises
            :class:`OneClassError` is drawn again.
        arrays: Arrays or sequences of length N each.
        groups: (N,) names of the units that are drawn, such as video ids or identities.
        resamples: Number of resamples, R.
        seed: Seed of the draws.

    Returns:
        (R, ...) values of the statistic, and the number of resamples that were drawn again.

    Raises:
        ValueError: Lengths differ, or a class is so rare that hardly any resample holds it.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    names = {f"array {i}": array for i, array in enumerate(arrays)}
    if groups is not None:
        names["groups"] = groups
    same_length(**names)
    rows = None
    if groups is not None:
        rows = [np.array(members) for members in rows_of(groups).values()]
    units = len(rows) if rows is not None else len(arrays[0])
    rng = np.random.default_rng(seed)
    values, redrawn = [], 0
    while len(values) < resamples:
        drawn = rng.integers(0, units, units)
        if rows is not None:
            drawn = np.concatenate([rows[i] for i in drawn])
        try:
            values.append(statistic(*(_take(array, drawn) for array in arrays)))
        except OneClassError as error:
            redrawn += 1
            if redrawn > PATIENCE * resamples:
                raise ValueError(
                    f"of {redrawn + len(values)} resamples of {units} units, {redrawn} held "
                    "only one class: there are too few units of one class for an interval"
                ) from error
    return np.array(values), redrawn


def bootstrap_interval(
    statistic: Callable[..., float],
    *arrays: Sequence | np.ndarray,
    groups: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A figure with its interval by the percentile method (Efron 1979).

    Args:
        statistic: A measure of ``arrays``, such as ``auc`` of labels and scores.
        arrays: As for :func:`bootstrap`.
        groups: As for :func:`bootstrap`.
        resamples: Number of resamples.
        confidence: Nominal coverage, between 0 and 1.
        seed: Seed of the draws.

    Raises:
        ValueError: As for :func:`bootstrap` and the statistic; or ``confidence`` is out of range.
    """
    value = float(statistic(*arrays))
    values, redrawn = bootstrap(statistic, *arrays, groups=groups, resamples=resamples, seed=seed)
    low, high = percentiles(values, confidence)
    return Interval(
        value=value,
        low=float(low),
        high=float(high),
        confidence=confidence,
        resamples=resamples,
        redrawn=redrawn,
        units=len(arrays[0]) if groups is None else len(set(groups)),
    )


def roc_band(
    labels: Sequence | np.ndarray,
    scores: Sequence | np.ndarray,
    grid: np.ndarray,
    *,
    groups: Sequence[Hashable] | None = None,
    resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Pointwise interval of the ROC curve, at given false-positive rates.

    Args:
        labels: (N,) of 0 and 1, both present.
        scores: (N,) finite.
        grid: (G,) increasing false-positive rates in [0, 1].
        groups: As for :func:`bootstrap`.
        resamples: Number of resamples.
        confidence: Nominal coverage at each point.
        seed: Seed of the draws.

    Returns:
        Lower and upper true-positive rates, (G,) each.

    Raises:
        ValueError: As for :func:`bootstrap`.
    """

    def curve(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
        fpr, tpr = roc(labels, scores)
        # The last point with at most this false-positive rate, as in tpr_at_fpr.
        return tpr[np.searchsorted(fpr, grid, side="right") - 1]

    values, _ = bootstrap(
        curve, np.asarray(labels), np.asarray(scores), groups=groups, resamples=resamples, seed=seed
    )
    low, high = percentiles(values, confidence)
    return low, high


def percentiles(values: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the central ``confidence`` share of resampled values (R, ...).

    Raises:
        ValueError: ``confidence`` is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, such as 0.95, got {confidence}")
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail], axis=0)
    return low, high


def _take(array: Sequence | np.ndarray, rows: np.ndarray) -> Sequence | np.ndarray:
    return array[rows] if isinstance(array, np.ndarray) else [array[i] for i in rows]
