"""Finding faces and their 68 landmarks in a photograph."""

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import cv2
import numpy as np

from llava_forgery.call_state import lock_of
from llava_forgery.faces.crop import Box
from llava_forgery.faces.detected import (
    SMALLEST_FACE,
    DetectedFace,
    FaceDetector,
    area,
    check_image,
    overlap,
)
from llava_forgery.optional import packaged_file, require

# HOG score from which a detection is certain; dlib's own threshold.
_SURE = 0.0
_MAX_OVERLAP = 0.5
# Side of the HOG detector's window in pixels, the smallest face that it finds.
_WINDOW = 80
# Distance within which the network's vectors of one person lie, according to its author.
_SAME_PERSON = 0.6
# Most pixels per call: features of more take over 600 MB.
_MOST_PIXELS = 24e6


class DlibDetector:
    """dlib's HOG face detector and its 68-point shape predictor.

    The predictor's file (``shape_predictor_68_face_landmarks.dat``) was trained on the iBUG 300-W
    data set, and its author asks that it not be used in commercial products. If that concerns you,
    use :class:`~llava_forgery.faces.face_mesh.MediaPipeDetector`, or register a detector of your
    own with :func:`register_detector`.

    The detector makes two passes: over the image scaled to ``max_side`` and, for smaller faces,
    over the image scaled such that ``smallest`` pixels fill its window. Landmarks are placed in the
    unscaled image. Below dlib's own threshold of 0 it finds more faces but also more false ones.
    Such uncertain detections are only taken from the first pass, only in an image without a certain
    one, and then only the best of them.

    Args:
        threshold: Lowest HOG score of the first pass. 0 is dlib's own; -0.3 finds about a third
            more of the small faces.
        max_side: Longer side in pixels of the image in the first pass. The smallest face found
            there is about 75 of these pixels wide.
        max_enlarge: Largest factor by which smaller images are enlarged towards ``max_side``.
        min_face: Faces whose box is narrower than this many pixels of the photograph are dropped.
        smallest: Width in pixels of the photograph from which faces are searched for; 0 disables
            the second pass. Above 15 megapixels it grows with the photograph.

    Raises:
        ImportError: dlib is not installed.
        FileNotFoundError: The file of the predictor is not installed.
    """

    def __init__(
        self,
        threshold: float = -0.3,
        max_side: int = 640,
        max_enlarge: float = 2.0,
        min_face: int = 40,
        smallest: int = SMALLEST_FACE,
    ) -> None:
        if max_side < _WINDOW or max_enlarge < 1 or min(min_face, smallest) < 0:
            raise ValueError(
                f"expected max_side of {_WINDOW} or more, max_enlarge of 1 or more, min_face and "
                f"smallest not negative, got {max_side}, {max_enlarge}, {min_face} and {smallest}"
            )
        dlib = require("dlib", extra="faces", feature="face detection")
        self._rectangle, self._point = dlib.rectangle, dlib.point
        self._shape = dlib.full_object_detection
        self._finder = dlib.get_frontal_face_detector()
        self._predictor = _shape_predictor()
        self.threshold = threshold
        self.max_side = max_side
        self.max_enlarge = max_enlarge
        self.min_face = min_face
        self.smallest = smallest

    @property
    def options(self) -> dict[str, float]:
        """Constructor arguments."""
        names = ("threshold", "max_side", "max_enlarge", "min_face", "smallest")
        return {name: getattr(self, name) for name in names}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments; another process reloads the models."""
        return type(self), tuple(self.options.values())

    def detect(self, image: np.ndarray) -> list[DetectedFace]:
        """Find faces.

        Args:
            image: (H, W, 3) uint8 RGB.

        Returns:
            Faces, the largest box first; an empty list if there are none.

        Raises:
            ValueError: Shape or dtype differ.
        """
        check_image(image)
        image = np.ascontiguousarray(image)
        coarse, fine = self._scales(*image.shape[:2])
        found = self._find(image, coarse, self.threshold)
        if fine > coarse:
            sure = [box for box, score in found if score >= _SURE]
            # The first pass's boxes of large faces are kept.
            found += [
                (box, score)
                for box, score in self._find(image, fine, _SURE)
                if all(overlap(box, other) <= _MAX_OVERLAP for other in sure)
            ]
        faces = [
            DetectedFace(box, self._landmarks(image, box), score)
            for box, score in _without_doubts(found)
        ]
        return sorted(faces, key=lambda face: -area(face.box))

    def describe(self, image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """Embedding of a face by dlib's face recognition network.

        Args:
            image: (H, W, 3) uint8 RGB.
            landmarks: (68, 2) in its pixels.

        Returns:
            (128,) float64. Vectors of one person lie within 1 of each other, those of two people
            farther apart.

        Raises:
            FileNotFoundError: The file of the network is not installed.
        """
        x0, y0, x1, y1 = np.round([*landmarks.min(axis=0), *landmarks.max(axis=0)]).astype(int)
        # From pixel edges to dlib's pixel centres.
        places = np.round(landmarks - 0.5).astype(int).tolist()
        points = [self._point(x, y) for x, y in places]
        shape = self._shape(self._rectangle(x0, y0, x1, y1), points)
        network = _recognition_network()
        with lock_of(_recognition_network):
            vector = network.compute_face_descriptor(np.ascontiguousarray(image), shape)
        return np.array(vector) / _SAME_PERSON

    def smallest_face(self, height: int, width: int) -> int:
        """Width in pixels from which faces are searched for in a picture of this size."""
        return max(self.min_face, round(_WINDOW / max(self._scales(height, width))))

    def _scales(self, height: int, width: int) -> tuple[float, float]:
        """Scale of the picture in the first and in the second pass; 0 for no second pass."""
        coarse = min(self.max_side / max(height, width), self.max_enlarge)
        if not self.smallest:
            return coarse, 0.0
        return coarse, min(_WINDOW / self.smallest, (_MOST_PIXELS / (height * width)) ** 0.5)

    def _find(self, image: np.ndarray, scale: float, threshold: float) -> list[tuple[Box, float]]:
        """Boxes in pixels of the image, and their scores, found at one scale."""
        small = _resized(image, scale)
        # The two axes are rounded to whole pixels separately.
        ratio = np.array(image.shape[1::-1]) / np.array(small.shape[1::-1])
        # The detector holds the picture's features while it runs, without Python's lock.
        with lock_of(self):
            rectangles, scores, _ = self._finder.run(small, 0, threshold)
        found = []
        for rectangle, score in zip(rectangles, scores, strict=True):
            # dlib's rectangles include their last row and column.
            x0, y0 = np.array([rectangle.left(), rectangle.top()]) * ratio
            x1, y1 = np.array([rectangle.right() + 1, rectangle.bottom() + 1]) * ratio
            if min(x1 - x0, y1 - y0) >= self.min_face:
                found.append(((float(x0), float(y0), float(x1), float(y1)), float(score)))
        return found

    def _landmarks(self, image: np.ndarray, box: Box) -> np.ndarray:
        x0, y0, x1, y1 = (round(value) for value in box)
        shape = self._predictor(image, self._rectangle(x0, y0, x1 - 1, y1 - 1))
        points = [(shape.part(i).x, shape.part(i).y) for i in range(shape.num_parts)]
        # dlib uses pixel centres, the project pixel edges.
        return np.array(points, dtype=np.float32) + np.float32(0.5)


@cache
def _recognition_network() -> Any:
    weights = packaged_file(
        "face_recognition_models",
        "models/dlib_face_recognition_resnet_model_v1.dat",
        "telling faces apart",
        "'llava-forgery[faces]'",
    )
    dlib = require("dlib", extra="faces", feature="telling faces apart")
    return dlib.face_recognition_model_v1(str(weights))


@cache
def _shape_predictor() -> Any:
    """The predictor (100 MB), shared by all detectors, as it keeps no state of pictures."""
    # The package's own __init__ imports pkg_resources, which current setuptools lack.
    landmarks = packaged_file(
        "face_recognition_models",
        "models/shape_predictor_68_face_landmarks.dat",
        "landmark detection",
        "'llava-forgery[faces]'",
    )
    return require("dlib", extra="faces", feature="landmark detection").shape_predictor(
        str(landmarks)
    )


def _resized(image: np.ndarray, scale: float) -> np.ndarray:
    height, width = image.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if size == (width, height):
        return image
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, size, interpolation=how)


def _without_doubts(found: list[tuple[Box, float]]) -> list[tuple[Box, float]]:
    """Drop weaker boxes over stronger ones, and uncertain boxes unless there is nothing better."""
    kept: list[tuple[Box, float]] = []
    for box, score in sorted(found, key=lambda item: -item[1]):
        if score < _SURE and kept:
            break
        if all(overlap(box, other) <= _MAX_OVERLAP for other, _ in kept):
            kept.append((box, score))
    return kept


_DETECTORS: dict[str, Callable[..., FaceDetector]] = {}


def register_detector(name: str, factory: Callable[..., FaceDetector]) -> None:
    """Make a detector available by name.

    Args:
        name: Name that is not in use.
        factory: Class or function that makes the detector from :func:`get_detector`'s options.

    Raises:
        ValueError: The name is in use by another factory.
    """
    if _DETECTORS.get(name, factory) is not factory:
        raise ValueError(f"the detector name {name!r} is taken; choose another")
    _DETECTORS[name] = factory


def get_detector(name: str = "dlib", **options: Any) -> FaceDetector:
    """Make a detector by its name.

    Args:
        name: ``"dlib"``, ``"mediapipe"`` or a name given to :func:`register_detector`.
        options: Options of its factory.

    Raises:
        ValueError: The name is unknown.
        ImportError: A package it needs is not installed.
    """
    return detector_factory(name)(**options)


def detector_factory(name: str) -> Callable[..., FaceDetector]:
    """The factory registered under a name; another process may call it.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in _DETECTORS:
        known = ", ".join(sorted(_DETECTORS))
        raise ValueError(f"unknown face detector {name!r}; expected one of: {known}")
    return _DETECTORS[name]


def _mediapipe(**options: Any) -> FaceDetector:
    # A prediction only loads the detector that it uses.
    return importlib.import_module("llava_forgery.faces.face_mesh").MediaPipeDetector(**options)


register_detector("dlib", DlibDetector)
register_detector("mediapipe", _mediapipe)
