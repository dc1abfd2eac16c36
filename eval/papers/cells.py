"""Records of judged images, from which tables are made, kept under a key of their settings.

A cell is one row of a table, on one test set, with one seed::

    DIR/cells/<key>/settings.json     everything that determines the records; the key is its hash
    DIR/cells/<key>/records.jsonl     a line for each image

Folders are written as a whole, so a second run resumes where the first one stopped, and changed
settings lead to another folder.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from llava_forgery.constants import FAKE, REAL
from llava_forgery.files import (
    atomic_path,
    read_json,
    read_json_lines,
    write_json,
    write_json_lines,
)

logger = logging.getLogger(__name__)

CELLS, SETTINGS, RECORDS = "cells", "settings.json", "records.jsonl"


@dataclass(frozen=True)
class ImageRecord:
    """One judged image."""

    label: int
    """0 real, 1 fake."""
    score: float | None
    """A detector's or classifier's probability of fake; None if none was run."""
    p_yes: float | None
    """P(yes) of the language model; None if none was run."""
    identity: str
    """The person; intervals resample people."""
    video_id: str
    """Id shared by the images of a video, which are pooled."""
    regions: tuple[str, ...] = ()
    """Forged regions, if known."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "regions", tuple(self.regions))
        if self.label not in (REAL, FAKE):
            raise ValueError(f"label must be {REAL} (real) or {FAKE} (fake), got {self.label!r}")
        for name in ("score", "p_yes"):
            value = getattr(self, name)
            # In this form NaN fails as well.
            if value is not None and not (is_number(value) and 0 <= value <= 1):
                raise ValueError(f"{name} must lie in [0, 1] or be None, got {value!r}")
        if self.score is None and self.p_yes is None:
            raise ValueError("a record needs a score or p_yes, both are None")
        for name in ("identity", "video_id"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ValueError(f"{name} must be a text that is not empty, got {value!r}")

    @property
    def output(self) -> float:
        """Final output of the model: P(yes) if a language model was asked."""
        return self.score if self.p_yes is None else self.p_yes


def settings_key(settings: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that change with any setting, independent of the order of keys."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_cell(
    directory: str | PathLike,
    settings: Mapping[str, Any],
    judge: Callable[[], Iterable[ImageRecord]],
) -> list[ImageRecord]:
    """The records of a cell, read from disk or made by ``judge`` and written.

    Args:
        directory: Folder of the tables.
        settings: Everything that determines the records, JSON-serializable.
        judge: Called if there is no finished cell of these settings.

    Raises:
        ValueError: ``judge`` returns nothing, or a record on disk is damaged.
    """
    folder = Path(directory) / CELLS / settings_key(settings)
    if (folder / RECORDS).is_file() and (folder / SETTINGS).is_file():
        if read_json(folder / SETTINGS) != json.loads(json.dumps(settings)):
            raise ValueError(f"{folder} was made with other settings of the same key; remove it")
        logger.info("cell %s is there already", folder.name)
        return read_records(folder / RECORDS)
    records = list(judge())
    if not records:
        raise ValueError("the cell has no images")
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        write_json_lines(temporary / RECORDS, map(asdict, records))
        write_json(temporary / SETTINGS, settings)
    return records


def read_records(path: str | PathLike) -> list[ImageRecord]:
    """Read the records of :func:`run_cell`.

    Raises:
        ValueError: A line is not a record; the message names file and line.
    """
    records = []
    for number, row in enumerate(read_json_lines(path), start=1):
        try:
            records.append(ImageRecord(**row))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: {error}; remove its folder") from error
    return records


def read_other_records(path: str | PathLike, test: str) -> list[ImageRecord]:
    """Records that another command or tool wrote, those of one test set.

    Args:
        path: JSON lines with ``label`` and one of ``p_yes``, ``p_fake`` and ``score``; optional
            are ``set`` (name of the test set), ``identity``, ``video_id`` and ``regions``. What a
            line lacks of the names is its ``path`` or ``source``, or else its own number: an image
            on its own.
        test: Lines whose ``set`` is another name are left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is not valid.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of records {path}")
    records = []
    for number, row in enumerate(read_json_lines(path), start=1):
        try:
            if row.get("set", test) != test:
                continue
            name = str(row.get("path") or row.get("source") or number)
            said = row.get("p_yes", row.get("p_fake"))
            records.append(
                ImageRecord(
                    label=row["label"],
                    score=row.get("score"),
                    p_yes=said,
                    identity=row.get("identity") or name,
                    video_id=row.get("video_id") or f"{name}#{number}",
                    regions=row.get("regions", ()),
                )
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}, line {number} is no record of an image: {error}") from error
    return records


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number, which true and false are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
