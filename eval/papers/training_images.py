"""Training images of the rows of a table."""

from os import PathLike

import datasets
import numpy as np

from llava_forgery.constants import REAL
from llava_forgery.faces.records import load_faces


def real_faces(folder: str | PathLike) -> datasets.Dataset:
    """The real faces of the split ``train``: as in the paper, all rows learn from these only.

    Raises:
        FileNotFoundError: There is no such folder, or no faces in it.
        ValueError: It has no training faces, or none that are real.
    """
    faces = load_faces(folder, split="train")
    real = [i for i, label in enumerate(faces["label"]) if label == REAL]
    if not real:
        raise ValueError(f"{folder} has no real faces to train on")
    return faces.select(real)


def choose_images(images: int, count: int, seed: int) -> list[int]:
    """Rows of ``count`` images, drawn at random whoever is in them, as the paper's are.

    Smaller choices of one seed are the beginnings of larger ones.

    Args:
        images: How many there are.
        count: At most as many.
        seed: Of the draw.

    Raises:
        ValueError: There are fewer images.
    """
    if not 0 < count <= images:
        raise ValueError(f"count must be 1 to {images}, the images there are; got {count}")
    return np.random.default_rng(seed).permutation(images)[:count].tolist()
