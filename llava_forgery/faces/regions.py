"""Facial regions as polygons over the 68 landmarks (iBUG 300-W order).

A region is one polygon or two (left and right). Simulated forgeries fill their convex hulls, and
masks of benchmarks are mapped to regions by them.
"""

from collections.abc import Callable, Sequence
from itertools import chain

import cv2
import numpy as np

from llava_forgery.constants import REGION_NAMES, WHOLE_FACE

BROWS = (slice(17, 22), slice(22, 27))
NOSE = slice(27, 36)
EYES = (slice(36, 42), slice(42, 48))
OUTER_LIPS = slice(48, 60)
# cv2 takes fixed-point vertices: four fractional bits keep hulls of small faces smooth.
_SHIFT = 4


def _centre(points: np.ndarray) -> np.ndarray:
    return points.mean(axis=-2, keepdims=True)


def _grow(points: np.ndarray, x: float, y: float) -> np.ndarray:
    """Scale points about their centre; 1.0 leaves a direction unchanged."""
    centre = _centre(points)
    return centre + (points - centre) * np.array([x, y], dtype=points.dtype)


def _eyes(landmarks: np.ndarray) -> list[np.ndarray]:
    # The contour follows the lids closely; a forged eye includes the lids and the socket.
    return [_grow(landmarks[..., eye, :], 1.4, 2.2) for eye in EYES]


def _eyebrows(landmarks: np.ndarray) -> list[np.ndarray]:
    # Brow landmarks are a line along the brow: thicken it by a third of the gap to the eye, up
    # and down along the face's own vertical axis.
    polygons = []
    for brow, eye in zip(BROWS, EYES, strict=True):
        line = landmarks[..., brow, :]
        half = (_centre(landmarks[..., eye, :]) - _centre(line)) / 3
        polygons.append(np.concatenate([line + half, line - half], axis=-2))
    return polygons


def _nose(landmarks: np.ndarray) -> list[np.ndarray]:
    return [_grow(landmarks[..., NOSE, :], 1.3, 1.05)]


def _mouth(landmarks: np.ndarray) -> list[np.ndarray]:
    return [_grow(landmarks[..., OUTER_LIPS, :], 1.15, 1.3)]


def _chin(landmarks: np.ndarray) -> list[np.ndarray]:
    # From the jaw up to halfway between the lower lip and the tip of the chin.
    jaw = landmarks[..., 5:12, :]
    lip, tip = landmarks[..., 57:58, :], landmarks[..., 8:9, :]
    top = landmarks.take([48, 57, 54], axis=-2) + (tip - lip) * np.float32(0.4)
    return [np.concatenate([jaw, top], axis=-2)]


def _cheeks(landmarks: np.ndarray) -> list[np.ndarray]:
    polygons = []
    for jaw, inner in (((1, 2, 3, 4, 5), (31, 48)), ((15, 14, 13, 12, 11), (35, 54))):
        eye = _centre(landmarks[..., EYES[0] if jaw[0] == 1 else EYES[1], :])
        # Below the lower lid, by a quarter of the distance from the eye to the nostril.
        below = eye + (landmarks[..., inner[:1], :] - eye) * np.float32(0.4)
        polygons.append(np.concatenate([landmarks.take(jaw + inner, axis=-2), below], axis=-2))
    return polygons


def _face(landmarks: np.ndarray) -> list[np.ndarray]:
    return [landmarks]


_POLYGONS: dict[str, Callable[[np.ndarray], list[np.ndarray]]] = {
    "eyes": _eyes,
    "eyebrows": _eyebrows,
    "nose": _nose,
    "mouth": _mouth,
    "chin": _chin,
    "cheeks": _cheeks,
    WHOLE_FACE: _face,
}
assert tuple(_POLYGONS) == REGION_NAMES


def region_polygons(name: str, landmarks: np.ndarray) -> list[np.ndarray]:
    """Polygons whose convex hulls make up a region.

    Args:
        name: One of ``REGION_NAMES``.
        landmarks: (..., 68, 2) pixels, x right and y down, of one face or of several.

    Returns:
        One or two arrays (..., N, 2), float32, in pixels; they may extend beyond the image.

    Raises:
        ValueError: The region is unknown, or the landmarks differ in shape.
    """
    if name not in _POLYGONS:
        raise ValueError(f"unknown region {name!r}; expected one of {', '.join(REGION_NAMES)}")
    landmarks = np.asarray(landmarks, dtype=np.float32)
    if landmarks.shape[-2:] != (68, 2):
        raise ValueError(f"expected landmarks of shape (68, 2), got {landmarks.shape}")
    # OpenCV needs contiguous arrays, and sums then round the same for one face or many.
    return [np.ascontiguousarray(polygon) for polygon in _POLYGONS[name](landmarks)]


def hull_outlines(
    regions: Sequence[Sequence[str]], landmarks: np.ndarray, growth: np.ndarray
) -> list[list[np.ndarray]]:
    """Convex hulls of the regions' polygons, for each face a list of (N, 2) float32, in pixels.

    Args:
        regions: Names from ``REGION_NAMES``, for each of B faces.
        landmarks: (B, 68, 2) float32 pixels.
        growth: (B,) float32, scale of each hull about its polygon's centre.
    """
    outlines: list[list[np.ndarray]] = [[] for _ in regions]
    growth = growth[:, None, None]
    # In the same order whatever the batch; unknown names come last and are refused.
    for name in dict.fromkeys(chain(REGION_NAMES, *regions)):
        faces = [i for i, names in enumerate(regions) if name in names]
        if not faces:
            continue
        chosen = slice(None) if len(faces) == len(regions) else faces
        for polygons in region_polygons(name, landmarks[chosen]):
            centre = polygons.mean(axis=1, keepdims=True)
            grown = centre + (polygons - centre) * growth[chosen]
            for face, polygon in zip(faces, grown, strict=True):
                outlines[face].append(cv2.convexHull(polygon)[:, 0])
    return outlines


def fill(
    outlines: Sequence[np.ndarray], corner: tuple[int, int], size: tuple[int, int], step: int = 1
) -> np.ndarray:
    """Draw the union of polygons.

    Args:
        outlines: (N, 2) in continuous pixels, where the first pixel's centre lies at 0.5.
        corner: (left, top) of the drawn rectangle in pixels.
        size: (height, width) of the result.
        step: Side of the result's pixels, in pixels.

    Returns:
        ``size`` uint8, 0 or 255.
    """
    mask = np.zeros(size, dtype=np.uint8)
    if not outlines:
        return mask
    points = ((np.concatenate(outlines) - np.float32(corner)) / step - 0.5) * (1 << _SHIFT)
    vertices, start = np.rint(points).astype(np.int32), 0
    for outline in outlines:
        end = start + len(outline)
        cv2.fillPoly(mask, [vertices[start:end]], 255, cv2.LINE_8, _SHIFT)
        start = end
    return mask


def hull_mask(
    regions: Sequence[str], landmarks: np.ndarray, size: tuple[int, int], growth: float = 1.0
) -> np.ndarray:
    """Union of the convex hulls of the regions' polygons.

    Args:
        regions: Names from ``REGION_NAMES``.
        landmarks: (68, 2) pixels.
        size: (height, width) of the mask.
        growth: Scale of each hull about its centre.

    Returns:
        (height, width) float32, 0 or 1.
    """
    (outlines,) = hull_outlines([regions], np.float32(landmarks)[None], np.float32([growth]))
    filled = fill(outlines, (0, 0), size)
    return (filled > 0).astype(np.float32)
