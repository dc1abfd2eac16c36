"""What an input of fault_campaign is, and how most of them are written."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SAME, REFUSED, PASSED_BY = "same", "refused", "passed by"
# Pictures that detect refuses or passes by, and that are fit for a training's general data.
WITHOUT_FACE = ("no face.png", "one pixel.png", "a line.png", ".hidden.jpg")


@dataclass(frozen=True)
class Input:
    """A file, and what must become of it."""

    name: str
    """Relative to the folder of all inputs; bytes that are no text are written as surrogates."""
    make: Callable[[Path, Image.Image], object]
    """Writes it, given its path and the photograph."""
    expected: str = REFUSED
    """``SAME``: read, and shows the photograph; ``REFUSED``: an error that names the file;
    ``PASSED_BY``: neither picture nor video, or hidden."""
    tolerance: float = 8.0
    """Mean difference from the photograph that its coding may bring, in levels of 255."""
    package: str | None = None
    """Without it the file cannot be made."""


def saved(**options: Any) -> Callable[[Path, Image.Image], object]:
    """Writes the photograph, with options of Pillow's."""
    return lambda path, photo: photo.save(path, **options)


def converted(
    convert: Callable[[np.ndarray], np.ndarray], **options: Any
) -> Callable[[Path, Image.Image], object]:
    """Writes what is made of the photograph's pixels."""
    return lambda path, photo: Image.fromarray(convert(np.asarray(photo))).save(path, **options)


def data_file(data: bytes) -> Callable[[Path, Image.Image], object]:
    """Writes bytes, whatever the photograph."""
    return lambda path, photo: path.write_bytes(data)


def encoded(photo: Image.Image, form: str, **options: Any) -> bytes:
    """The photograph as a file in memory."""
    buffer = io.BytesIO()
    photo.save(buffer, form, **options)
    return buffer.getvalue()
