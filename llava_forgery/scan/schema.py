"""The records of a scan as Parquet: one row for each file, its faces nested in it.

A row is what ``detect --jsonl`` prints of the file, beside what identifies the file and what judged
it.
"""

from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

import pyarrow as pa

LAYOUT = b"1"
"""Of the columns: it rises when one of them goes or changes its type."""
_LAYOUT_KEY = b"llava_forgery.scan"

FRAME = pa.struct(
    [
        ("frame", pa.int32()),
        ("score", pa.float64()),
        ("p_yes", pa.float64()),
        ("seconds", pa.float64()),
    ]
)
SEGMENT = pa.struct(
    [
        ("first", pa.int32()),
        ("last", pa.int32()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("score", pa.float64()),
    ]
)
FACE = pa.struct(
    [
        ("box", pa.list_(pa.float64())),
        ("score", pa.float64()),
        ("band", pa.string()),
        ("threshold", pa.float64()),
        ("warnings", pa.list_(pa.string())),
        ("p_yes", pa.float64()),
        ("answer", pa.string()),
        ("truncated", pa.bool_()),
        ("regions", pa.list_(pa.string())),
        ("agree", pa.bool_()),
        ("overlay", pa.string()),
        # Of videos alone.
        ("frame", pa.int32()),
        ("seconds", pa.float64()),
        ("track", pa.int32()),
        ("frames", pa.list_(FRAME)),
        ("segments", pa.list_(SEGMENT)),
        # JPEG of the face beside its map, of flagged faces.
        ("picture", pa.binary()),
        # PNG of the map over the box, of flagged faces, on request.
        ("mask", pa.binary()),
    ]
)
SCHEMA = pa.schema(
    [
        ("schema_version", pa.int32()),
        ("file", pa.string()),
        ("sha256", pa.string()),
        ("size", pa.int64()),
        ("modified", pa.timestamp("ns", tz="UTC")),
        ("kind", pa.dictionary(pa.int8(), pa.string())),
        ("duplicate_of", pa.string()),
        ("error", pa.string()),
        ("faces", pa.list_(FACE)),
        # Highest of the faces' scores, and whether it reaches the lower threshold.
        ("score", pa.float64()),
        ("flagged", pa.bool_()),
        ("answers", pa.dictionary(pa.int8(), pa.string())),
        ("model", pa.dictionary(pa.int32(), pa.string())),
        ("weights", pa.dictionary(pa.int32(), pa.string())),
        ("versions", pa.dictionary(pa.int32(), pa.string())),
    ],
    metadata={_LAYOUT_KEY: LAYOUT},
)
"""Columns of a shard; ``docs/scan.md`` says what each of them means."""


def to_table(records: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Records as a table of :data:`SCHEMA`.

    Raises:
        ValueError: A record has a name that the schema lacks, or lacks one.
    """
    names = set(SCHEMA.names)
    for record in records:
        if set(record) != names:
            raise ValueError(
                f"a record has the fields {', '.join(sorted(record))}; expected "
                f"{', '.join(SCHEMA.names)}"
            )
        check_fields(record["faces"], FACE)
        for face in record["faces"]:
            check_fields(face.get("frames") or (), FRAME)
            check_fields(face.get("segments") or (), SEGMENT)
    return pa.Table.from_pylist(list(records), SCHEMA)


def check_fields(values: Iterable[Mapping[str, Any]], struct: pa.StructType) -> None:
    """Refuse names that a struct lacks, which pyarrow would leave out without a word.

    Raises:
        ValueError: It names them.
    """
    known = {field.name for field in struct}
    for value in values:
        if strange := set(value) - known:
            raise ValueError(
                f"the schema of a scan lacks {', '.join(sorted(strange))}; expected of "
                f"{', '.join(sorted(known))}"
            )


def check_layout(schema: pa.Schema, name: str) -> None:
    """Refuse a Parquet file that no scan of this layout wrote.

    Raises:
        ValueError: It names the file.
    """
    found = (schema.metadata or {}).get(_LAYOUT_KEY)
    if found != LAYOUT:
        raise ValueError(
            f"{name} is no file of a scan of layout {LAYOUT.decode()} (it says "
            f"{found.decode() if found else 'nothing'}); give the folder that scan wrote, or scan "
            "again with another --out"
        )


def versions() -> str:
    """Names and versions of what decides the records, in one line."""
    packages = ("llava-forgery", "torch", "transformers", "pillow", "av")
    found = []
    for package in packages:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)
