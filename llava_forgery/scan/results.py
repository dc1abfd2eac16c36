"""What comes of a file: the record that ``detect --jsonl`` prints, and what identifies it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import pyarrow as pa

from llava_forgery.infer.batch import FileVerdicts
from llava_forgery.scan.judge import is_flagged
from llava_forgery.scan.long import Part, pack_long, pack_part
from llava_forgery.scan.schema import SCHEMA
from llava_forgery.scan.sources import Entry
from llava_forgery.scan.units import Item

Record = Annotated[dict[str, Any], pa.struct(list(SCHEMA))]


@dataclass(frozen=True)
class Result:
    """What the workers of a scan give back of one file."""

    entry: Entry
    sha256: str | None
    record: Record | None
    """None of a file whose bytes another file has, which is judged in its place, and where there is
    a ``part``."""
    kind: str | None = None
    """``picture`` or ``video``."""
    part: Part | None = None
    """What a step of a long video gave."""
    overlay: bytes | None = None
    """PNG, to be written beside the records."""

    @property
    def path(self) -> str:
        """Of the file."""
        return self.entry.path


def to_result(item: Item, provenance: Mapping[str, str]) -> Result:
    """The result of an item that went through all stages.

    Args:
        item: With its verdicts and pictures, or its error.
        provenance: ``answers``, ``model``, ``weights`` and ``versions`` of the scan.
    """
    unit = item.unit
    if item.is_duplicate:
        return Result(unit.entry, item.sha256, None, item.kind)
    if item.long is not None:
        part = pack_long(item.sha256, item.long)
        return Result(unit.entry, item.sha256, None, item.kind, part)
    if item.error is None and unit.span is not None:
        part = pack_part(unit.span, item.seen, item.scores)
        return Result(unit.entry, item.sha256, None, item.kind, part)
    judged = FileVerdicts(item.path, error=item.error, faces=item.verdicts).to_dict()
    pictures = zip(judged["faces"], item.pictures, item.masks, strict=True)
    for face, picture, mask in pictures:
        face |= {"picture": picture, "mask": mask}
    entry = unit.entry
    record = {
        **judged,
        "sha256": item.sha256,
        **stat_columns(entry),
        "kind": item.kind or entry.kind,
        "duplicate_of": None,
        "score": max((verdict.score for verdict in item.verdicts), default=None),
        "flagged": any(is_flagged(verdict) for verdict in item.verdicts),
        **provenance,
    }
    return Result(entry, item.sha256, record, record["kind"], overlay=item.overlay)


def stat_columns(entry: Entry) -> dict[str, Any]:
    """The columns of a record that come from the listing."""
    return {"size": entry.size, "modified": entry.modified or None}


def copy_record(record: Mapping[str, Any], entry: Entry) -> dict[str, Any]:
    """The record of a file with the same bytes as the one that was judged.

    Args:
        record: Of the file that was judged.
        entry: The other file.
    """
    error = record["error"]
    return {
        **record,
        "file": entry.path,
        **stat_columns(entry),
        "duplicate_of": record["duplicate_of"] or record["file"],
        # A reason names the file that it is about.
        "error": error and error.replace(record["file"], entry.path),
    }
