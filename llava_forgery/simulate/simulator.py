"""From a photograph and its landmarks to a simulated forgery (LVLM-DFD, section 3.3).

One to three regions are chosen; a slightly moved and recoloured copy of the photograph is blended
into the photograph under the softened hull of these regions (equation 6). Everything about the
forgery is then known: the pristine image, the mask and the regions' names.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch

from llava_forgery.constants import REGION_NAMES, WHOLE_FACE
from llava_forgery.simulate import augment, blend, masks

PARTS = tuple(name for name in REGION_NAMES if name != WHOLE_FACE)


@dataclass(frozen=True)
class SimulatorConfig:
    """How forgeries are drawn. Ranges are (low, high), drawn uniformly unless said otherwise."""

    max_regions: int = 3
    """At most this many regions beside each other (the paper: 1 to 3)."""
    whole_face: float = 0.25
    """Probability that the whole inner face is forged instead of single regions."""
    poisson: float = 0.3
    """Probability of Poisson blending; otherwise alpha blending."""
    growth: tuple[float, float] = (0.95, 1.2)
    """Scale of each hull about its centre."""
    deformation: tuple[float, float] = (0.0, 0.015)
    """Standard deviation of the mask's elastic displacement, as a share of the image's side."""
    softness: tuple[float, float] = (0.004, 0.03)
    """Standard deviation of the mask's blur, as a share of the image's side."""
    opacity: tuple[float, ...] = (0.5, 0.75, 1.0, 1.0, 1.0)
    """Factors of the mask, one drawn; self-blended images use such a list as well."""
    angle: float = 0.05
    """Largest turn of the foreground in radians, either way."""
    scale: tuple[float, float] = (0.95, 1.05)
    """Scale of the foreground."""
    shift: float = 0.025
    """Largest move of the foreground in x and in y, as a share of the image's side."""
    rgb: float = 0.08
    """Largest shift of a colour channel, in units of the full range."""
    hue: float = 0.12
    """Largest turn of the hue in radians."""
    saturation: tuple[float, float] = (0.7, 1.3)
    """Factor of the saturation."""
    brightness: float = 0.08
    """Largest change of the brightness, in units of the full range."""
    contrast: tuple[float, float] = (0.85, 1.2)
    """Factor of the contrast."""
    sharpness: tuple[float, float] = (-1.0, 1.5)
    """Unsharp mask's amount; negative blurs."""
    downscale: tuple[float, float] = (1.0, 2.5)
    """Reduction of one side and back to its size."""
    on_foreground: float = 0.7
    """Probability that the foreground is recoloured; otherwise the background is."""
    min_difference: float = 2.0
    """Least mean change inside the mask, in grey levels of 255; a fainter one is drawn anew."""
    max_draws: int = 8
    """Draws after which the strongest one is kept."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_regions <= len(PARTS):
            raise ValueError(f"max_regions must be 1 to {len(PARTS)}, got {self.max_regions}")
        for name in ("whole_face", "poisson", "on_foreground"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is a probability in [0, 1], got {value}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple) and field.name != "opacity" and value[0] > value[1]:
                raise ValueError(f"{field.name} must be (low, high), got {value}")
        if not self.opacity or not all(0 < value <= 1 for value in self.opacity):
            raise ValueError(f"opacity holds factors in (0, 1], got {self.opacity}")
        if self.softness[0] <= 0 or self.max_draws < 1:
            raise ValueError("softness must be over 0 and max_draws at least 1")


class ForgedFaces(NamedTuple):
    """A batch of simulated forgeries."""

    image: torch.Tensor
    """(B, 3, H, W) in [0, 1], the forged faces."""
    pristine: torch.Tensor
    """(B, 3, H, W) in [0, 1], equal to ``image`` wherever the mask is 0."""
    mask: torch.Tensor
    """(B, 1, H, W) in [0, 1], over 0.5 inside the forged area."""
    regions: tuple[tuple[str, ...], ...]
    """Per sample the names of the forged regions, in the order of ``REGION_NAMES``."""


@dataclass(frozen=True)
class _Draw:
    """All random choices for one forgery, so that its pixels follow from them alone."""

    regions: tuple[str, ...]
    numbers: dict[str, float]
    field: torch.Tensor
    poisson: bool
    on_foreground: bool


class ForgerySimulator:
    """Makes simulated forgeries out of real faces.

    Args:
        config: How they are drawn; the defaults if None.

    Example:
        >>> simulator = ForgerySimulator()
        >>> faces = simulator(images, landmarks, torch.Generator().manual_seed(0))
        >>> faces.image.shape == images.shape
        True
    """

    def __init__(self, config: SimulatorConfig | None = None) -> None:
        self.config = config or SimulatorConfig()

    @torch.no_grad()
    def __call__(
        self,
        images: torch.Tensor,
        landmarks: torch.Tensor,
        generator: torch.Generator | Sequence[torch.Generator],
    ) -> ForgedFaces:
        """Forge a batch.

        Args:
            images: (B, 3, H, W) float in [0, 1], real faces.
            landmarks: (B, 68, 2) float pixels of these images.
            generator: CPU generator for the batch, or one for each sample: then a sample's
                forgery depends on its own generator alone, whatever stands beside it.

        Returns:
            The forged faces, on the images' device.

        Raises:
            ValueError: Shapes, dtype or range are not as above; a face lies outside its image.
        """
        _check(images, landmarks)
        if isinstance(generator, torch.Generator):
            seeds = torch.randint(2**62, (len(images),), generator=generator)
            generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        else:
            generators = list(generator)
        if len(generators) != len(images):
            raise ValueError(
                f"expected one generator or one for each of the {len(images)} images, "
                f"got {len(generators)}"
            )
        points = landmarks.detach().cpu().numpy().astype(np.float32)
        best = [
            self._forge(images[i : i + 1], points[i], generators[i]) for i in range(len(images))
        ]
        return ForgedFaces(
            torch.cat([item.image for item in best]),
            torch.cat([item.pristine for item in best]),
            torch.cat([item.mask for item in best]),
            tuple(item.regions[0] for item in best),
        )

    def _forge(
        self, image: torch.Tensor, landmarks: np.ndarray, generator: torch.Generator
    ) -> ForgedFaces:
        """One forgery that changes enough to be seen, or the strongest of ``max_draws``."""
        best, strongest = None, -1.0
        for _ in range(self.config.max_draws):
            forged = self._apply(image, landmarks, self._draw(generator))
            inside = forged.mask > 0.5
            change = (forged.image - forged.pristine).abs().mean(dim=1, keepdim=True)
            difference = 255 * float(change[inside].mean()) if inside.any() else -1.0
            if difference > strongest:
                best, strongest = forged, difference
            if strongest >= self.config.min_difference:
                break
        if best is None:
            raise ValueError("no region of the face lies inside the image: check the landmarks")
        return best

    def _draw(self, generator: torch.Generator) -> _Draw:
        config = self.config

        def uniform(low: float, high: float) -> float:
            return low + (high - low) * float(torch.rand((), generator=generator))

        if uniform(0, 1) < config.whole_face:
            regions: tuple[str, ...] = (WHOLE_FACE,)
        else:
            count = 1 + int(torch.randint(config.max_regions, (), generator=generator))
            chosen = set(torch.randperm(len(PARTS), generator=generator)[:count].tolist())
            regions = tuple(name for i, name in enumerate(PARTS) if i in chosen)
        numbers = {
            name: uniform(*getattr(config, name))
            for name in ("growth", "deformation", "softness", "scale", "saturation", "contrast",
                         "sharpness", "downscale")
        }  # fmt: skip
        for name in ("angle", "hue", "brightness"):
            limit = getattr(config, name)
            numbers[name] = uniform(-limit, limit)
        for name in ("red", "green", "blue"):
            numbers[name] = uniform(-config.rgb, config.rgb)
        for name in ("shift_x", "shift_y"):
            numbers[name] = uniform(-config.shift, config.shift)
        choice = int(torch.randint(len(config.opacity), (), generator=generator))
        numbers["opacity"] = config.opacity[choice]
        return _Draw(
            regions=regions,
            numbers=numbers,
            field=torch.randn(1, 2, 6, 6, generator=generator),
            poisson=uniform(0, 1) < config.poisson,
            on_foreground=uniform(0, 1) < config.on_foreground,
        )

    def _apply(self, image: torch.Tensor, landmarks: np.ndarray, draw: _Draw) -> ForgedFaces:
        height, width = image.shape[-2:]
        value = {name: image.new_tensor([number]) for name, number in draw.numbers.items()}
        hull = masks.hull_mask(draw.regions, landmarks, (height, width), draw.numbers["growth"])
        mask = torch.from_numpy(hull).to(image)[None, None]
        mask = masks.deform(mask, draw.field.to(image), value["deformation"])
        mask = masks.soften(mask, value["softness"] * max(height, width))
        changed = self._recolour(image, value)
        foreground, background = (changed, image) if draw.on_foreground else (image, changed)
        shift = torch.stack([value["shift_x"], value["shift_y"]], dim=1)
        foreground = augment.affine(foreground, value["angle"], value["scale"], shift)
        mixed = blend.poisson_blend if draw.poisson else blend.alpha_blend
        forged = mixed(foreground, background, mask)
        forged = background + value["opacity"] * (forged - background)
        return ForgedFaces(forged.clamp(0, 1), background, mask, (draw.regions,))

    @staticmethod
    def _recolour(image: torch.Tensor, value: dict[str, torch.Tensor]) -> torch.Tensor:
        rgb = torch.stack([value["red"], value["green"], value["blue"]], dim=1)
        image = augment.shift_rgb(image, rgb)
        image = augment.shift_hsv(
            image, value["hue"], value["saturation"], torch.ones_like(value["hue"])
        )
        image = augment.change_contrast(image, value["brightness"], value["contrast"])
        # Sharpening what was reduced would undo it: one or the other, by the sharpness drawn.
        if float(value["sharpness"]) < 0:
            return augment.downscale(image, value["downscale"])
        return augment.sharpen(image, value["sharpness"])


def _check(images: torch.Tensor, landmarks: torch.Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"expected float images (B, 3, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    if landmarks.shape != (len(images), 68, 2):
        raise ValueError(
            f"expected landmarks ({len(images)}, 68, 2) in pixels, got {tuple(landmarks.shape)}"
        )
    if len(images) and (float(images.min()) < 0 or float(images.max()) > 1):
        raise ValueError(
            f"expected images in [0, 1], got [{float(images.min()):.3g}, "
            f"{float(images.max()):.3g}]; divide bytes by 255"
        )
