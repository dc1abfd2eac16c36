"""What a detector of faces gives, whichever it is, and the square of a picture that it leads to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from llava_forgery.faces.crop import (
    MARGINS,
    Box,
    crop_box,
    is_trained_margin,
    trained_framing,
    whole_box,
)

SMALLEST_FACE = 64
"""Pixels of the photograph, whatever its size, from which on faces are looked for by default."""


@dataclass(frozen=True)
class DetectedFace:
    """One face in a photograph."""

    box: Box
    """(x0, y0, x1, y1) in pixels of the photograph, as the detector draws it: brows to chin."""
    landmarks: np.ndarray
    """(68, 2) float32, continuous pixels of the photograph, iBUG 300-W order."""
    confidence: float
    """The detector's own score; higher is surer, not a probability."""


class FaceDetector(Protocol):
    """Anything that finds faces.

    Where it has ``options``, a dictionary for JSON, they are kept with what it found, and an
    unfinished run with others starts anew. Where it has ``smallest_face(height, width)``, the
    message that no face was found says from which width in pixels on faces were looked for.
    """

    def detect(self, image: np.ndarray) -> list[DetectedFace]:
        """Find faces in (H, W, 3) uint8 RGB; the largest box first, none gives an empty list.

        Threads that share a predictor call it at once.
        """
        ...


def check_image(image: np.ndarray) -> None:
    """Refuse what is not (H, W, 3) uint8.

    Raises:
        ValueError: Another shape or type.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected (H, W, 3) uint8 RGB, got {image.dtype} {image.shape}")


def area(box: Box) -> float:
    """In square pixels."""
    return (box[2] - box[0]) * (box[3] - box[1])


def overlap(a: Box, b: Box) -> float:
    """Shared area as a share of the smaller box, so that a box inside another counts fully."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height) / max(min(area(a), area(b)), 1e-9)


def nothing_found(detector: FaceDetector, image: np.ndarray) -> str:
    """A clause on a picture without a face: how small a face may be, as far as that is known."""
    height, width = image.shape[:2]
    smallest = getattr(detector, "smallest_face", None)
    if smallest is None:
        return f"no face was found in its {width} x {height} pixels"
    return (
        f"no face was found in its {width} x {height} pixels, where faces from about "
        f"{smallest(height, width)} pixels across on are looked for"
    )


class FaceSquare(NamedTuple):
    """What of a picture is judged."""

    image: np.ndarray
    """(S, S, 3) uint8."""
    box: Box
    """Its square in pixels of the picture; it may reach outside."""
    warnings: tuple[str, ...] = ()
    """What is wrong with the square, in whole phrases."""


def square_of_face(
    pixels: np.ndarray, size: int, detector: Callable[[], FaceDetector]
) -> FaceSquare:
    """Cut the largest face out of a picture, unless the picture is framed as in training already.

    Without a face, or without a detector, the whole picture is taken, and a warning says so. What
    is not square is padded, not squeezed: faces keep their proportions.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        size: Side S of the square in pixels.
        detector: Gives what finds faces, or raises ImportError or FileNotFoundError.
    """
    height, width = pixels.shape[:2]
    box, warnings = whole_box(height, width), ()
    try:
        landmarks = _landmarks_inside(pixels, detector())
    except (ImportError, FileNotFoundError) as error:
        warnings = (f"whether the crop is framed as in training is not known: {error}",)
    else:
        if landmarks is None:
            warnings = (
                "no face was found in the crop: whether it is framed as in training is not known",
            )
        else:
            box, margin = trained_framing(landmarks, height, width)
            if not is_trained_margin(margin):
                warnings = (
                    f"the crop is too tight (it shows {margin:.0%} of the face's size around it, "
                    f"training {MARGINS[0]:.0%} or more): the score of the whole photograph may be "
                    "another",
                )
    return FaceSquare(crop_box(pixels, box, size), box, warnings)


def _landmarks_inside(pixels: np.ndarray, detector: FaceDetector) -> np.ndarray | None:
    """Landmarks of the largest face of a picture, (68, 2) in its pixels; None without a face."""
    height, width = pixels.shape[:2]
    # Finders know faces by what is around them.
    room = max(height, width) // 2
    wide = cv2.copyMakeBorder(pixels, room, room, room, room, cv2.BORDER_REPLICATE)
    for face in detector.detect(wide):
        landmarks = face.landmarks - np.float32(room)
        x, y = landmarks.mean(axis=0)
        if 0 < x < width and 0 < y < height:
            return landmarks
    return None
