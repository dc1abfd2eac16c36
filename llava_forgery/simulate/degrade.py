"""Quality changes that forged and pristine images share, so that none of them tells them apart.

Compression, reduction, noise, light: whatever happens to a picture after it was made. Both images
of a pair are changed by the same amounts.
"""

from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import cv2
import numpy as np

from llava_forgery.simulate import pixels
from llava_forgery.simulate.codec import compress_h264, require_h264


@dataclass(frozen=True)
class DegradeConfig:
    """Probability of each change, and its range, drawn uniformly.

    Raises:
        ImportError: H.264 is among the changes, and PyAV with libx264 is not installed (extra
            ``train``); ``video=0`` leaves it out.
    """

    probability: float = 0.5
    """Probability of each single change below."""
    flip: float = 0.5
    """Probability of mirroring left and right."""
    video: float = 0.4
    """Share of the compressed pictures that H.264 compresses, as videos are, and not JPEG."""
    jpeg_quality: tuple[int, int] = (40, 95)
    """JPEG quality."""
    crf: tuple[int, int] = (15, 36)
    """H.264's constant rate factor; FaceForensics++ has 23 and 40. Much over 30 the traces of a
    forgery go with the rest, and training learns more slowly."""
    frames: tuple[int, int] = (1, 1)
    """Frames of the video that H.264 encodes; of more than one the last is kept, which is predicted
    from the others."""
    motion: float = 0.01
    """Largest move from frame to frame in x and in y, as a share of the picture's side."""
    video_scale: tuple[float, float] = (1.0, 1.0)
    """Size of the face in the encoded video, as a factor of the picture's size, drawn uniformly on
    a logarithmic scale. The picture is brought to it, encoded, and brought back."""
    again: float = 0.0
    """Probability that what was compressed is compressed once more, anew drawn."""
    before: float = 0.0
    """Probability that the photograph is compressed before it is forged: forgeries of videos are
    made from videos, and what is pasted has less of the traces of their compression."""
    sharpness: tuple[float, float] = (0.0, 0.0)
    """Amount of an unsharp mask before the compression; (0, 0) leaves it out."""
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
        for name in ("probability", "flip", "video", "again", "before"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not 1 <= self.jpeg_quality[0] <= self.jpeg_quality[1] <= 100:
            raise ValueError(f"jpeg_quality must be within 1 to 100, got {self.jpeg_quality}")
        if (self.probability or self.before) and self.video:
            # Not in the middle of a training, nor in one of its processes.
            require_h264()
        if not 0 <= self.crf[0] <= self.crf[1] <= 51:
            raise ValueError(f"crf must be within 0 to 51, got {self.crf}")
        if not 1 <= self.frames[0] <= self.frames[1] <= 16:
            raise ValueError(f"frames must be within 1 to 16, got {self.frames}")
        if not 0.1 <= self.video_scale[0] <= self.video_scale[1] <= 4:
            raise ValueError(f"video_scale must be within 0.1 to 4, got {self.video_scale}")
        if not 0 <= self.sharpness[0] <= self.sharpness[1] or self.motion < 0:
            raise ValueError(
                f"sharpness and motion must not be negative, got {self.sharpness} and {self.motion}"
            )


def degrade(
    images: np.ndarray, config: DegradeConfig, rng: np.random.Generator
) -> tuple[np.ndarray, bool]:
    """Change all images of one face alike.

    Args:
        images: (N, H, W, 3) uint8, such as the forged and the pristine image of a pair.
        config: Probabilities and ranges.
        rng: Of all draws.

    Returns:
        The images, and whether they were mirrored (mirror the mask with them).
    """
    count, height, width = images.shape[:3]
    # What works on single pixels sees the images below each other as one.
    stack = images.reshape(count * height, width, 3)
    mirrored = rng.random() < config.flip
    if mirrored:
        stack = cv2.flip(stack, 1)
    light, colour, reduced, noisy, compressed = rng.random(5) < config.probability
    if light or colour:
        changes: dict[str, Any] = {}
        if light:
            changes["brightness"] = rng.uniform(-config.brightness, config.brightness)
            changes["contrast"] = rng.uniform(*config.contrast)
        if colour:
            changes["hue"] = rng.uniform(-config.hue, config.hue)
            changes["saturation"] = rng.uniform(*config.saturation)
        matrix = pixels.colour_matrix(**changes, grey=pixels.mean_grey(stack))
        stack = pixels.recolour(stack, matrix)
    if reduced:
        factor = rng.uniform(*config.downscale)
        parts = [pixels.reduce(part, factor) for part in np.split(stack, count)]
        stack = np.concatenate([pixels.enlarge(part, (height, width)) for part in parts])
    if noisy:
        stack = add_noise(stack, rng.uniform(*config.noise), rng)
    if config.sharpness[1] and rng.random() < config.probability:
        amount = rng.uniform(*config.sharpness)
        stack = np.concatenate([pixels.sharpen(part, amount) for part in np.split(stack, count)])
    images = stack.reshape(images.shape)
    if compressed:
        images = _compress(images, config, rng)
        if rng.random() < config.again:
            images = _compress(images, config, rng)
    return images, bool(mirrored)


def compress_before(
    image: np.ndarray, config: DegradeConfig, rng: np.random.Generator
) -> np.ndarray:
    """What a photograph (H, W, 3) uint8 goes through before it is forged (``before``)."""
    if not config.before or rng.random() >= config.before:
        return image
    return _compress(image[None], config, rng)[0]


def _compress(images: np.ndarray, config: DegradeConfig, rng: np.random.Generator) -> np.ndarray:
    """All of (N, H, W, 3) through the same codec, at the same size and quality."""
    if rng.random() >= config.video:
        quality = int(rng.integers(config.jpeg_quality[0], config.jpeg_quality[1] + 1))
        return np.stack([pixels.compress(image, quality) for image in images])
    crf = int(rng.integers(config.crf[0], config.crf[1] + 1))
    size = images.shape[1:3]
    frames = int(rng.integers(config.frames[0], config.frames[1] + 1))
    factor = float(np.exp(rng.uniform(*np.log(config.video_scale))))
    motion = tuple((rng.uniform(-1, 1, 2) * config.motion * factor * max(size)).tolist())
    inner = pixels.reduced_size(size, 1 / factor)
    return np.stack(
        [
            pixels.resize(compress_h264(pixels.resize(image, inner), crf, frames, motion), size)
            for image in images
        ]
    )


def add_noise(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Add normal noise of ``sigma``, in units of the full range, to (H, W, 3) uint8.

    A random byte for each value picks one of 256 equally likely values of a normal variable: some
    twenty times as fast as drawing normals, and finer than the rounding to bytes needs. Above
    2.9 sigma nothing is drawn.
    """
    # 128 stands for no noise, so that the whole sum saturates only once.
    table = np.rint(128 + 255 * sigma * _normal_values()).clip(0, 255).astype(np.uint8)
    # The generator's own words: half the time of its bytes().
    words = rng.integers(2**64, size=-(-image.size // 8), dtype=np.uint64)
    drawn = words.view(np.uint8)[: image.size].reshape(image.shape)
    noise = cv2.LUT(drawn, table)
    return cv2.addWeighted(image, 1, noise, 1, -128)


@lru_cache(maxsize=1)
def _normal_values() -> np.ndarray:
    """The middles of 256 equal shares of a standard normal variable, scaled to variance 1."""
    values = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)])
    return values / values.std()
