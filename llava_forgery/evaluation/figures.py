"""Curves as PNG: ROC with its interval, AUC against strength. Only matplotlib's Agg is used."""

from collections.abc import Hashable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from llava_forgery.evaluation.intervals import bootstrap_interval, roc_band
from llava_forgery.evaluation.metrics import auc, roc
from llava_forgery.evaluation.perturb import LEVELS, PERTURBATIONS, RobustnessPoint
from llava_forgery.files import atomic_path
from llava_forgery.optional import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {
    "kfd": "detector (score)",
    "p_yes": "answer, P(yes)",
    "p_yes_uncited": "answer, P(yes), score not cited",
}
# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
COLUMNS = 4


def roc_figure(
    labels: ArrayLike,
    scores: Mapping[str, ArrayLike],
    *,
    groups: Sequence[Hashable] | None = None,
    resamples: int = 500,
    seed: int = 0,
) -> "Figure":
    """ROC curves of several scores of the same images, each with its pointwise 95 % interval.

    Args:
        labels: (N,) of 0 and 1, both present.
        scores: Name to (N,) finite scores.
        groups: (N,) names of the units that are resampled, such as video ids.
        resamples: Number of resamples for the intervals.
        seed: Seed of the intervals.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: As for :func:`roc`.
    """
    figure = new_figure(5, 5)
    axes = figure.add_subplot()
    grid = np.linspace(0, 1, 201)
    labels = np.asarray(labels)
    options = {"groups": groups, "resamples": resamples, "seed": seed}
    for (name, values), colour in zip(scores.items(), COLOURS, strict=False):
        values = np.asarray(values)
        curve = roc(labels, values)
        low, high = roc_band(labels, values, grid, **options)
        interval = bootstrap_interval(auc, labels, values, **options)
        axes.fill_between(grid, low, high, step="post", color=colour, alpha=0.15, linewidth=0)
        axes.plot(
            curve.fpr, curve.tpr, color=colour, label=f"{NAMES.get(name, name)}: AUC {interval}"
        )
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    axes.set(
        xlabel="real images called fake",
        ylabel="fake images called fake",
        xlim=(0, 1),
        ylim=(0, 1.005),
        aspect="equal",
    )
    axes.legend(loc="lower right", fontsize=9)
    return figure


def robustness_figure(points: Sequence[RobustnessPoint]) -> "Figure":
    """A panel for each kind of change: AUC with its interval, from untouched to the strongest.

    Args:
        points: Output of ``measure_robustness``.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: There is no point of the untouched images.
    """
    untouched = {p.score: p for p in points if p.level == 0}
    kinds = [k for k in PERTURBATIONS if any(p.perturbation == k.name for p in points)]
    if not untouched or not kinds:
        raise ValueError("expected points of untouched and of changed images")
    rows = -(-(len(kinds) + 1) // COLUMNS)
    columns = min(COLUMNS, len(kinds) + 1)
    figure = new_figure(2.6 * columns, 2.4 * rows)
    lowest = min(0.45, *(p.low for p in points)) - 0.02
    for place, kind in enumerate(kinds):
        axes = figure.add_subplot(rows, columns, place + 1)
        for name, colour in zip(untouched, COLOURS, strict=False):
            chosen = [untouched[name]]
            chosen += [p for p in points if (p.score, p.perturbation) == (name, kind.name)]
            levels = [p.level for p in chosen]
            low, high = [p.low for p in chosen], [p.high for p in chosen]
            axes.fill_between(levels, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(levels, [p.auc for p in chosen], "o-", color=colour, markersize=3.5)
        axes.axhline(0.5, color="grey", linestyle=":", linewidth=1)
        axes.set_title(kind.name, fontsize=10)
        axes.set_xlabel(kind.unit, fontsize=8)
        ticks = ["as is", *(f"{strength:g}" for strength in kind.strengths)]
        axes.set_xticks(range(LEVELS + 1), ticks, fontsize=8)
        axes.set_ylim(lowest, 1.01)
        axes.tick_params(axis="y", labelsize=8)
        axes.grid(alpha=0.25, linewidth=0.5)
        if place % columns == 0:
            axes.set_ylabel("AUC", fontsize=9)
    # The slot after the last panel holds the legend.
    axes = figure.add_subplot(rows, columns, len(kinds) + 1)
    axes.axis("off")
    for name, colour in zip(untouched, COLOURS, strict=False):
        axes.plot([], [], "o-", color=colour, markersize=3.5, label=NAMES.get(name, name))
    axes.plot([], [], color="grey", linestyle=":", label="chance")
    axes.legend(loc="center", fontsize=9, frameon=False, title="95 % intervals, by video")
    return figure


def save_figure(figure: "Figure", path: str | PathLike, note: str, dpi: int = 100) -> None:
    """Write a figure as PNG, atomically, with a note in its metadata.

    Args:
        figure: Figure made by a function of this module.
        path: Output file.
        note: Description of the picture.
        dpi: Resolution in pixels per inch.
    """
    metadata = {"Software": "llava-forgery", "Description": note}
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, metadata=metadata)


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of that size in inches; made without pyplot, so without a window or global
    state."""
    module = require("matplotlib.figure", extra="eval", feature="Drawing figures")
    return module.Figure(figsize=(width, height), layout="constrained")
