"""Which faces of one video's frames are the same face."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from llava_forgery.faces.crop import Box

# A face moves less than its own width between two frames, and does not double its size.
_FARTHEST = 1.0
_LARGEST_CHANGE = math.log(2.0)
PATIENCE = 5
"""Frames without a face after which it counts as gone."""
_NEVER = 1e6


@dataclass
class _Track:
    number: int
    box: Box
    last_frame: int


class Tracker:
    """Numbers faces by the places of their boxes.

    Boxes of a frame are assigned to the tracks seen so far such that the sum of distances is
    smallest (Hungarian method). The distance is that of the centres in units of the faces' size
    plus the logarithm of how the size changed; faces farther apart than their own width, or twice
    as large, start a track of their own. Pixels are not compared: where a cut puts another face
    into the same place, the track goes on.
    """

    def __init__(self) -> None:
        self._tracks: list[_Track] = []
        self._count = 0
        self._frame = -1

    def update(self, boxes: Sequence[Box]) -> list[int]:
        """Assign the boxes of the next frame.

        Args:
            boxes: (x0, y0, x1, y1) of its faces, in any order.

        Returns:
            A track number from 0 for each box; new numbers ascend in the order of the boxes.
        """
        self._frame += 1
        live = [t for t in self._tracks if self._frame - t.last_frame <= PATIENCE]
        costs = np.full((len(boxes), len(live)), _NEVER)
        for i, box in enumerate(boxes):
            for j, track in enumerate(live):
                costs[i, j] = _distance(box, track.box)
        rows, columns = linear_sum_assignment(costs)
        found = {i: live[j] for i, j in zip(rows, columns, strict=True) if costs[i, j] < _NEVER}
        numbers = []
        for i, box in enumerate(boxes):
            track = found.get(i)
            if track is None:
                track = _Track(self._count, box, self._frame)
                self._count += 1
                live.append(track)
            track.box, track.last_frame = box, self._frame
            numbers.append(track.number)
        self._tracks = live
        return numbers


def _distance(a: Box, b: Box) -> float:
    """Of two faces; _NEVER if they cannot be the same."""
    sides = [math.sqrt((box[2] - box[0]) * (box[3] - box[1])) for box in (a, b)]
    size = sum(sides) / 2
    apart = math.hypot(a[0] + a[2] - b[0] - b[2], a[1] + a[3] - b[1] - b[3]) / 2 / size
    change = abs(math.log(sides[0] / sides[1]))
    if apart > _FARTHEST or change > _LARGEST_CHANGE:
        return _NEVER
    return apart + change
