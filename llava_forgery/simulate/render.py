"""From a plan to a forged picture with OpenCV, one face at a time, on the mask's rectangle."""

from typing import NamedTuple

import cv2
import numpy as np

from llava_forgery.simulate import blend, masks, pixels
from llava_forgery.simulate.foreground import Donor, draw_foreground
from llava_forgery.simulate.plan import ForgeryPlan, PlanColumns

# What sharpening and bilinear interpolation read around the rectangle that they fill.
_HALO = 4


class Rendering(NamedTuple):
    """A forgery and what it was made of."""

    image: np.ndarray
    """(H, W, 3) uint8, the forged face."""
    pristine: np.ndarray
    """(H, W, 3) uint8, equal to ``image`` wherever the mask is 0."""
    mask: np.ndarray
    """(H, W) uint8, over 127 inside the forged area."""
    difference: float
    """Mean change inside the forged area in grey levels; -1 if no pixel lies inside."""


def plan_colours(plan: ForgeryPlan | PlanColumns, grey: float) -> np.ndarray:
    """The changes of colour for a picture whose mean is ``grey``: (3, 4), of B plans (3, 4, B)."""
    return pixels.colour_matrix(
        shift=(plan.red, plan.green, plan.blue),
        hue=plan.hue,
        saturation=plan.saturation,
        contrast=plan.contrast,
        brightness=plan.brightness,
        grey=grey,
    )


def source_matrix(plan: ForgeryPlan | PlanColumns, size: tuple[int, int]) -> np.ndarray:
    """Where each point of the foreground comes from, in continuous pixels.

    The foreground is turned and scaled about the image's centre, then moved.

    Returns:
        (2, 3), of B plans (2, 3, B).
    """
    height, width = size
    cos, sin = np.cos(plan.angle) / plan.scale, np.sin(plan.angle) / plan.scale
    x = width / 2 + plan.shift_x * max(size)
    y = height / 2 + plan.shift_y * max(size)
    return np.array(
        [
            [cos, sin, width / 2 - (cos * x + sin * y)],
            [-sin, cos, height / 2 - (cos * y - sin * x)],
        ]
    )


def render_forgery(
    image: np.ndarray, landmarks: np.ndarray, plan: ForgeryPlan, donor: Donor | None = None
) -> Rendering:
    """Forge one face.

    Args:
        image: (H, W, 3) uint8 RGB, contiguous.
        landmarks: (68, 2) float32 in its pixels.
        plan: What to do.
        donor: Of a swap.
    """
    size = image.shape[:2]
    (outlines,) = masks.plan_outlines([plan], landmarks[None], size)
    soft = masks.soft_mask(outlines, plan.softness * max(size), size)
    inside = cv2.compare(soft.values, 127, cv2.CMP_GT) if soft.values.size else None
    mask = np.zeros(size, np.uint8)
    if inside is None or not cv2.countNonZero(inside):
        return Rendering(image, image, mask, -1.0)
    left, top, (height, width) = soft.left, soft.top, soft.values.shape
    box = np.s_[top : top + height, left : left + width]
    mask[box] = soft.values

    source = draw_foreground(image, landmarks, plan, donor)
    colours = plan_colours(plan, pixels.mean_grey(source if plan.on_foreground else image))
    if plan.on_foreground:
        pristine = image
        foreground = warp_layer(source, plan, (left, top, width, height), colours)
    else:
        pristine = pixels.enlarge(recolour_layer(image, plan, colours), size)
        foreground = warp_layer(source, plan, (left, top, width, height), None)
    background = pristine[box]
    if plan.poisson:
        foreground = blend.poisson_blend(foreground, background, soft.values)
    patch = blend.alpha_blend(foreground, background, soft.values, plan.opacity)
    forged = pristine.copy()
    forged[box] = patch
    difference = sum(cv2.mean(cv2.absdiff(patch, background), inside)[:3]) / 3
    return Rendering(forged, pristine, mask, difference)


def recolour_layer(image: np.ndarray, plan: ForgeryPlan, colours: np.ndarray) -> np.ndarray:
    """Recoloured, and reduced, compressed or sharpened; a reduced picture stays small."""
    if plan.downscale > 1:
        image = pixels.reduce(image, plan.downscale)
    image = pixels.recolour(image, colours)
    if plan.sharpness > 0:
        image = pixels.sharpen(image, plan.sharpness)
    return pixels.compress(image, plan.jpeg) if plan.jpeg else image


def warp_layer(
    image: np.ndarray,
    plan: ForgeryPlan,
    rectangle: tuple[int, int, int, int],
    colours: np.ndarray | None,
) -> np.ndarray:
    """The foreground on a rectangle (left, top, width, height), recoloured if colours are given."""
    size = image.shape[:2]
    left, top, width, height = rectangle
    matrix = source_matrix(plan, size)
    # Compression works on blocks and reduction on shares of pixels of the whole picture; all else
    # looks at near pixels only and is done where the rectangle comes from.
    if colours is not None and (plan.jpeg or plan.downscale > 1):
        source = recolour_layer(image, plan, colours)
        scale = np.array([source.shape[1] / size[1], source.shape[0] / size[0]])
        matrix *= scale[:, None]
        origin = np.zeros(2)
    else:
        corners = np.array([[left, left + width] * 2, [top] * 2 + [top + height] * 2, [1] * 4])
        reached = matrix @ corners
        limit = np.array(size[::-1])
        low = np.clip(np.floor(reached.min(axis=1)) - _HALO, 0, limit - 1).astype(int)
        high = np.clip(np.ceil(reached.max(axis=1)) + _HALO, low + 1, limit).astype(int)
        source = image[low[1] : high[1], low[0] : high[0]]
        if colours is not None:
            source = recolour_layer(source, plan, colours)
        origin = low
    # warpAffine counts pixel centres: continuous x is index x - 0.5.
    offset = matrix[:, :2] @ (np.array([left, top]) + 0.5) + matrix[:, 2] - origin - 0.5
    matrix = np.concatenate([matrix[:, :2], offset[:, None]], axis=1)
    return cv2.warpAffine(
        source,
        matrix,
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
