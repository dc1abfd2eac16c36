"""Checks of the measures' arguments, with the same messages for all of them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from llava_forgery.constants import FAKE, REAL


class OneClassError(ValueError):
    """Raised if a measure needs real and fake images and one class is missing."""


def finite_values(values: ArrayLike, name: str) -> np.ndarray:
    """The values as (N,) float64.

    Raises:
        ValueError: The shape differs, the array is empty, or a value is not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{name} must be of shape (N,) with N > 0, got {values.shape}")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(f"{name} must be finite, got {values[bad[0]]} at position {bad[0]}")
    return values


def probabilities(values: ArrayLike, name: str) -> np.ndarray:
    """The values as (N,) float64 in [0, 1].

    Raises:
        ValueError: As for :func:`finite_values`, or a value is out of range.
    """
    values = finite_values(values, name)
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"{name} must lie in [0, 1], got {values.min():.3g} to {values.max():.3g}")
    return values


def checked_labels(labels: ArrayLike, both: str | None = None) -> np.ndarray:
    """The labels as (N,) int64 of 0 and 1.

    Args:
        labels: 0 for real, 1 for fake.
        both: Name of the measure that needs both classes; None if one is enough.

    Raises:
        OneClassError: The measure needs both classes and one is missing.
        ValueError: As for :func:`finite_values`, or a value is neither 0 nor 1.
    """
    values = finite_values(labels, "labels")
    found = np.unique(values).tolist()
    if not set(found) <= {REAL, FAKE}:
        raise ValueError(f"labels must be 0 (real) or 1 (fake), got {found}")
    if both and len(found) < 2:
        raise OneClassError(f"{both} needs real and fake images, got only labels {found}")
    return values.astype(np.int64)


def same_length(**arrays: Sequence | np.ndarray) -> None:
    """Check that arrays have the same length.

    Raises:
        ValueError: They differ, or are 0; the message names the arrays.
    """
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"lengths differ: {lengths}")
    if not any(lengths.values()):
        raise ValueError(f"{' and '.join(lengths)} are empty")
