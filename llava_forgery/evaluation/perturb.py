"""Perturbations that pictures suffer on their way to a detector, each in five strengths.

Strengths range from hardly visible to the worst that is seen in the wild. Lengths in pixels are
given for a side of 224 and scale with the image. The same kinds of perturbation are usual in the
literature (DeeperForensics-1.0, arXiv:2001.03024, has seven in five levels); the strengths here are
our own.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import kornia.enhance
import kornia.filters
import numpy as np
import torch
from torchvision.transforms.v2 import functional as tv

from llava_forgery.simulate import augment
from llava_forgery.simulate.degrade import DegradeConfig, degrade
from llava_forgery.tensors import from_bytes, to_bytes

LEVELS = 5
REFERENCE_SIDE = 224


@dataclass(frozen=True)
class Perturbation:
    """One kind of perturbation."""

    name: str
    """Short name for tables and files."""
    unit: str
    """Meaning of a strength, as the label of a figure's axis."""
    strengths: tuple[float, ...]
    """Five strengths, the weakest first."""
    apply: Callable[[torch.Tensor, float, torch.Generator], torch.Tensor]
    """Maps an image (1, 3, S, S) in [0, 1], a strength and a CPU generator to the perturbed image,
    of the same shape and range."""

    def __post_init__(self) -> None:
        if len(self.strengths) != LEVELS:
            raise ValueError(f"{self.name} must have {LEVELS} strengths, got {self.strengths}")


def _jpeg(image: torch.Tensor, quality: float, generator: torch.Generator) -> torch.Tensor:
    return augment.compress_jpeg(image, torch.tensor([quality]))


def _resize(image: torch.Tensor, factor: float, generator: torch.Generator) -> torch.Tensor:
    return augment.downscale(image, torch.tensor([factor]))


def _blur(image: torch.Tensor, sigma: float, generator: torch.Generator) -> torch.Tensor:
    sigma *= image.shape[-1] / REFERENCE_SIDE
    kernel = 2 * math.ceil(3 * sigma) + 1
    return kornia.filters.gaussian_blur2d(image, (kernel, kernel), (sigma, sigma))


def _noise(image: torch.Tensor, sigma: float, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(image.shape, generator=generator)
    return augment.add_noise(image, noise, torch.tensor([sigma]))


def _gamma(image: torch.Tensor, gamma: float, generator: torch.Generator) -> torch.Tensor:
    # Half the pictures darker, half lighter: a detector may be biased towards either.
    darker = bool(torch.rand((), generator=generator) < 0.5)
    return kornia.enhance.adjust_gamma(image, gamma if darker else 1 / gamma)


def _crop(image: torch.Tensor, cut: float, generator: torch.Generator) -> torch.Tensor:
    side = image.shape[-1]
    kept = max(1, round(side * (1 - cut)))
    top, left = (int(torch.randint(side - kept + 1, (), generator=generator)) for _ in range(2))
    cropped = tv.resized_crop(image, top, left, kept, kept, [side, side], antialias=True)
    return cropped.clamp(0, 1)


# Size on the screen, gamma of the display, share cut off, JPEG quality; by level.
_SCREENSHOTS = (
    (0.95, 1.02, 0.01, 95.0),
    (0.85, 1.05, 0.02, 85.0),
    (0.70, 1.10, 0.04, 75.0),
    (0.55, 1.15, 0.06, 60.0),
    (0.40, 1.25, 0.08, 45.0),
)


def _screenshot(image: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
    """Shown smaller by a viewer, captured off-centre, saved, forwarded and saved again."""
    scale, gamma, cut, quality = _SCREENSHOTS[int(level) - 1]
    side = image.shape[-1]
    shown = max(8, round(side * scale))
    image = tv.resize(image, [shown, shown], antialias=True).clamp(0, 1)
    image = kornia.enhance.adjust_gamma(image, gamma)
    image = _crop(image, cut, generator)
    image = _jpeg(image, quality, generator)
    image = tv.resize(image, [side, side], antialias=True).clamp(0, 1)
    return _jpeg(image, quality, generator)


PERTURBATIONS = (
    Perturbation("jpeg", "JPEG quality", (90, 75, 60, 45, 30), _jpeg),
    Perturbation("resize", "reduced by, and enlarged again", (1.5, 2, 3, 4, 6), _resize),
    Perturbation("blur", "Gaussian blur, sigma in pixels", (0.5, 1, 1.5, 2, 3), _blur),
    Perturbation("noise", "Gaussian noise, sigma", (0.01, 0.02, 0.04, 0.07, 0.1), _noise),
    Perturbation("gamma", "gamma, or 1 / gamma", (1.2, 1.5, 1.8, 2.2, 2.6), _gamma),
    Perturbation("crop", "share of the side cut off", (0.05, 0.1, 0.15, 0.2, 0.25), _crop),
    Perturbation("screenshot", "screenshot chain, level", (1, 2, 3, 4, 5), _screenshot),
)


def perturb(
    image: np.ndarray, perturbation: Perturbation, level: int, key: str, seed: int = 0
) -> np.ndarray:
    """Perturb one image; deterministic for equal arguments.

    Noise and positions depend on the key, the kind and the seed, but not on the level, so that a
    curve over the levels shows only the effect of the strength.

    Args:
        image: (S, S, 3) uint8.
        perturbation: Kind of perturbation.
        level: 1 to 5 for its strengths; 0 leaves the image unchanged.
        key: Name of the image.
        seed: Seed of the measurement.

    Returns:
        (S, S, 3) uint8.

    Raises:
        ValueError: Shape or dtype of the image differ, or the level is out of range.
    """
    side = len(image)
    if image.dtype != np.uint8 or image.shape != (side, side, 3):
        raise ValueError(f"expected (S, S, 3) uint8, got {image.shape} {image.dtype}")
    if not 0 <= level <= LEVELS:
        raise ValueError(f"level must be 0 to {LEVELS}, got {level}")
    if level == 0:
        return image
    words = [zlib.crc32(text.encode()) for text in (perturbation.name, key)]
    state = np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state) % 2**63)
    strength = perturbation.strengths[level - 1]
    return to_bytes(perturbation.apply(from_bytes(image)[None], strength, generator)[0])


def as_on_the_web(images: np.ndarray, seed: int, place: int) -> np.ndarray:
    """Resize and compress pictures as platforms do: all alike, half of them twice.

    They are reduced to no less than half their size and enlarged again, then compressed as JPEG
    (quality 40 to 95) or H.264 (CRF 23 to 36), each for half of the places.

    Args:
        images: (N, S, S, 3) uint8, such as a forged and its pristine face.
        seed: Seed of the measurement.
        place: Index of the images in it; the result is the same for equal arguments.

    Raises:
        ImportError: PyAV is not installed (extra ``video``).
    """
    chain = DegradeConfig(
        probability=1.0, flip=0.0, video=0.5, crf=(23, 36), again=0.5,
        noise=(0.0, 0.0), brightness=0.0, contrast=(1.0, 1.0), hue=0.0, saturation=(1.0, 1.0),
    )  # fmt: skip
    rng = np.random.default_rng([zlib.crc32(b"as on the web"), seed, place])
    return degrade(images, chain, rng)[0]


def choose_perturbations(names: Sequence[str] | None) -> tuple[Perturbation, ...]:
    """Perturbations by name, in their usual order; all of them for None.

    Raises:
        ValueError: A name is unknown.
    """
    known = {p.name: p for p in PERTURBATIONS}
    if names is None:
        return PERTURBATIONS
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"unknown perturbations {unknown}; expected some of {', '.join(known)}")
    return tuple(p for p in PERTURBATIONS if p.name in names)


@dataclass(frozen=True)
class RobustnessPoint:
    """One point of one curve."""

    score: str
    """Score that is measured: ``"kfd"`` or ``"p_yes"``."""
    perturbation: str
    """Kind of perturbation; ``"none"`` for the unchanged images."""
    level: int
    """1 to 5; 0 for the unchanged images."""
    strength: float | None
    """Strength in the unit of its kind; None for the unchanged images."""
    auc: float
    """AUC over single images."""
    low: float
    """Lower end of its 95 % interval, resampled by video."""
    high: float
    """Upper end of its 95 % interval, resampled by video."""
