"""Rows of Hugging Face data sets: written one by one, read without opening files, fingerprinted."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_forgery.optional import lazy

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
else:
    datasets, pa = lazy("datasets"), lazy("pyarrow")
pc = lazy("pyarrow.compute")


def write_rows(
    rows: Callable[[], Iterator[dict[str, Any]]], features: datasets.Features, folder: Path
) -> None:
    """Write a data set to a folder; memory does not grow with the number of rows.

    Args:
        rows: Returns the rows; its exceptions are propagated.
        features: Features of the rows.
        folder: Folder to write; a temporary name, to be renamed by the caller.
    """
    # An empty data set creates the folder, then its only file is rewritten row by row. Building a
    # data set and saving it would write everything twice, and read it back through a memory map,
    # whose pages count as memory of this process.
    empty = datasets.Dataset(
        datasets.table.InMemoryTable(features.arrow_schema.empty_table()),
        datasets.DatasetInfo(features=features),
        # A unique name, so that cached results of another data set are not used for this one.
        fingerprint=uuid.uuid4().hex,
    )
    with _quiet_bars():
        empty.save_to_disk(str(folder), num_shards=1)
    (arrow,) = folder.glob("*.arrow")
    with datasets.arrow_writer.ArrowWriter(path=str(arrow), features=features) as writer:
        for row in rows():
            writer.write(features.encode_example(_without_paths(row, features)))
        writer.finalize()


def load_rows(folder: str | PathLike) -> datasets.Dataset:
    """Load the data set of a folder, with pictures as from :func:`embedded`.

    Raises:
        FileNotFoundError: There is none.
        ValueError: As for :func:`embedded`, or there are several.
    """
    rows = datasets.load_from_disk(str(folder))
    if not isinstance(rows, datasets.Dataset):
        raise ValueError(f"{folder} holds the data sets {', '.join(rows)}; expected a single one")
    return embedded(rows, str(folder))


def embedded(rows: datasets.Dataset, name: str) -> datasets.Dataset:
    """Rows whose pictures are the bytes of the files embedded in them.

    ``datasets`` would otherwise open a path or URL in a row, wherever it leads.

    Args:
        rows: Rows, with the columns of pictures decoded or not.
        name: Name of the data set for error messages.

    Returns:
        The same rows; each picture is ``{"bytes": bytes, "path": ...}`` or None, for
        :func:`image_bytes`.

    Raises:
        ValueError: A row contains the path of a file instead of the file, or a column holds sound,
            video or the like, which ``datasets`` opens as well.
    """
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            _check_embedded(rows.data.column(column), f"column {column!r} of {name}")
            if feature.decode:
                rows = rows.cast_column(column, datasets.Image(mode=feature.mode, decode=False))
        elif datasets.features.features.require_decoding(feature):
            raise ValueError(
                f"column {column!r} of {name} holds {type(feature).__name__}, for which files "
                "would be opened; expected pictures, texts and numbers: remove the column"
            )
    return rows


def image_bytes(image: Mapping[str, Any], name: str) -> bytes:
    """The file in a row of :func:`embedded`.

    Raises:
        ValueError: There is no file, only a path.
    """
    data = image.get("bytes")
    if data is None:
        raise ValueError(
            f"{name} holds no picture but the path {image.get('path')!r}, which is not opened; "
            "a data set must hold its pictures: make it again with the command that wrote it"
        )
    return data


def _check_embedded(column: pa.ChunkedArray, name: str) -> None:
    for chunk in column.chunks:
        lacking = pc.and_(chunk.is_valid(), pc.is_null(pc.struct_field(chunk, "bytes")))
        row = pc.index(lacking, True).as_py()
        if row >= 0:
            image_bytes(chunk[row].as_py(), name)


def _without_paths(row: Mapping[str, Any], features: datasets.Features) -> dict[str, Any]:
    """Remove paths, as ``datasets`` would drop a picture's bytes if its path is that of a file."""
    return {
        column: {"bytes": image_bytes(value, column), "path": None}
        if isinstance(features[column], datasets.Image) and isinstance(value, Mapping)
        else value
        for column, value in row.items()
    }


def rows_digest(rows: datasets.Dataset) -> str:
    """SHA-256 of a data set's values; pictures are not read and count by their sizes in bytes.

    Unlike the data set's own fingerprint it is the same for a recreated data set and for a copy.

    Args:
        rows: Rows, whose columns all count, even if some rows were selected.
    """
    columns = {name: rows.data.column(name) for name in sorted(rows.column_names)}
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            columns[name] = pc.binary_length(pc.struct_field(columns[name], "bytes"))
    if rows._indices is not None:
        columns["rows that were selected"] = rows._indices.column(0)
    digest = hashlib.sha256()
    for name, column in columns.items():
        digest.update(f"{name} {column.type} {len(column)}".encode())
        for batch in pa.table({name: column}).to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()


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
