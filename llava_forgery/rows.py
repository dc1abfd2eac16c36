"""Writing rows as a Hugging Face data set, one after another."""

import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError


def write_rows(
    rows: Callable[[], Iterator[dict[str, Any]]], features: datasets.Features, folder: Path
) -> None:
    """Write a data set to a folder; memory does not grow with the number of rows.

    Args:
        rows: Gives the rows; what it raises passes through.
        features: Of the rows.
        folder: To write; a temporary name, to be renamed by the caller.
    """
    # The arrow file is first built beside its final place, never in the user's cache, and under a
    # name of its own: a cached result of another run must not be taken for this one.
    with _quiet_bars(), tempfile.TemporaryDirectory(prefix=".rows-", dir=folder.parent) as cache:
        try:
            dataset = datasets.Dataset.from_generator(
                rows, features=features, cache_dir=cache, fingerprint=uuid.uuid4().hex
            )
        except DatasetGenerationError as error:
            # What the caller's own generator raised says more than the wrapper.
            raise (error.__cause__ or error) from None
        dataset.save_to_disk(str(folder))


@contextmanager
def _quiet_bars() -> Iterator[None]:
    """Leave the terminal to the caller's own progress bar."""
    enabled = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if enabled:
            datasets.enable_progress_bars()
