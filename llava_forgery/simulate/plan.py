"""All random choices of a forgery, made before a pixel is touched.

A plan follows from a seed alone; rendering draws nothing. The same seed therefore gives the same
forgery whatever stands beside it in a batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from types import SimpleNamespace
from typing import Any

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

SELF, SWAP, REENACTMENT = KINDS = ("self", "swap", "reenactment")
"""What is blended in: the photograph itself, another person's face, or itself with another
expression."""
TEXTURES = ("camera", "network", "smooth", "grain")
"""How it looks: as it is; reduced, enlarged and sharpened; its skin smoothed; with noise."""
# Regions that a reenactment draws anew, and how often of all.
_REENACTED = (
    (0.3, ("mouth",)), (0.6, ("mouth", "chin")), (0.8, ("mouth", "chin", "cheeks")),
    (1.0, (WHOLE_FACE,)),
)  # fmt: skip
# How much of a self-blend's moves and recolouring is left where the source itself differs.
_MOVES = {SELF: 1.0, SWAP: 0.4, REENACTMENT: 0.2}
_COLOURS = {SELF: 1.0, SWAP: 0.7, REENACTMENT: 0.3}


@dataclass(frozen=True, eq=False)
class ForgeryPlan:
    """What one forgery is made of. Lengths are shares of the image's longer side."""

    regions: tuple[str, ...]
    """Names, in the order of ``REGION_NAMES``."""
    displacement: np.ndarray
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
    kind: str = SELF
    """One of ``KINDS``."""
    texture: str = "camera"
    """One of ``TEXTURES``, of the foreground before it is moved and recoloured."""
    draws: np.ndarray = field(default_factory=lambda: np.zeros(12, np.float32))
    """(12,) float32, standard normal: of the colours, the expression and the texture."""

    def __post_init__(self) -> None:
        if not self.regions or any(name not in REGION_NAMES for name in self.regions):
            raise ValueError(
                f"regions must be some of {', '.join(REGION_NAMES)}, got {self.regions}"
            )
        if (
            self.displacement.ndim != 3
            or self.displacement.shape[0] != 2
            or self.displacement.dtype != np.float32
        ):
            raise ValueError(
                "displacement must be (2, n, n) float32, got "
                f"{self.displacement.shape} {self.displacement.dtype}"
            )
        if self.kind not in KINDS or self.texture not in TEXTURES or self.draws.shape != (12,):
            raise ValueError(
                f"kind must be one of {', '.join(KINDS)}, texture one of {', '.join(TEXTURES)} and "
                f"draws (12,), got {self.kind!r}, {self.texture!r} and {self.draws.shape}"
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
                if item.name not in ("regions", "displacement", "kind", "texture", "draws")
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
        plan = _draw(config, rng)
        yield _draw_kind(plan, config, rng) if config.draws_kinds else plan


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
        displacement=rng.standard_normal((2, cells, cells), dtype=np.float32),
        jpeg=quality if compressed else 0,
        poisson=next(draws) < config.poisson,
        on_foreground=next(draws) < config.on_foreground,
        **values,
    )


def _draw_kind(plan: ForgeryPlan, config: SimulatorConfig, rng: np.random.Generator) -> ForgeryPlan:
    """The plan of a self-blend, made one of any kind."""
    which, where, textured, texture = rng.random(4).tolist()
    kind = SELF
    if which < config.swap:
        kind = SWAP
    elif which < config.swap + config.reenactment:
        kind = REENACTMENT
    changes: dict[str, Any] = {}
    if kind == SWAP and where < 0.75:
        changes["regions"] = (WHOLE_FACE,)
    elif kind == REENACTMENT:
        changes["regions"] = next(regions for share, regions in _REENACTED if where < share)
    if kind != SELF:
        changes["opacity"] = 1.0
        for name in ("angle", "shift_x", "shift_y"):
            changes[name] = getattr(plan, name) * _MOVES[kind]
        changes["scale"] = 1 + (plan.scale - 1) * _MOVES[kind]
        for name in ("red", "green", "blue", "hue", "brightness"):
            changes[name] = getattr(plan, name) * _COLOURS[kind]
        for name in ("saturation", "contrast"):
            changes[name] = 1 + (getattr(plan, name) - 1) * _COLOURS[kind]
    return replace(
        plan,
        kind=kind,
        texture=TEXTURES[1 + int(3 * texture)] if textured < config.texture else "camera",
        draws=rng.standard_normal(12, dtype=np.float32),
        **changes,
    )
