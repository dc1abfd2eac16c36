"""Masks of simulated forgeries: convex hulls of regions, deformed and softened.

Source: LVLM-DFD, section 3.3 and equation 6 (convex hull mask M in [0, 1]); the deformation and
the softening follow the idea of self-blended images (Shiohara & Yamasaki, 2022).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from llava_forgery.simulate.plan import ForgeryPlan
from llava_forgery.simulate.regions import region_polygons

# cv2 takes fixed-point vertices: four fractional bits keep hulls of small faces smooth.
_SHIFT = 4
# Length of a hull's pieces between displaced points, as a share of the image's side.
_STEP = 0.015
# A blur this wide, in pixels, hides that the mask was blurred at a reduced size and enlarged.
_SMOOTH = 1.5


class SoftMask(NamedTuple):
    """A mask, kept only where it is not 0."""

    left: int
    """First column of the rectangle."""
    top: int
    """First row of the rectangle."""
    values: np.ndarray
    """(h, w) uint8 of the rectangle, 255 inside the forged area; (0, 0) if all is 0."""


def hull_outlines(
    regions: Sequence[str], landmarks: np.ndarray, growth: float = 1.0
) -> list[np.ndarray]:
    """Convex hulls of the regions' polygons, (N, 2) float32 each, in pixels.

    Args:
        regions: Names out of ``REGION_NAMES``.
        landmarks: (68, 2) pixels.
        growth: Scale of each hull about its polygon's centre.
    """
    outlines = []
    for name in regions:
        for polygon in region_polygons(name, landmarks):
            centre = polygon.mean(axis=0)
            hull = cv2.convexHull(np.float32(centre + (polygon - centre) * growth))
            outlines.append(hull[:, 0])
    return outlines


def deform(
    outlines: Sequence[np.ndarray], field: np.ndarray, strength: float, size: tuple[int, int]
) -> list[np.ndarray]:
    """Elastic deformation by a smooth random displacement, on the outlines instead of the pixels.

    Args:
        outlines: Closed polygons (N, 2) in pixels.
        field: (2, n, n) displacements in x and y at a grid over the image, standard normal;
            between its nodes they are interpolated cubically.
        strength: Standard deviation of the displacement in pixels.
        size: (height, width) of the image.

    Returns:
        The polygons with further points between theirs, (M, 2) float32 each.
    """
    step = _STEP * max(size)
    dense = [_densify(outline, step) for outline in outlines]
    points = np.concatenate(dense)
    # The grid's nodes lie on the image's edges.
    places = points * ((np.float32(field.shape[2] - 1), np.float32(field.shape[1] - 1)))
    places /= np.float32((size[1], size[0]))
    moves = cv2.remap(
        np.ascontiguousarray(field.transpose(1, 2, 0)),
        np.float32(places)[None],
        None,
        cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )
    moved = points + np.float32(strength) * moves[0]
    return np.split(moved, np.cumsum([len(outline) for outline in dense])[:-1])


def _densify(outline: np.ndarray, step: float) -> np.ndarray:
    closed = np.concatenate([outline, outline[:1]])
    lengths = np.hypot(*(closed[1:] - closed[:-1]).T)
    along = np.concatenate([[0.0], np.cumsum(lengths)])
    places = np.linspace(0, along[-1], max(8, math.ceil(along[-1] / step)), endpoint=False)
    return np.stack([np.interp(places, along, closed[:, axis]) for axis in (0, 1)], axis=1).astype(
        np.float32
    )


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
    for outline in outlines:
        points = ((outline - np.float32(corner)) / step - 0.5) * (1 << _SHIFT)
        cv2.fillPoly(mask, [np.rint(points).astype(np.int32)], 255, cv2.LINE_8, _SHIFT)
    return mask


def hull_mask(
    regions: Sequence[str], landmarks: np.ndarray, size: tuple[int, int], growth: float = 1.0
) -> np.ndarray:
    """Union of the convex hulls of the regions' polygons.

    Args:
        regions: Names out of ``REGION_NAMES``.
        landmarks: (68, 2) pixels.
        size: (height, width) of the mask.
        growth: Scale of each hull about its centre.

    Returns:
        (height, width) float32, 0 or 1.
    """
    filled = fill(hull_outlines(regions, landmarks, growth), (0, 0), size)
    return (filled > 0).astype(np.float32)


def plan_outlines(
    plan: ForgeryPlan, landmarks: np.ndarray, size: tuple[int, int]
) -> list[np.ndarray]:
    """The deformed hulls of a plan in an image of (height, width), (N, 2) float32 each."""
    outlines = hull_outlines(plan.regions, landmarks, plan.growth)
    return deform(outlines, plan.field, plan.deformation * max(size), size)


def soft_mask(outlines: Sequence[np.ndarray], sigma: float, size: tuple[int, int]) -> SoftMask:
    """Fill polygons and blur them, on the rectangle that they need.

    A wide blur is computed at a reduced size. What lies outside the image counts, so that a hull
    that reaches over the edge does not fade there.

    Args:
        outlines: (N, 2) float32 in continuous pixels.
        sigma: Standard deviation of the blur in pixels, over 0.
        size: (height, width) of the image.
    """
    height, width = size
    step = min(8, max(1, int(sigma / _SMOOTH)))
    reach = math.ceil(3 * sigma) + step
    points = np.concatenate(outlines)
    # What lies farther outside than the blur reaches changes nothing inside.
    limit = np.array([width, height]) + reach
    low = np.clip(np.floor(points.min(axis=0)) - reach, -reach, limit).astype(int)
    high = np.clip(np.ceil(points.max(axis=0)) + reach, -reach, limit).astype(int)
    columns, rows = (-(-(high - low) // step)).tolist()
    if columns < 1 or rows < 1:
        return SoftMask(0, 0, np.zeros((0, 0), np.uint8))
    left, top = low.tolist()
    mask = fill(outlines, (left, top), (rows, columns), step)
    mask = cv2.GaussianBlur(mask, (0, 0), sigma / step, borderType=cv2.BORDER_CONSTANT)
    if step > 1:
        mask = cv2.resize(mask, (columns * step, rows * step), interpolation=cv2.INTER_LINEAR)
    mask = mask[max(0, -top) : height - top, max(0, -left) : width - left]
    left, top = max(0, left), max(0, top)
    if mask.size == 0:
        return SoftMask(0, 0, np.zeros((0, 0), np.uint8))
    x, y, w, h = cv2.boundingRect(mask)
    return SoftMask(left + x, top + y, mask[y : y + h, x : x + w])
