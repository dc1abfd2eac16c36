"""Brushes of the drawn faces: noise, soft shapes, strokes and light.

Pictures are planar, (3, height, width) float32, which NumPy mixes three times as fast as pixels
that lie together.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

# Bits behind the point of the coordinates given to OpenCV's drawing functions.
_SHIFT = 4
# Side of the noise tiles: a canvas is cut out of a tile at a random place.
_TILE = 768


@dataclass(frozen=True, eq=False)
class Canvas:
    """A picture's size and coordinates.

    A point (x, y) in units of the distance between the pupils lies at ``origin + unit * (x, y)``
    in continuous pixels.
    """

    width: int = 448
    height: int = 448
    unit: float = 90.0
    origin: tuple[float, float] = (224.0, 156.0)

    @functools.cached_property
    def x(self) -> np.ndarray:
        """(1, width) float32, units."""
        centres = np.arange(self.width, dtype=np.float32) + 0.5
        return ((centres - self.origin[0]) / self.unit)[None].astype(np.float32)

    @functools.cached_property
    def y(self) -> np.ndarray:
        """(height, 1) float32, units."""
        centres = np.arange(self.height, dtype=np.float32) + 0.5
        return ((centres - self.origin[1]) / self.unit)[:, None].astype(np.float32)

    def window(
        self, points: np.ndarray, margin: float
    ) -> tuple["Canvas", tuple[slice, slice, slice]]:
        """The part round some points, as a canvas of its own and as an index into pictures."""
        low = np.floor(self.pixels(points.min(axis=0) - margin)).astype(int)
        high = np.ceil(self.pixels(points.max(axis=0) + margin)).astype(int)
        size = (self.width, self.height)
        # At least one pixel, also for points that lie outside.
        low = [int(np.clip(low[i], 0, size[i] - 1)) for i in (0, 1)]
        high = [int(np.clip(high[i], low[i] + 1, size[i])) for i in (0, 1)]
        origin = (self.origin[0] - low[0], self.origin[1] - low[1])
        part = Canvas(high[0] - low[0], high[1] - low[1], self.unit, origin)
        return part, (slice(None), slice(low[1], high[1]), slice(low[0], high[0]))

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2) in units to continuous pixels."""
        return np.asarray(points) * self.unit + np.array(self.origin)

    def _fixed(self, lines: Sequence[np.ndarray]) -> list[np.ndarray]:
        # OpenCV counts pixel centres.
        points = self.pixels(np.concatenate(lines)) - 0.5
        points = np.round(points * (1 << _SHIFT)).astype(np.int32)
        ends = list(itertools.accumulate(len(line) for line in lines))
        return [points[a:b] for a, b in zip([0, *ends], ends, strict=False)]

    def fill(self, *outlines: np.ndarray, blur: float = 0.0) -> np.ndarray:
        """Mask (height, width) float32 in [0, 1] of closed outlines (N, 2); blur in units."""
        mask = np.zeros((self.height, self.width), np.uint8)
        cv2.fillPoly(mask, self._fixed(outlines), 255, cv2.LINE_AA, _SHIFT)
        return self._soft(mask, blur)

    def strokes(self, lines: Sequence[np.ndarray], width: int = 1, blur: float = 0.0) -> np.ndarray:
        """Mask of open lines, each (N, 2); width in pixels, blur in units."""
        mask = np.zeros((self.height, self.width), np.uint8)
        cv2.polylines(mask, self._fixed(lines), False, 255, width, cv2.LINE_AA, _SHIFT)
        return self._soft(mask, blur)

    def _soft(self, mask: np.ndarray, blur: float) -> np.ndarray:
        values = mask.astype(np.float32) * np.float32(1 / 255)
        return smooth(values, blur * self.unit) if blur else values

    def bumps(self, *bumps: tuple[float, float, float, float, float]) -> np.ndarray:
        """Sum of Gaussians, each (height, centre x, centre y, deviation x, deviation y)."""
        height, cx, cy, sx, sy = (column[:, None] for column in np.array(bumps, dtype=np.float32).T)
        across = np.exp(-0.5 * ((self.x - cx) / sx) ** 2)
        down = height * np.exp(-0.5 * ((self.y.T - cy) / sy) ** 2)
        return down.T @ across

    def noise(
        self, rng: np.random.Generator, cell: float | tuple[float, float], octaves: int = 1
    ) -> np.ndarray:
        """Smooth noise of unit deviation, read-only.

        Args:
            rng: Generator.
            cell: Size of a grain in pixels, or (width, height).
            octaves: Each further one has half the grain and half the strength.
        """
        wide, high = (cell, cell) if isinstance(cell, int | float) else cell
        tile = _noise_tile(float(wide), float(high), octaves)
        top = int(rng.integers(0, _TILE - self.height + 1))
        left = int(rng.integers(0, _TILE - self.width + 1))
        part = tile[top : top + self.height, left : left + self.width]
        return part[:, ::-1] if rng.random() < 0.5 else part


@functools.cache
def _noise_tile(wide: float, high: float, octaves: int) -> np.ndarray:
    # Made once: drawing the noise anew for every face would take longer than all the rest.
    rng = np.random.default_rng([round(wide * 100), round(high * 100), octaves])
    total, strength = np.zeros((_TILE, _TILE), np.float32), 1.0
    for _ in range(octaves):
        grid = (max(4, round(_TILE / high)), max(4, round(_TILE / wide)))
        grains = rng.standard_normal(grid, dtype=np.float32)
        total += strength * cv2.resize(grains, total.shape, interpolation=cv2.INTER_CUBIC)
        strength, wide, high = strength / 2, max(wide / 2, 1.0), max(high / 2, 1.0)
    total /= total.std()
    total.flags.writeable = False
    return total


def smooth(values: np.ndarray, deviation: float) -> np.ndarray:
    """Gaussian blur; a wide one is computed at a quarter of the resolution."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    if deviation < 6:
        return cv2.GaussianBlur(values, (0, 0), float(deviation))
    size = values.shape[::-1]
    small = cv2.resize(
        values, (max(1, size[0] // 4), max(1, size[1] // 4)), interpolation=cv2.INTER_AREA
    )
    small = cv2.GaussianBlur(small, (0, 0), float(deviation / 4))
    return cv2.resize(small, size, interpolation=cv2.INTER_LINEAR)


def shifted(values: np.ndarray, right: float, down: float) -> np.ndarray:
    """Move by whole pixels; the edges are repeated."""
    right, down = round(right), round(down)
    rows = np.clip(np.arange(values.shape[0]) - down, 0, values.shape[0] - 1)
    columns = np.clip(np.arange(values.shape[1]) - right, 0, values.shape[1] - 1)
    return values[rows][:, columns]


def curve(points: np.ndarray, samples: int = 12, closed: bool = False) -> np.ndarray:
    """Catmull-Rom spline through points (N, 2), ``samples`` points for each stretch."""
    points = np.asarray(points, dtype=np.float64)
    if closed:
        padded = np.concatenate([points[-1:], points, points[:2]])
    else:
        ends = 2 * points[0] - points[1], 2 * points[-1] - points[-2]
        padded = np.concatenate([ends[0][None], points, ends[1][None]])
    t = np.linspace(0, 1, samples, endpoint=False)[None, :, None]
    a, b, c, d = (padded[i : len(padded) - 3 + i][:, None] for i in range(4))
    line = 0.5 * (
        2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
    )
    line = line.reshape(-1, 2)
    return line if closed else np.concatenate([line, points[-1:]])


def blob(centre: np.ndarray, reach: tuple[float, float], slant: float = 0.0) -> np.ndarray:
    """Outline (24, 2) of an ellipse; slant is its rise to the right."""
    turn = np.linspace(0, 2 * np.pi, 25)[:24]
    oval = np.stack([reach[0] * np.cos(turn), reach[1] * np.sin(turn)], axis=1)
    oval[:, 1] -= slant * oval[:, 0]
    return centre + oval


def plane(colour: np.ndarray) -> np.ndarray:
    """A colour (3,) as (3, 1, 1) float32, to be mixed with pictures."""
    return np.asarray(colour, dtype=np.float32)[:, None, None]


def lay(picture: np.ndarray, colour: np.ndarray, alpha: np.ndarray) -> None:
    """Lay a colour (3,) or picture (3, height, width) over a picture, in place."""
    colour = np.asarray(colour, dtype=np.float32)
    if colour.ndim == 1:
        colour = plane(colour)
    change = colour - picture
    change *= alpha
    picture += change


def light_up(
    height: np.ndarray, unit: float, direction: np.ndarray, wrap: float = 0.25
) -> tuple[np.ndarray, np.ndarray]:
    """Light on a height field.

    Args:
        height: (height, width) float32 in units.
        unit: Pixels of a unit.
        direction: (3,) towards the light: x right, y down, z to the viewer.
        wrap: How far light reaches round an edge, as skin lets it.

    Returns:
        Diffuse light and gloss, both in [0, 1].
    """
    slope_x = cv2.Scharr(height, cv2.CV_32F, 1, 0, scale=unit / 32)
    slope_y = cv2.Scharr(height, cv2.CV_32F, 0, 1, scale=unit / 32)
    light = (direction / np.linalg.norm(direction)).astype(np.float32)
    half = light + np.array([0, 0, 1], np.float32)
    half /= np.linalg.norm(half)
    length = 1 / np.sqrt(slope_x * slope_x + slope_y * slope_y + 1)
    facing = (light[2] - slope_x * light[0] - slope_y * light[1]) * length
    gloss = np.maximum((half[2] - slope_x * half[0] - slope_y * half[1]) * length, 0)
    for _ in range(4):
        gloss *= gloss
    return np.clip((facing + wrap) * np.float32(1 / (1 + wrap)), 0, 1), gloss
