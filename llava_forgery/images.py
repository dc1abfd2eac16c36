"""Pictures: the formats that are read, a photograph as upright 8-bit RGB, PNG with a note."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile, ImageOps
from PIL.PngImagePlugin import PngInfo

from llava_forgery.files import atomic_path

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""File types that folders are searched for."""

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF")
"""Pillow's names of the formats that are opened, whatever a file is called. Of its others some run
programs, such as Ghostscript for an EPS. AVIF is there if this Pillow was built with it, HEIF once
``pillow_heif.register_heif_opener()`` was called."""


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
        ValueError: Broken, of none of ``FORMATS``, of a mode without a natural 8-bit form, or
            larger than Pillow's guard against decompression bombs; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; check the path")
    return _read(path, str(path), lambda image: _to_rgb(ImageOps.exif_transpose(image)))


def decode_image(data: bytes, name: str) -> Image.Image:
    """Open an image file that is held in memory, such as a data set's.

    Args:
        data: The file's bytes.
        name: What error messages call it.

    Returns:
        The decoded image as it is: neither turned nor converted.

    Raises:
        ValueError: As :func:`read_image`.
    """
    return _read(io.BytesIO(data), name, Image.Image.copy)


def _read(file: Path | BinaryIO, name: str, convert: Callable[[Image.Image], Any]) -> Any:
    """The one place where the package opens a picture; what ``convert`` makes of it."""
    Image.init()
    try:
        with warnings.catch_warnings(), _no_truncated_images():
            # Pillow only warns up to twice its limit, by which time a folder's run is out of
            # memory.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=[f for f in FORMATS if f in Image.OPEN]) as image:
                image.load()
                return convert(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{name} has more than {Image.MAX_IMAGE_PIXELS} pixels, the limit against "
            "decompression bombs; make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if it can "
            "be trusted"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(
            f"{name} is not an image, or of a format that is not opened; expected one of "
            f"{', '.join(FORMATS)}: convert it"
        ) from error
    except MemoryError:
        raise
    # Pillow's decoders raise OSError, SyntaxError, struct.error, ZeroDivisionError and more on
    # broken files, depending on where they are broken.
    except Exception as error:
        raise ValueError(f"{name} could not be read as an image: {error}") from error


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


def png_bytes(image: np.ndarray | Image.Image, note: str) -> bytes:
    """A PNG file with a note in its metadata.

    Args:
        image: The picture, or (H, W, 3) uint8 RGB.
        note: Says what the picture is; simulated forgeries are marked as such here.
    """
    info = PngInfo()
    info.add_text("Software", "llava-forgery")
    info.add_text("Description", note)
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    # PIL's own level takes two and a half times as long for a fifteenth fewer bytes.
    image.save(buffer, format="PNG", pnginfo=info, compress_level=3)
    return buffer.getvalue()


def save_png(image: Image.Image, path: str | PathLike, note: str) -> None:
    """Write a PNG atomically, with a note in its metadata; see :func:`png_bytes`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(png_bytes(image, note))
