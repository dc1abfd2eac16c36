"""Interface of face detectors, and the square of a picture that a detected face gives."""

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
"""Default width of the smallest searched face, in pixels of the photograph whatever its size."""


@dataclass(frozen=True)
class DetectedFace:
    """One face in a photograph."""

    box: Box
    """(x0, y0, x1, y1) in pixels of the photograph, from brows to chin."""
    landmarks: np.ndarray
    """(68, 2) float32, continuous pixels of the photograph, iBUG 300-W order."""
    confidence: float
    """The detector's own score, higher for more certain; not a probability."""


class FaceDetector(Protocol):
    """Anything that finds faces.

    If it has ``options``, a JSON-serializable dictionary, they are stored with the faces, and an
    unfinished run with different options starts again. If it has ``smallest_face(height, width)``,
    the message that no face was found gives the width in pixels from which faces are searched for.
    """

    def detect(self, image: np.ndarray) -> list[DetectedFace]:
        """Find faces in (H, W, 3) uint8 RGB, the largest box first; an empty list if none is found.

        Threads that share a predictor call it concurrently.
        """
        ...


def check_image(image: np.ndarray) -> None:
    """Check that an image is (H, W, 3) uint8.

    Raises:
        ValueError: Shape or dtype differ.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected (H, W, 3) uint8 RGB, got {image.dtype} {image.shape}")


def area(box: Box) -> float:
    """Area of a box in square pixels."""
    return (box[2] - box[0]) * (box[3] - box[1])


def overlap(a: Box, b: Box) -> float:
    """Shared area as a share of the smaller box, so 1 for a box inside another."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height) / max(min(area(a), area(b)), 1e-9)


def nothing_found(detector: FaceDetector, image: np.ndarray) -> str:
    """A clause about a picture without a face, with the smallest searched face if it is known."""
    height, width = image.shape[:2]
    smallest = getattr(detector, "smallest_face", None)
    if smallest is None:
        return f"no face was found in its {width} x {height} pixels"
    return (
        f"no face was found in its {width} x {height} pixels, where faces from about "
        f"{smallest(height, width)} pixels across are searched for"
    )


class FaceSquare(NamedTuple):
    """The square of a picture that is judged."""

    image: np.ndarray
    """(S, S, 3) uint8."""
    box: Box
    """Position of the square in pixels of the picture; it may extend beyond it."""
    warnings: tuple[str, ...] = ()
    """Problems with the square, in whole phrases."""


def square_of_face(
    pixels: np.ndarray, size: int, detector: Callable[[], FaceDetector]
) -> FaceSquare:
    """Cut the largest face out of a picture, unless the picture is already framed as in training.

    Without a face or a detector, the whole picture is used, with a warning. Pictures are padded to
    a square, not distorted, so that faces keep their proportions.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        size: Side S of the square in pixels.
        detector: Returns the face detector, or raises ImportError or FileNotFoundError.
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
                    f"training {MARGINS[0]:.0%} or more): the score of the whole photograph may "
                    "differ",
                )
    return FaceSquare(crop_box(pixels, box, size), box, warnings)


def _landmarks_inside(pixels: np.ndarray, detector: FaceDetector) -> np.ndarray | None:
    """Landmarks of the largest face of a picture, (68, 2) in its pixels; None without a face."""
    height, width = pixels.shape[:2]
    # Detectors need some surroundings to find a face.
    room = max(height, width) // 2
    wide = cv2.copyMakeBorder(pixels, room, room, room, room, cv2.BORDER_REPLICATE)
    for face in detector.detect(wide):
        landmarks = face.landmarks - np.float32(room)
        x, y = landmarks.mean(axis=0)
        if 0 < x < width and 0 < y < height:
            return landmarks
    return None
