"""Choosing the faces of a source to keep and, by the mask of a forged source, the forged ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from llava_forgery.constants import FAKE, REAL
from llava_forgery.faces.records import FaceCrop

# Share of the landmarks' hull; a mask that spills over from a neighbouring face covers less.
_TOUCHED = 0.05


@dataclass(frozen=True)
class Candidate:
    """A face that was found in one frame, or in a photograph."""

    track: int
    """Number of a face, the same in all frames of a video; unique for each of a photograph."""
    area: float
    """Area of the detector's box, in pixels of the frame."""
    hull: float = 0.0
    """Area of the landmarks' hull, in pixels of the frame."""
    masked: float = 0.0
    """Number of pixels of the hull that the frame's mask marks as forged."""


def candidate_of(crop: FaceCrop, track: int, area: float) -> Candidate:
    """A face with the area that its mask, if any, covers."""
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
    """The label of each face of a source; None for those that are omitted.

    Args:
        candidates: All faces of the source.
        label: Label of the source, 0 real, 1 fake.
        is_masked: Whether the source has a mask that is bright anywhere in the frames that were
            read. The faces that it touches are then fake, the others real.
        largest_only: Keep only one face (of a forged source, one that the mask touches): the
            largest of a photograph, or the one with the largest total box area of a video.

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
            # A small forgery, such as one eye, belongs to the face that contains most of it.
            is_touched = masked[track] >= _TOUCHED * hulls[track] or track == most
            labels[track] = FAKE if is_touched else REAL
    kept = set(areas)
    if largest_only and areas:
        fitting = [track for track in areas if labels[track] == label]
        kept = {max(fitting, key=lambda track: (areas[track], -track))}
    return [labels[face.track] if face.track in kept else None for face in candidates]
