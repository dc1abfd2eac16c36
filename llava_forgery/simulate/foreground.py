"""What is blended into a face: the face itself, another person's, or itself with another mouth.

Self-blends teach the traces of blending. Forged videos have more: a swap brings another person's
face onto the landmarks (Deepfakes, FaceSwap), a reenactment moves mouth and jaw of the same face
(Face2Face, NeuralTextures), and what a network or a renderer draws is smoother than what a camera
took, or has a grain of its own.
"""

from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from llava_forgery.simulate import pixels
from llava_forgery.simulate.plan import REENACTMENT, SELF, SWAP, ForgeryPlan

# Displacements are computed at this many points a side and enlarged: they are smooth.
_GRID = 32
# Of the thin-plate splines' bending: 0 would meet every landmark, and fold where two are close.
_STIFFNESS = 0.05
# Shortest standard deviation of a colour channel in grey levels.
_LEAST_SPREAD = 4.0
_UPPER_LIP, _LOWER_LIP = [49, 50, 51, 52, 53, 61, 62, 63], [55, 56, 57, 58, 59, 65, 66, 67]
_CORNERS = [48, 60, 54, 64]
_MOUTH, _JAW, _BROWS = list(range(48, 68)), [6, 7, 8, 9, 10], list(range(17, 27))


class Donor(NamedTuple):
    """Another person's face, for swaps."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    landmarks: np.ndarray
    """(68, 2) float32 in its pixels."""


def is_plain(plan: ForgeryPlan) -> bool:
    """Whether the foreground is the photograph itself."""
    return plan.kind == SELF and plan.texture == "camera"


def draw_foreground(
    image: np.ndarray, landmarks: np.ndarray, plan: ForgeryPlan, donor: Donor | None = None
) -> np.ndarray:
    """The picture that a plan moves, recolours and blends into the face.

    Args:
        image: (H, W, 3) uint8 RGB.
        landmarks: (68, 2) float32 in its pixels.
        plan: Its ``kind``, ``texture`` and ``draws`` are followed here.
        donor: Whose face is brought in, for a swap.

    Returns:
        (H, W, 3) uint8, the face where it lies in ``image``; the image itself if nothing is to do.

    Raises:
        ValueError: The plan is a swap, and there is no donor.
    """
    result = image
    if plan.kind == SWAP:
        if donor is None:
            raise ValueError(
                "a swap needs a donor, the picture and landmarks of another person; give one, or "
                "set SimulatorConfig.swap to 0"
            )
        result = warp(donor.image, landmarks, donor.landmarks, image.shape[:2])
        result = match_colours(result, image, landmarks, 0.7 + 0.3 * abs(np.tanh(plan.draws[0])))
    elif plan.kind == REENACTMENT:
        result = warp(image, express(landmarks, plan.draws), landmarks, image.shape[:2])
    return draw_texture(result, plan)


def warp(
    image: np.ndarray, target: np.ndarray, source: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Bring an image's ``source`` points to ``target`` by thin-plate splines.

    Source: Bookstein, "Principal Warps" (1989).

    Args:
        image: (H, W, 3) uint8.
        target: (N, 2) in pixels of the result.
        source: (N, 2) in pixels of the image.
        size: (height, width) of the result.

    Returns:
        (height, width, 3) uint8; what lies outside the image repeats its edge.
    """
    scale = float(max(size))
    points = target.astype(np.float64) / scale
    count = len(points)
    system = np.zeros((count + 3, count + 3))
    system[:count, :count] = _bending(points, points) + _STIFFNESS * 1e-2 * np.eye(count)
    system[:count, count:] = system[count:, :count].T
    linear = np.concatenate([np.ones((count, 1)), points], axis=1)
    system[:count, count:], system[count:, :count] = linear, linear.T
    wanted = np.zeros((count + 3, 2))
    wanted[:count] = source
    weights = np.linalg.solve(system, wanted)

    height, width = size
    rows, columns = (np.linspace(0.5, side - 0.5, _GRID) for side in (height, width))
    grid = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)
    nodes = grid / scale
    places = _bending(nodes, points) @ weights[:count]
    places += np.concatenate([np.ones((len(nodes), 1)), nodes], axis=1) @ weights[count:]
    places = places.reshape(_GRID, _GRID, 2).transpose(2, 0, 1)
    # Not by cv2.remap, which reads its own grid at a 32nd of a step: at 224 pixels that is 0.3.
    places = _between(height) @ places @ _between(width).T
    # remap counts pixel centres: continuous x is index x - 0.5.
    field = np.ascontiguousarray(places.transpose(1, 2, 0) - 0.5, dtype=np.float32)
    return cv2.remap(image, field, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


@lru_cache(maxsize=16)
def _between(side: int) -> np.ndarray:
    """(side, _GRID): each pixel's place between two of the nodes, linearly."""
    nodes = np.linspace(0, side - 1, _GRID)
    return np.stack([np.interp(np.arange(side), nodes, row) for row in np.eye(_GRID)], axis=1)


def _bending(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """r^2 log r^2 of all distances, (N, M)."""
    squared = ((points[:, None] - centres[None]) ** 2).sum(axis=2)
    return squared * np.log(np.maximum(squared, 1e-12))


def match_colours(
    image: np.ndarray, reference: np.ndarray, landmarks: np.ndarray, strength: float
) -> np.ndarray:
    """Bring mean and spread of each channel inside the face's hull to those of a reference.

    Args:
        image: (H, W, 3) uint8.
        reference: (H, W, 3) uint8.
        landmarks: (68, 2), the face in both.
        strength: Share of the way, 0 to 1.
    """
    inside = np.zeros(image.shape[:2], np.uint8)
    cv2.fillConvexPoly(inside, cv2.convexHull(np.rint(landmarks).astype(np.int32)), 255)
    if not cv2.countNonZero(inside):
        return image
    mean, spread = (part[:, 0] for part in cv2.meanStdDev(image, mask=inside))
    aim, aimed = (part[:, 0] for part in cv2.meanStdDev(reference, mask=inside))
    gain = np.clip(np.maximum(aimed, _LEAST_SPREAD) / np.maximum(spread, _LEAST_SPREAD), 0.5, 2.0)
    gain = 1 + strength * (gain - 1)
    shift = mean + strength * (aim - mean) - gain * mean
    return cv2.transform(image, np.float32(np.concatenate([np.diag(gain), shift[:, None]], axis=1)))


def express(landmarks: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Landmarks of the same face with another expression: mouth, jaw and brows move.

    Args:
        landmarks: (68, 2).
        draws: (12,) standard normal.

    Returns:
        (68, 2) float32.
    """
    points = landmarks.astype(np.float64)
    down = points[8] - points[27]
    height = np.linalg.norm(down)
    down = down / max(height, 1e-6)
    across = np.array([down[1], -down[0]]) * -1
    amount = np.clip(draws, -2, 2)
    opening, lift = 0.05 * abs(amount[1]), 0.012 * amount[2]
    points[_LOWER_LIP] += height * opening * down
    points[_JAW] += height * 0.6 * opening * down
    points[_UPPER_LIP] += height * lift * down
    # Corners apart or together, up or down.
    middle = points[_MOUTH].mean(axis=0)
    out = (points[_CORNERS] - middle) @ across
    points[_CORNERS] += (0.12 * amount[3] * out)[:, None] * across
    points[_CORNERS] += height * 0.02 * amount[4] * down
    # The mouth as a whole.
    points[_MOUTH] += height * (0.015 * amount[5] * across + 0.012 * amount[6] * down)
    points[_BROWS] += height * 0.015 * amount[7] * down
    return points.astype(np.float32)


def draw_texture(image: np.ndarray, plan: ForgeryPlan) -> np.ndarray:
    """The picture as something else than the photograph's camera gives it; see ``TEXTURES``."""
    strength, sharpness, seed = plan.draws[8:11]
    strength, sharpness = float(_share(strength)), float(_share(sharpness))
    if plan.texture == "network":
        # A network draws faces of 64 to 256 pixels, and is trained to look sharp.
        size = image.shape[:2]
        small = cv2.GaussianBlur(pixels.reduce(image, 1 + 2.5 * strength), (3, 3), 0.6)
        return pixels.sharpen(pixels.resize(small, size), 0.8 * sharpness)
    if plan.texture == "smooth":
        spread = 8 + 40 * strength
        return cv2.bilateralFilter(image, 7, spread, 1.5 + 2 * sharpness)
    if plan.texture == "grain":
        rng = np.random.default_rng(abs(int(float(seed) * 1e6)))
        noise = rng.normal(0, 1 + 5 * strength, (*image.shape[:2], 1))
        return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)
    return image


def _share(normal: float) -> float:
    """A standard normal number as a uniform one in [0, 1]."""
    return 1 / (1 + np.exp(-1.702 * normal))
