"""Reading a photograph as upright 8-bit RGB, whatever the file holds."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""File types that folders are searched for."""


def read_image(path: str | PathLike) -> np.ndarray:
    """Read an image, turned upright by its EXIF orientation.

    Transparent pixels are laid over white; palettes, CMYK and grey become RGB; 16-bit grey is
    scaled to 8 bits; of an animation the first frame is taken.

    Args:
        path: The file.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Broken, not an image, of a mode without a natural 8-bit form, or larger than
            Pillow's guard against decompression bombs; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; check the path")
    try:
        with warnings.catch_warnings(), _no_truncated_images():
            # Pillow only warns up to twice its limit, by which time a folder's run is out of
            # memory.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{path} has more than {Image.MAX_IMAGE_PIXELS} pixels, the limit against "
            "decompression bombs; make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if it can "
            "be trusted"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{path} is not an image, or of a type that Pillow cannot read") from error
    except MemoryError:
        raise
    # Pillow's decoders raise OSError, SyntaxError, struct.error, ZeroDivisionError and more on
    # broken files, depending on where they are broken.
    except Exception as error:
        raise ValueError(f"{path} could not be read as an image: {error}") from error


@contextmanager
def _no_truncated_images() -> Iterator[None]:
    """Some packages (lmms-eval) tell Pillow on import to fill up what a file lacks with grey."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):
        # 16-bit grey, as I;16 or widened to I; full scale is 65535 = 257 * 255.
        values = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
        grey = ((values + 128) // 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("it holds floating-point values of unknown range; save it as 8-bit RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))
