"""Which faces of a source are kept; of a forged one with a mask, which of them are forged."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from llava_forgery.constants import FAKE, REAL
from llava_forgery.faces.records import FaceCrop

# Of the landmarks' hull: a mask that spills over from the face beside it covers less.
_TOUCHED = 0.05


@dataclass(frozen=True)
class Candidate:
    """A face that was found in one frame, or in a photograph."""

    track: int
    """Faces of one number are one face along a video; of a photograph each has its own."""
    area: float
    """Of the detector's box, in pixels of the frame."""
    hull: float = 0.0
    """Of its landmarks' hull, in pixels of the frame."""
    masked: float = 0.0
    """So many of them are forged by the frame's mask."""


def candidate_of(crop: FaceCrop, track: int, area: float) -> Candidate:
    """A face with what its mask, if it has one, covers of it."""
    if crop.mask is None:
        return Candidate(track, area)
    inside = np.zeros(crop.mask.shape, np.uint8)
    hull = cv2.convexHull(np.round(crop.landmarks).astype(np.int32))
    cv2.fillConvexPoly(inside, hull, 1)
    pixel = ((crop.box[2] - crop.box[0]) / len(crop.mask)) ** 2
    masked = np.count_nonzero(crop.mask[inside > 0])
    return Candidate(track, area, float(inside.sum()) * pixel, masked * pixel)


def choose(
    candidates: Sequence[Candidate], label: int, *, is_masked: bool, largest_only: bool
) -> list[int | None]:
    """The label of each face of a source, None for those that are left out.

    Args:
        candidates: All its faces.
        label: Of the source, 0 real, 1 fake.
        is_masked: Whether it has a mask that is bright anywhere in the frames that were looked at.
            The faces that it touches are then the fakes, and the others real.
        largest_only: Keep one face, of a forged source one that its mask touches: of a photograph
            the largest, of a video the one whose boxes have the largest sum.

    Raises:
        ValueError: The mask touches none of the faces.
    """
    areas: dict[int, float] = {}
    hulls: dict[int, float] = {}
    masked: dict[int, float] = {}
    for face in candidates:
        for sums, value in ((areas, face.area), (hulls, face.hull), (masked, face.masked)):
            sums[face.track] = sums.get(face.track, 0.0) + value
    labels = dict.fromkeys(areas, label)
    if label == FAKE and is_masked and areas:
        most = max(masked, key=lambda track: masked[track])
        if not masked[most]:
            raise ValueError(
                f"its mask touches none of the {len(areas)} faces that were found in it; is it "
                "this file's mask?"
            )
        for track in areas:
            # A small forgery, of one eye, is still the face's that holds most of it.
            is_touched = masked[track] >= _TOUCHED * hulls[track] or track == most
            labels[track] = FAKE if is_touched else REAL
    kept = set(areas)
    if largest_only and areas:
        fitting = [track for track in areas if labels[track] == label]
        kept = {max(fitting, key=lambda track: (areas[track], -track))}
    return [labels[face.track] if face.track in kept else None for face in candidates]
