"""All random choices of a forgery, made before a pixel is touched.

A plan follows from a seed alone; rendering draws nothing. The same seed therefore gives the same
forgery whatever stands beside it in a batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from types import SimpleNamespace

import numpy as np

from llava_forgery.constants import REGION_NAMES, WHOLE_FACE
from llava_forgery.simulate.config import PARTS, SimulatorConfig

# Where each number's uniform draw stands in the plan's row of draws.
_RANGES = (
    "growth", "deformation", "softness", "scale", "saturation", "contrast", "sharpness",
    "downscale",
)  # fmt: skip
_LIMITS = (
    ("angle", "angle"), ("hue", "hue"), ("brightness", "brightness"), ("red", "rgb"),
    ("green", "rgb"), ("blue", "rgb"), ("shift_x", "shift"), ("shift_y", "shift"),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class ForgeryPlan:
    """What one forgery is made of. Lengths are shares of the image's longer side."""

    regions: tuple[str, ...]
    """Names, in the order of ``REGION_NAMES``."""
    field: np.ndarray
    """(2, n, n) float32, standard normal displacements in x and y at a grid over the image."""
    growth: float
    """Scale of each hull."""
    deformation: float
    """Standard deviation of the displacement."""
    softness: float
    """Standard deviation of the mask's blur."""
    opacity: float
    """Factor of the mask."""
    angle: float
    """Turn of the foreground in radians, positive clockwise on the screen."""
    scale: float
    """Of the foreground, over 1 enlarges."""
    shift_x: float
    """Move of the foreground, positive to the right."""
    shift_y: float
    """Move of the foreground, positive down."""
    red: float
    """Shift in units of the full range."""
    green: float
    """Shift in units of the full range."""
    blue: float
    """Shift in units of the full range."""
    hue: float
    """Turn in radians."""
    saturation: float
    """Factor."""
    brightness: float
    """Shift in units of the full range."""
    contrast: float
    """Factor."""
    sharpness: float
    """Unsharp mask's amount, 0 or more; 0 where the picture is reduced."""
    downscale: float
    """Reduction, 1 or more; 1 where the picture is sharpened."""
    jpeg: int
    """Quality 1 to 100; 0 leaves the compression out."""
    poisson: bool
    """Poisson blending, otherwise alpha blending."""
    on_foreground: bool
    """Whether the foreground is recoloured, otherwise the background."""

    def __post_init__(self) -> None:
        if not self.regions or any(name not in REGION_NAMES for name in self.regions):
            raise ValueError(
                f"regions must be some of {', '.join(REGION_NAMES)}, got {self.regions}"
            )
        if self.field.ndim != 3 or self.field.shape[0] != 2 or self.field.dtype != np.float32:
            raise ValueError(
                f"field must be (2, n, n) float32, got {self.field.shape} {self.field.dtype}"
            )
        for name in ("growth", "softness", "scale", "opacity"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be over 0, got {getattr(self, name)}")
        if self.downscale < 1 or not 0 <= self.jpeg <= 100:
            raise ValueError(
                f"downscale must be 1 or more and jpeg 0 to 100, got {self.downscale}, {self.jpeg}"
            )


class PlanColumns(SimpleNamespace):
    """The numbers of B plans under their names in :class:`ForgeryPlan`, each an array (B,)."""

    def __init__(self, plans: Sequence[ForgeryPlan]) -> None:
        super().__init__(
            **{
                item.name: np.array([getattr(plan, item.name) for plan in plans])
                for item in fields(ForgeryPlan)
                if item.name not in ("regions", "field")
            }
        )


def draw_plans(config: SimulatorConfig, seed: int) -> Iterator[ForgeryPlan]:
    """Plans for one face, endlessly: the first, and those that follow a plan that was too faint.

    Args:
        config: Ranges.
        seed: 0 or more; all plans follow from it.
    """
    rng = np.random.default_rng(seed)
    while True:
        yield _draw(config, rng)


def _draw(config: SimulatorConfig, rng: np.random.Generator) -> ForgeryPlan:
    # One call for all numbers: a call for each takes longer than the forgery's mask.
    draws = iter(rng.random(len(_RANGES) + len(_LIMITS) + len(PARTS) + 8).tolist())

    if next(draws) < config.whole_face:
        regions: tuple[str, ...] = (WHOLE_FACE,)
    else:
        count = 1 + int(next(draws) * config.max_regions)
        ranks = sorted((next(draws), name) for name in PARTS)
        chosen = {name for _, name in ranks[:count]}
        regions = tuple(name for name in PARTS if name in chosen)
    values = {}
    for name in _RANGES:
        low, high = getattr(config, name)
        values[name] = low + (high - low) * next(draws)
    for name, limit in _LIMITS:
        values[name] = getattr(config, limit) * (2 * next(draws) - 1)
    # Sharpening what was reduced would undo it: one or the other.
    if values["sharpness"] < 0:
        values["sharpness"] = 0.0
    else:
        values["downscale"] = 1.0
    values["opacity"] = config.opacity[int(next(draws) * len(config.opacity))]
    low, high = config.jpeg_quality
    compressed, quality = next(draws) < config.jpeg, low + int(next(draws) * (high - low + 1))
    cells = config.cells[0] + int(next(draws) * (config.cells[1] - config.cells[0] + 1))
    return ForgeryPlan(
        regions=regions,
        field=rng.standard_normal((2, cells, cells), dtype=np.float32),
        jpeg=quality if compressed else 0,
        poisson=next(draws) < config.poisson,
        on_foreground=next(draws) < config.on_foreground,
        **values,
    )
