"""An input of fault_campaign, and functions that write most of them."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SAME, REFUSED, PASSED_BY = "same", "refused", "passed by"
# Pictures that detect refuses or passes by, but that are valid general data for training.
WITHOUT_FACE = ("no face.png", "one pixel.png", "a line.png", ".hidden.jpg")


@dataclass(frozen=True)
class Input:
    """A file and its expected outcome."""

    name: str
    """Path relative to the folder of all inputs; undecodable bytes are surrogates."""
    make: Callable[[Path, Image.Image], object]
    """Writes the file, given its path and the photograph."""
    expected: str = REFUSED
    """``SAME``: read, and shows the photograph; ``REFUSED``: an error that names the file;
    ``PASSED_BY``: neither picture nor video, or hidden."""
    tolerance: float = 8.0
    """Largest mean difference from the photograph by coding, in levels of 255."""
    package: str | None = None
    """Package that is needed to make the file."""


def saved(**options: Any) -> Callable[[Path, Image.Image], object]:
    """Writes the photograph, with options of Pillow."""
    return lambda path, photo: photo.save(path, **options)


def converted(
    convert: Callable[[np.ndarray], np.ndarray], **options: Any
) -> Callable[[Path, Image.Image], object]:
    """Writes a picture made from the photograph's pixels."""
    return lambda path, photo: Image.fromarray(convert(np.asarray(photo))).save(path, **options)


def data_file(data: bytes) -> Callable[[Path, Image.Image], object]:
    """Writes bytes, whatever the photograph."""
    return lambda path, photo: path.write_bytes(data)


def encoded(photo: Image.Image, form: str, **options: Any) -> bytes:
    """The photograph as a file in memory."""
    buffer = io.BytesIO()
    photo.save(buffer, form, **options)
    return buffer.getvalue()
