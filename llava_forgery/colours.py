"""Conversion of pictures of any mode and colour profile to 8-bit sRGB."""

import io
import logging
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

logger = logging.getLogger(__name__)

# Modes for which a profile of this colour space is valid.
_MODES = {"RGB ": ("RGB", "RGBA"), "GRAY": ("L", "LA"), "CMYK": ("CMYK",), "Lab ": ("LAB",)}
# A profile that moves no colour farther is equivalent to sRGB: its pixels are left unchanged.
_SAME = 2


def converter(image: Image.Image) -> Callable[[Image.Image], np.ndarray]:
    """Converter of parts of a picture to sRGB.

    Args:
        image: Whole picture, whose profile is used.

    Returns:
        Function from a part of the image to (h, w, 3) uint8.

    Raises:
        ValueError: The mode has no natural 8-bit form.
    """
    if image.mode == "F":
        raise ValueError("it holds floating-point values of unknown range; save it as 8-bit RGB")
    if image.mode.startswith("I"):
        low, high = image.getextrema()
        if not 0 <= low <= high < 1 << 16:
            raise ValueError(
                f"it holds 32-bit values from {low} to {high} of unknown range; save it with 8 or "
                "16 bits"
            )
        hidden = image.info.get("transparency")
        return lambda part: _from_sixteen_bits(part, hidden)
    transform = _transform(image)
    return lambda part: _from_eight_bits(part, transform)


def array_to_rgb(pixels: np.ndarray) -> np.ndarray:
    """Convert an array, as for :func:`llava_forgery.images.to_rgb`, to (H, W, 3) uint8.

    Raises:
        ValueError: Shape or dtype are not supported.
    """
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1] if pixels.ndim == 3 else 0
    if pixels.dtype not in (np.uint8, np.uint16) or not 1 <= channels <= 4 or not pixels.size:
        raise ValueError(
            f"expected (H, W, 3) uint8 RGB, or grey, or with alpha, or uint16, got {pixels.dtype} "
            f"{pixels.shape}; multiply floats in [0, 1] by 255 first"
        )
    if pixels.dtype == np.uint16:
        pixels = _eight_bits(pixels)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    colours = pixels[..., : 1 if channels < 3 else 3]
    if channels in (2, 4):
        colours = _over_white(colours, pixels[..., -1:])
    return colours if channels >= 3 else np.repeat(colours, 3, axis=2)


def _from_sixteen_bits(part: Image.Image, hidden: int | None) -> np.ndarray:
    values = np.asarray(part)
    grey = _eight_bits(values)
    if hidden is not None:
        grey[values == hidden] = 255
    return np.repeat(grey[..., None], 3, axis=2)


def _eight_bits(values: np.ndarray) -> np.ndarray:
    # Full scale is 65535 = 257 * 255.
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _from_eight_bits(part: Image.Image, transform: ImageCms.ImageCmsTransform | None) -> np.ndarray:
    part = _plain(part)
    alpha = None
    if part.mode in ("LA", "RGBA"):
        alpha = np.asarray(part.getchannel("A"))[..., None]
        part = part.convert(part.mode[:-1])
    if transform is not None:
        part = ImageCms.applyTransform(part, transform)
    pixels = np.asarray(part.convert("RGB"))
    return pixels if alpha is None else _over_white(pixels, alpha)


def _over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    weight = alpha.astype(np.uint16)
    return ((colours * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)


def _plain(part: Image.Image) -> Image.Image:
    """One of the modes L, LA, RGB, RGBA, CMYK and LAB, with all transparency in alpha."""
    if part.mode in ("CMYK", "LAB"):
        return part
    if part.mode in ("La", "RGBa"):
        return part.convert({"La": "LA", "RGBa": "RGBA"}[part.mode])
    if part.mode in ("1", "L", "LA"):
        return part.convert("LA" if part.has_transparency_data else "L")
    return part.convert("RGBA" if part.has_transparency_data else "RGB")


def _transform(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """Transform of a picture's colours to sRGB; None if they already are."""
    mode = _plain(image.crop((0, 0, 1, 1))).mode
    base = mode.removesuffix("A") if mode in ("LA", "RGBA") else mode
    data = image.info.get("icc_profile")
    try:
        if mode == "LAB":
            profile = ImageCms.createProfile("LAB")
        elif data:
            profile = ImageCms.getOpenProfile(io.BytesIO(data))
            space = profile.profile.xcolor_space
            if mode not in _MODES.get(space, ()):
                logger.warning(
                    "a picture's colour profile is for %s and its pixels are %s: the profile is "
                    "not used", space.strip(), mode,
                )  # fmt: skip
                return None
        else:
            return None
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), base, "RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        logger.warning("a picture's colour profile is broken (%s) and is not used", error)
        return None
    if base == "RGB":
        probe = Image.fromarray(_PROBE)
        moved = np.asarray(ImageCms.applyTransform(probe, transform)).astype(int) - _PROBE
        if np.abs(moved).max() <= _SAME:
            return None
    return transform


# Colours throughout the cube: (1, 729, 3).
_PROBE = np.stack(np.meshgrid(*[np.linspace(0, 255, 9)] * 3), axis=-1).reshape(1, -1, 3)
_PROBE = _PROBE.round().astype(np.uint8)
