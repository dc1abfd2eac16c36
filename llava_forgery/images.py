"""Pictures: supported formats, photographs as upright 8-bit sRGB, PNG with a note."""

import io
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from llava_forgery.colours import array_to_rgb, converter
from llava_forgery.files import atomic_path
from llava_forgery.optional import require

logger = logging.getLogger(__name__)

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp"),
    *(".tif", ".tiff", ".gif", ".avif", ".avifs", ".heic", ".heif", ".hif"),
)
"""Suffixes of pictures; the content of a file decides, however."""

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF")
"""Pillow's names of the supported formats, whatever the name of a file. Some of its other formats
run programs, such as Ghostscript for EPS. AVIF needs a Pillow that was built with it, HEIF the
package ``pillow-heif`` (extra ``heic``)."""

HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Brands of ISO media files that are HEIF pictures; those of AVIF are ``avif`` and ``avis``."""

_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
_ORIENTATION, _REDUCED, _RAW = 0x0112, 254, 50706
# By EXIF orientation: whether rows become columns, then which axes are mirrored.
_TURNS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
# Pixels converted at a time: enough for speed, few compared to a photograph.
_BAND_PIXELS = 1 << 21


def read_image(path: str | PathLike) -> np.ndarray:
    """Read a picture as its author saw it; see :func:`to_rgb`.

    Only the first frame of an animation or page of several is read, with a warning.

    Args:
        path: File to read; its content, not its name, determines the format.

    Returns:
        (H, W, 3) uint8 sRGB, upright.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is broken, in none of ``FORMATS``, of a mode without a natural 8-bit
            form, or larger than :func:`pixel_limit`; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; check the path")
    with open_image(path, str(path)) as image:
        _check_single(image, str(path))
        return to_rgb(image)


def decode_image(data: bytes, name: str) -> Image.Image:
    """Open an image file in memory, such as that of a data set.

    Args:
        data: Bytes of the file.
        name: Name of the file for error messages.

    Returns:
        The decoded image for :func:`to_rgb`, neither rotated nor converted.

    Raises:
        ValueError: As for :func:`read_image`.
    """
    with open_image(io.BytesIO(data), name) as image:
        return image.copy()


def to_rgb(image: Image.Image | np.ndarray) -> np.ndarray:
    """The pixels of a picture as viewers show them, in whatever form it is given.

    It is rotated upright by its EXIF orientation; its colour profile, such as Display P3's or a
    printer's, is converted to sRGB; palettes, CMYK and grey become RGB; transparent pixels are
    blended with white; 16 bits are scaled to 8.

    Args:
        image: A PIL image, or an array of uint8 or uint16: (H, W) or (H, W, 1) grey, (H, W, 2)
            grey with alpha, (H, W, 3) RGB, (H, W, 4) RGBA.

    Returns:
        (H, W, 3) uint8 sRGB; an array of this form is returned unchanged.

    Raises:
        ValueError: Shape or dtype are not supported, or the mode has no natural 8-bit form.
    """
    if isinstance(image, np.ndarray):
        return array_to_rgb(image)
    image.load()
    # A picture with broken EXIF data is still a picture.
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception as error:
        logger.warning("a picture's EXIF data is broken (%s), its orientation is unknown", error)
        orientation = 1
    lying, mirrored, flipped = _TURNS.get(orientation, _TURNS[1])
    width, height = image.size
    pixels = np.empty((width, height, 3) if lying else (height, width, 3), np.uint8)
    # A view of the result in the orientation of the stored picture, so that nothing is held twice.
    stored = pixels[:: -1 if flipped else 1, :: -1 if mirrored else 1]
    stored = stored.swapaxes(0, 1) if lying else stored
    convert = converter(image)
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        stored[top:bottom] = convert(image.crop((0, top, width, bottom)))
    return pixels


def pixel_limit() -> float:
    """Maximum pixels of a picture or frame: Pillow's limit against decompression bombs."""
    return Image.MAX_IMAGE_PIXELS or float("inf")


def set_pixel_limit(pixels: float) -> None:
    """Set the maximum pixels of pictures and frames in this process; infinity for no limit.

    Raises:
        ValueError: The limit is less than 1.
    """
    if pixels < 1:
        raise ValueError(f"the limit of pixels must be 1 or more, got {pixels}")
    Image.MAX_IMAGE_PIXELS = None if pixels == float("inf") else int(pixels)


def check_pixels(width: int, height: int, name: str) -> None:
    """Refuse pictures larger than :func:`pixel_limit`.

    Raises:
        ValueError: The picture is larger; the message gives the remedy.
    """
    if width * height > pixel_limit():
        raise ValueError(_too_large(name, width * height))


def _too_large(name: str, pixels: int) -> str:
    return (
        f"{name} has {pixels:,} pixels, more than {pixel_limit():,}, the limit against "
        "decompression bombs; if it can be trusted, raise the limit: --max-pixels "
        f"{pixels} (from Python: llava_forgery.images.set_pixel_limit), otherwise make it smaller"
    )


def is_heif(head: bytes) -> bool:
    """Whether a file that begins with these bytes, preferably 40, is HEIF, such as HEIC."""
    # The general brands occur in AVIF files too, followed by their own.
    return head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS and b"avif" not in head[12:40]


@contextmanager
def open_image(file: Path | BinaryIO, name: str) -> Iterator[Image.Image]:
    """The only place where the package opens a picture.

    Args:
        file: Path, or a seekable stream.
        name: Name of the file for error messages.

    Yields:
        The image, whose pixels are not read yet. Errors while it is open are attributed to it.

    Raises:
        ValueError: As for :func:`read_image`.
    """
    try:
        with _strict_pillow():
            _register_heif(file)
            with Image.open(file, formats=[f for f in FORMATS if f in Image.OPEN]) as image:
                check_pixels(*image.size, name)
                _check_photograph(image, file)
                yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        raise ValueError(
            _too_large(name, int(pixels[1])) if pixels else f"{name}: {error}"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(
            f"{name} is not an image, or of an unsupported format; expected one of "
            f"{', '.join(FORMATS)}: convert it"
        ) from error
    except MemoryError:
        raise
    except ImportError as error:
        raise ValueError(f"{name} is HEIF (HEIC): {error}") from error
    # Pillow's decoders raise OSError, SyntaxError, struct.error, ZeroDivisionError and more on
    # broken files, depending on where they are broken.
    except Exception as error:
        if str(error).startswith(name):
            raise
        raise ValueError(f"{name} could not be read as an image: {error}") from error


def _register_heif(file: Path | BinaryIO) -> None:
    """Add HEIF to Pillow when the first such file is read."""
    Image.init()
    if "HEIF" in Image.OPEN:
        return
    if isinstance(file, Path):
        with file.open("rb") as stream:
            head = stream.read(40)
    else:
        head = file.read(40)
        file.seek(0)
    if is_heif(head):
        heif = require("pillow_heif", extra="heic", feature="reading HEIF pictures")
        heif.register_heif_opener()


def _check_photograph(image: Image.Image, file: Path | BinaryIO) -> None:
    """Refuse raw files of cameras, of which Pillow would read a small preview."""
    if image.format != "TIFF":
        return
    tags = image.tag_v2
    # Canon's have a signature after the header of the TIFF.
    image.fp.seek(8)
    canon = image.fp.read(2) == b"CR"
    if canon or _RAW in tags or (tags.get(_REDUCED, 0) & 1):
        raise ValueError(
            "it is a camera's raw file, or begins with a reduced preview; develop it to a JPEG, "
            "PNG or TIFF"
        )


def _check_single(image: Image.Image, name: str) -> None:
    if image.format in (*_ANIMATED, "TIFF") and getattr(image, "is_animated", False):
        what = "pages" if image.format == "TIFF" else "frames"
        logger.warning("%s has %d %s, of which only the first is read", name, image.n_frames, what)


_strict_users, _strict_lock, _strict_state = 0, threading.Lock(), ExitStack()


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Turn Pillow's warnings of large pictures into errors, and never pad truncated files.

    Some packages (lmms-eval) configure Pillow on import to pad truncated files with grey. Both are
    settings of the process: the first thread that reads sets them, the last one restores them.
    """
    global _strict_users
    with _strict_lock:
        if not _strict_users:
            _strict_state.enter_context(warnings.catch_warnings())
            # Pillow only warns up to twice its limit, by which time a run over a folder is out of
            # memory.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            before = ImageFile.LOAD_TRUNCATED_IMAGES
            _strict_state.callback(setattr, ImageFile, "LOAD_TRUNCATED_IMAGES", before)
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        _strict_users += 1
    try:
        yield
    finally:
        with _strict_lock:
            _strict_users -= 1
            if not _strict_users:
                _strict_state.close()


def png_bytes(image: np.ndarray | Image.Image, note: str) -> bytes:
    """A PNG file with a note in its metadata.

    Args:
        image: Picture, or (H, W, 3) uint8 RGB.
        note: Description of the picture, which marks simulated forgeries as such.
    """
    info = PngInfo()
    info.add_text("Software", "llava-forgery")
    info.add_text("Description", note)
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    # PIL's default level takes two and a half times as long for 7 % fewer bytes.
    image.save(buffer, format="PNG", pnginfo=info, compress_level=3)
    return buffer.getvalue()


def save_png(image: Image.Image, path: str | PathLike, note: str) -> None:
    """Write a PNG atomically, with a note in its metadata; see :func:`png_bytes`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(png_bytes(image, note))
