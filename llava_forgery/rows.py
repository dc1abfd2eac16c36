"""Writing rows as a Hugging Face data set, one after another."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from datasets.arrow_writer import ArrowWriter
from datasets.table import InMemoryTable


def write_rows(
    rows: Callable[[], Iterator[dict[str, Any]]], features: datasets.Features, folder: Path
) -> None:
    """Write a data set to a folder; memory does not grow with the number of rows.

    Args:
        rows: Gives the rows; what it raises passes through.
        features: Of the rows.
        folder: To write; a temporary name, to be renamed by the caller.
    """
    # An empty data set lays out the folder, then its one file is written anew, row by row.
    # Building a data set and saving it would write everything twice, and read it back through a
    # memory map, whose pages count as memory of this process.
    empty = datasets.Dataset(
        InMemoryTable(features.arrow_schema.empty_table()),
        datasets.DatasetInfo(features=features),
        # A name of its own: a cached result of another data set must not be taken for this one's.
        fingerprint=uuid.uuid4().hex,
    )
    with _quiet_bars():
        empty.save_to_disk(str(folder), num_shards=1)
    (arrow,) = folder.glob("*.arrow")
    with ArrowWriter(path=str(arrow), features=features) as writer:
        for row in rows():
            writer.write(features.encode_example(row))
        writer.finalize()


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
