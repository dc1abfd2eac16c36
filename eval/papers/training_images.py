"""Which images a row of a table learns from."""

from collections.abc import Sequence
from os import PathLike

import datasets
import numpy as np

from llava_forgery.constants import REAL
from llava_forgery.faces.records import load_faces


def real_faces(folder: str | PathLike) -> datasets.Dataset:
    """The real faces of the split ``train``: all rows learn from these alone, as the paper's do.

    Raises:
        FileNotFoundError: There is no such folder, or no faces in it.
        ValueError: It has no training faces, or none that are real.
    """
    faces = load_faces(folder, split="train")
    real = [i for i, label in enumerate(faces["label"]) if label == REAL]
    if not real:
        raise ValueError(f"{folder} has no real faces to train on")
    return faces.select(real)


def choose_images(identities: Sequence[str], count: int, seed: int) -> list[int]:
    """Rows of ``count`` images, person after person in an order that the seed draws.

    Smaller choices of one seed are the beginnings of larger ones.

    Args:
        identities: Of each row.
        count: At most as many as there are rows.
        seed: Of the order of people, and of the images of each.

    Raises:
        ValueError: There are fewer images.
    """
    if not 0 < count <= len(identities):
        raise ValueError(f"count must be 1 to {len(identities)}, the images there are; got {count}")
    rng = np.random.default_rng(seed)
    rows: list[int] = []
    for name in rng.permutation(sorted(set(identities))):
        own = [i for i, identity in enumerate(identities) if identity == name]
        rows += [own[i] for i in rng.permutation(len(own))]
    return rows[:count]
