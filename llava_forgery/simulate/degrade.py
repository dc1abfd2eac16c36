"""Quality changes that forged and pristine images share, so that none of them tells them apart.

Compression, reduction, noise, light: whatever happens to a picture after it was made. Both images
of a pair are changed by the same amounts.
"""

from dataclasses import dataclass

import torch

from llava_forgery.simulate import augment


@dataclass(frozen=True)
class DegradeConfig:
    """Probability of each change, and its range, drawn uniformly."""

    probability: float = 0.5
    """Probability of each single change below."""
    flip: float = 0.5
    """Probability of mirroring left and right."""
    jpeg_quality: tuple[int, int] = (40, 95)
    """JPEG quality."""
    downscale: tuple[float, float] = (1.0, 2.0)
    """Reduction and back to the size."""
    noise: tuple[float, float] = (0.0, 0.02)
    """Standard deviation of Gaussian noise, in units of the full range."""
    brightness: float = 0.1
    """Largest change of the brightness, in units of the full range."""
    contrast: tuple[float, float] = (0.8, 1.25)
    """Factor of the contrast."""
    hue: float = 0.1
    """Largest turn of the hue in radians."""
    saturation: tuple[float, float] = (0.7, 1.3)
    """Factor of the saturation."""

    def __post_init__(self) -> None:
        for name in ("probability", "flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not 1 <= self.jpeg_quality[0] <= self.jpeg_quality[1] <= 100:
            raise ValueError(f"jpeg_quality must be within 1 to 100, got {self.jpeg_quality}")


def degrade(
    images: torch.Tensor, config: DegradeConfig, generator: torch.Generator
) -> tuple[torch.Tensor, bool]:
    """Change all images of one face alike.

    Args:
        images: (N, 3, H, W) in [0, 1], such as the forged and the pristine image of a pair.
        config: Probabilities and ranges.
        generator: CPU generator.

    Returns:
        The images, and whether they were mirrored (mirror the mask with them).
    """

    def uniform(low: float, high: float) -> torch.Tensor:
        value = low + (high - low) * float(torch.rand((), generator=generator))
        return images.new_full((len(images),), value)

    def happens(probability: float) -> bool:
        return float(torch.rand((), generator=generator)) < probability

    mirrored = happens(config.flip)
    if mirrored:
        images = images.flip(-1)
    if happens(config.probability):
        brightness = uniform(-config.brightness, config.brightness)
        images = augment.change_contrast(images, brightness, uniform(*config.contrast))
    if happens(config.probability):
        hue, saturation = uniform(-config.hue, config.hue), uniform(*config.saturation)
        images = augment.shift_hsv(images, hue, saturation, torch.ones_like(hue))
    if happens(config.probability):
        images = augment.downscale(images, uniform(*config.downscale))
    if happens(config.probability):
        noise = torch.randn(images.shape, generator=generator).to(images)
        images = augment.add_noise(images, noise, uniform(*config.noise))
    if happens(config.probability):
        images = augment.compress_jpeg(images, uniform(*config.jpeg_quality).round())
    return images, mirrored
