"""Parts of a video in which a face scores alike: where its scores change for good."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from llava_forgery.optional import lazy

scipy = lazy("scipy")

# A part has at least so many frames; neighbouring ones differ by so much in their mean scores.
_SHORTEST, _SMALLEST_CHANGE = 3, 0.3
# Least deviation of scores that belong together.
_NOISE = 0.05


class FrameScore(NamedTuple):
    """What one frame of a track says."""

    frame: int
    """Its number in the video, from 0."""
    score: float
    """The detector's probability of fake."""
    p_yes: float | None
    """The language model's probability of "Yes" (fake); None where it was not asked."""
    seconds: float
    """When the frame is shown, in seconds from the video's beginning."""


class Segment(NamedTuple):
    """Frames of a track, one after another, whose scores belong together."""

    first: int
    """Number of its first frame that was judged."""
    last: int
    """Number of its last one."""
    start: float
    """When the first is shown, in seconds from the video's beginning."""
    end: float
    """When the last is shown."""
    score: float
    """Mean of the detector's scores."""


def split_scores(frames: Sequence[FrameScore]) -> tuple[Segment, ...]:
    """The parts of a track whose scores differ for good; empty where :func:`find_changes` finds
    no change.

    Args:
        frames: Of one face, in order.
    """
    scores = np.array([frame.score for frame in frames])
    changes = find_changes(scores)
    if not changes:
        return ()
    return tuple(
        Segment(
            frames[a].frame,
            frames[b - 1].frame,
            frames[a].seconds,
            frames[b - 1].seconds,
            float(scores[a:b].mean()),
        )
        for a, b in pairwise([0, *changes, len(frames)])
    )


def find_changes(values: Sequence[float] | np.ndarray) -> list[int]:
    """Where a row of scores changes for good.

    The parts are those with the least sum of squared deviations from their means, each part costing
    three times the variance of neighbouring frames times log N (Jackson et al. 2005, optimal
    partitioning); parts that differ by less than 0.3 are joined.

    Args:
        values: (N,) in [0, 1], in the order of the frames.

    Returns:
        Position of the first value of each part but the first, ascending; empty where nothing
        changes, or where there are fewer than six values.
    """
    values = np.asarray(values, dtype=np.float64)
    count = len(values)
    if count < 2 * _SHORTEST:
        return []
    # A change is one difference of many, which the median passes over.
    noise = max(float(np.median(np.abs(np.diff(values)))) / 0.954, _NOISE)
    price = 3 * noise**2 * np.log(count)
    # One or two frames that stand out are none; a step stays where it is.
    values = scipy.ndimage.median_filter(values, 2 * _SHORTEST - 1, mode="nearest")
    sums, squares = (np.concatenate([[0], np.cumsum(v)]) for v in (values, values**2))
    cost, start = np.full(count + 1, np.inf), np.zeros(count + 1, dtype=int)
    cost[0] = 0
    for end in range(_SHORTEST, count + 1):
        starts = np.arange(0, end - _SHORTEST + 1)
        total, length = sums[end] - sums[starts], end - starts
        spread = squares[end] - squares[starts] - total**2 / length
        candidates = cost[starts] + spread + price
        start[end] = int(np.argmin(candidates))
        cost[end] = candidates[start[end]]
    edges = [count]
    while edges[-1]:
        edges.append(int(start[edges[-1]]))
    edges.reverse()
    while len(edges) > 2:
        means = [values[a:b].mean() for a, b in pairwise(edges)]
        steps = np.abs(np.diff(means))
        least = int(np.argmin(steps))
        if steps[least] >= _SMALLEST_CHANGE:
            break
        del edges[least + 1]
    return edges[1:-1]
