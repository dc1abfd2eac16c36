"""Tracking of faces over the frames of one video, by position and appearance."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from llava_forgery.faces.crop import Box
from llava_forgery.optional import lazy

scipy = lazy("scipy")

# A face moves less than its own width between two frames, and does not double in size.
_FARTHEST = 1.0
_LARGEST_CHANGE = math.log(2.0)
PATIENCE = 5
"""Number of frames without a face after which it counts as gone."""
_NEVER = 1e6
# Distances of colour histograms. Faces nearer than the first are the same; 0.6 % of neighbouring
# frames, eight per video, are farther apart than the second, and no two people of 227 pairs of
# videos are nearer.
_ALIKE, _UNLIKE = 0.05, 0.27
_BINS, _RANGES = (8, 16, 16), (0, 256, 64, 192, 64, 192)


class Look:
    """Appearance of a face, to be compared with that in the next frame.

    Colours distinguish scenes. If they are inconclusive and the face detector can describe a
    person, the descriptions decide.

    Args:
        image: (S, S, 3) uint8 RGB, the face with some surroundings.
        landmarks: (68, 2) in its pixels.
        describe: Returns a vector for image and landmarks, within 1 of others of the same person;
            None if the detector has no such method.
    """

    def __init__(
        self,
        image: np.ndarray,
        landmarks: np.ndarray,
        describe: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    ) -> None:
        small = cv2.resize(image, (96, 96), interpolation=cv2.INTER_AREA)
        lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB)
        # Skin and hair lie in the middle of the two colour axes; values outside are clipped.
        lab[..., 1:] = lab[..., 1:].clip(64, 191)
        counts = cv2.calcHist([lab], [0, 1, 2], None, list(_BINS), list(_RANGES)).ravel()
        self._colours = np.sqrt(counts / counts.sum())
        self._face, self._describe = (image, landmarks), describe

    @cached_property
    def _person(self) -> np.ndarray:
        assert self._describe is not None
        return self._describe(*self._face)

    def differs(self, other: "Look") -> bool:
        """Whether the other one belongs to a different person."""
        apart = 1 - float(self._colours @ other._colours)
        if apart <= _ALIKE:
            return False
        if self._describe is None:
            return apart > _UNLIKE
        return float(np.linalg.norm(self._person - other._person)) > 1


@dataclass
class _Track:
    number: int
    box: Box
    last_frame: int
    look: Look | None = None


class Tracker:
    """Numbers faces by the positions of their boxes.

    Boxes of a frame are assigned to existing tracks such that the sum of distances is minimal
    (Hungarian method). The distance is that of the centres relative to the faces' size plus the
    logarithm of the change in size; faces farther apart than their own width, or twice as large,
    start a new track. So does a face that looks like another person's, which a cut may put in the
    same place; if the first one returns soon, its track continues.
    """

    def __init__(self) -> None:
        self._tracks: list[_Track] = []
        self._count = 0
        self._frame = -1

    def update(self, boxes: Sequence[Box], looks: Sequence[Look] | None = None) -> list[int]:
        """Assign the boxes of the next frame.

        Args:
            boxes: (x0, y0, x1, y1) of its faces, in any order.
            looks: Appearance of each of these faces; None compares only positions.

        Returns:
            A track number from 0 for each box; new numbers ascend in the order of the boxes.
        """
        self._frame += 1
        live = [t for t in self._tracks if self._frame - t.last_frame <= PATIENCE]
        costs = np.full((len(boxes), len(live)), _NEVER)
        for i, box in enumerate(boxes):
            for j, track in enumerate(live):
                costs[i, j] = _distance(box, track.box)
                # Comparing looks is more expensive than distances.
                if costs[i, j] < _NEVER and looks and track.look and looks[i].differs(track.look):
                    costs[i, j] = _NEVER
        rows, columns = scipy.optimize.linear_sum_assignment(costs)
        found = {i: live[j] for i, j in zip(rows, columns, strict=True) if costs[i, j] < _NEVER}
        numbers = []
        for i, box in enumerate(boxes):
            track = found.get(i)
            if track is None:
                track = _Track(self._count, box, self._frame)
                self._count += 1
                live.append(track)
            track.box, track.last_frame = box, self._frame
            track.look = looks[i] if looks else None
            numbers.append(track.number)
        self._tracks = live
        return numbers


def _distance(a: Box, b: Box) -> float:
    """Distance of two faces; _NEVER if they cannot be the same."""
    sides = [math.sqrt((box[2] - box[0]) * (box[3] - box[1])) for box in (a, b)]
    size = sum(sides) / 2
    apart = math.hypot(a[0] + a[2] - b[0] - b[2], a[1] + a[3] - b[1] - b[3]) / 2 / size
    change = abs(math.log(sides[0] / sides[1]))
    if apart > _FARTHEST or change > _LARGEST_CHANGE:
        return _NEVER
    return apart + change
