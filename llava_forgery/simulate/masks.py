"""Masks of simulated forgeries: convex hulls of regions, deformed and softened.

Source: LVLM-DFD, section 3.3 and equation 6 (convex hull mask M in [0, 1]); the deformation and
the softening follow the idea of self-blended images (Shiohara & Yamasaki, 2022).
"""

import math
from collections.abc import Sequence
from itertools import accumulate, islice, pairwise
from typing import NamedTuple

import cv2
import numpy as np

from llava_forgery.faces.regions import fill, hull_outlines
from llava_forgery.simulate.plan import ForgeryPlan

# Length of a hull's pieces between displaced points, as a share of the image's side.
_STEP = 0.015
# Instead of a length of 0 below a fraction.
_TINY = 1e-30
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


def deform(
    outlines: Sequence[Sequence[np.ndarray]],
    fields: Sequence[np.ndarray],
    strength: np.ndarray,
    size: tuple[int, int],
) -> list[list[np.ndarray]]:
    """Elastic deformation by a smooth random displacement, on the outlines instead of the pixels.

    Args:
        outlines: Closed polygons (N, 2) in pixels, one or more for each of B faces.
        fields: (2, n, n) displacements in x and y at a grid over the image, standard normal, for
            each face; between its nodes they are interpolated cubically.
        strength: (B,) float32, standard deviation of the displacement in pixels.
        size: (height, width) of the images.

    Returns:
        The polygons with further points between theirs, (M, 2) float32 each.
    """
    points, counts = _densify([one for face in outlines for one in face], _STEP * max(size))
    cuts = iter(accumulate(counts.tolist()))
    ends = [list(islice(cuts, len(face))) for face in outlines]
    starts = [0, *(face[-1] for face in ends)]
    sizes = [high - low for low, high in pairwise(starts)]
    # The grid's nodes lie on the image's edges.
    nodes = np.float32([(field.shape[2] - 1, field.shape[1] - 1) for field in fields])
    places = points * np.repeat(nodes, sizes, axis=0)
    places /= np.float32((size[1], size[0]))
    moves = [
        cv2.remap(
            np.ascontiguousarray(field.transpose(1, 2, 0)),
            places[None, start : face[-1]],
            None,
            cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_REPLICATE,
        )[0]
        for field, start, face in zip(fields, starts, ends, strict=False)
    ]
    moved = points + np.repeat(strength, sizes)[:, None] * np.concatenate(moves)
    return [
        [moved[low:high] for low, high in pairwise([start, *face])]
        for start, face in zip(starts, ends, strict=False)
    ]


def _densify(outlines: Sequence[np.ndarray], step: float) -> tuple[np.ndarray, np.ndarray]:
    """Points at equal distances of at most ``step`` along closed polygons, all at once.

    Returns:
        (M, 2) float32, polygon after polygon, and how many each of them has.
    """
    corners = np.concatenate(outlines).astype(np.float64)
    sides = np.array([len(outline) for outline in outlines])
    first = np.cumsum(sides) - sides
    polygon = np.repeat(np.arange(len(outlines)), sides)
    place = np.arange(len(corners)) - first[polygon]
    following = np.arange(1, len(corners) + 1)
    following[first + sides - 1] = first
    edges = corners[following] - corners
    # A row for each polygon, so that no sum depends on the polygons beside it.
    lengths = np.zeros((len(outlines), sides.max() + 1), np.float32)
    lengths[polygon, place + 1] = np.hypot(*edges.T.astype(np.float32))
    along = np.cumsum(lengths, axis=1).astype(np.float64)
    counts = np.maximum(8, np.ceil(along[:, -1] / step)).astype(int)
    pitch = np.maximum(along[:, -1] / counts, _TINY)
    start, end = along[polygon, place], along[polygon, place + 1]
    # The first point of each edge; the last edge has all that are left.
    offset = (np.cumsum(counts) - counts)[polygon]
    begin = offset + np.minimum(np.ceil(start / pitch[polygon]).astype(int), counts[polygon])
    points = np.concatenate([begin[1:], [counts.sum()]]) - begin
    edge = np.repeat(np.arange(len(corners)), points)
    index = np.arange(len(edge)) - offset[edge]
    share = (index * pitch[polygon][edge] - start[edge])[:, None]
    slopes = edges / np.maximum(end - start, _TINY)[:, None]
    return (slopes[edge] * share + corners[edge]).astype(np.float32), counts


def plan_outlines(
    plans: Sequence[ForgeryPlan], landmarks: np.ndarray, size: tuple[int, int]
) -> list[list[np.ndarray]]:
    """The deformed hulls of plans for faces (B, 68, 2) float32 in images of (height, width).

    What is drawn for a face depends on nothing beside it. For many faces at once it takes a
    fraction of the time, most of which is not spent on the points.

    Returns:
        For each face (N, 2) float32 polygons in pixels.
    """
    growth = np.float32([plan.growth for plan in plans])
    outlines = hull_outlines([plan.regions for plan in plans], landmarks, growth)
    strength = np.float32([plan.deformation * max(size) for plan in plans])
    return deform(outlines, [plan.displacement for plan in plans], strength, size)


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
    # What lies farther outside than the blur reaches changes nothing inside. Plain numbers: arrays
    # of two take longer than the blur.
    (left, columns), (top, rows) = (
        _span(low, high, side, reach, step)
        for low, high, side in zip(
            points.min(axis=0).tolist(), points.max(axis=0).tolist(), (width, height), strict=True
        )
    )
    if columns < 1 or rows < 1:
        return SoftMask(0, 0, np.zeros((0, 0), np.uint8))
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


def _span(low: float, high: float, side: int, reach: int, step: int) -> tuple[int, int]:
    """First pixel and number of steps from ``low`` to ``high`` with ``reach`` on either side."""
    first = min(max(math.floor(low) - reach, -reach), side + reach)
    last = min(max(math.ceil(high) + reach, -reach), side + reach)
    return first, -(-(last - first) // step)
