"""Results become records: the one place where a scan decides what is in its folder."""

import hashlib
import time
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from llava_forgery.files import atomic_path
from llava_forgery.scan.folder import ScanFolder
from llava_forgery.scan.results import Result, copy_record
from llava_forgery.scan.sources import Entry

OVERLAYS = "overlays"
"""Folder of the pictures of flagged files."""

_WAITING = """
DROP TABLE IF EXISTS temp.waiting;
CREATE TEMP TABLE waiting (
    path TEXT PRIMARY KEY, size INTEGER, modified INTEGER, sha256 TEXT, kind TEXT
);
"""


class Collector:
    """Takes results in any order, more than once where a worker died, and writes each once.

    A context manager: what was taken is written at the end, also after an error.

    Args:
        folder: To write.
        most: Records of a shard.
        seconds: A shard is written after this time, so that a kill costs no more than that.
    """

    def __init__(self, folder: ScanFolder, most: int = 5000, seconds: float = 20.0) -> None:
        self.folder, self.most, self.seconds = folder, most, seconds
        self.files = self.errors = self.faces = self.flagged = 0
        """How many were written so far, by this collector."""
        self.parts = 0
        """Steps of long videos."""
        self._records: list[dict[str, Any]] = []
        self._since = time.monotonic()
        folder.index.executescript(_WAITING)

    def __enter__(self) -> "Collector":
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()

    def add(self, results: Iterable[Result]) -> None:
        """Take results; a shard is written when it is full or due."""
        for result in results:
            if result.part is not None:
                self.folder.add_part(result.entry, *result.part)
                self.parts += 1
                continue
            if result.record is None:
                row = (*result.entry[:3], result.sha256, result.kind)
                with self.folder.index as index:
                    index.execute("INSERT OR REPLACE INTO waiting VALUES (?, ?, ?, ?, ?)", row)
                continue
            if result.overlay is not None:
                self._write_overlay(result)
            self._records.append(result.record)
        due = time.monotonic() - self._since >= self.seconds
        if len(self._records) >= self.most or (due and self._records):
            self.flush()

    def flush(self) -> None:
        """Write what was taken, and the copies of records that other files wait for."""
        self._write(self._records)
        self._records = []
        while copies := self._copies():
            self._write(copies)
        self._since = time.monotonic()

    def _write(self, records: list[dict[str, Any]]) -> None:
        written = set(self.folder.add(records))
        for record in records:
            # Only what was not there already counts.
            if record["file"] in written:
                written.discard(record["file"])
                self.files += 1
                self.errors += record["error"] is not None
                self.faces += len(record["faces"])
                self.flagged += record["flagged"]

    def _copies(self) -> list[dict[str, Any]]:
        """Records for the files that wait, as many as make a shard."""
        index = self.folder.index
        with index:
            index.execute("DELETE FROM waiting WHERE path IN (SELECT path FROM file)")
        rows = index.execute(
            "SELECT waiting.path, waiting.size, waiting.modified, judged.shard, judged.path "
            "FROM waiting JOIN file AS judged ON judged.path = "
            "(SELECT path FROM file WHERE sha256 = waiting.sha256 AND kind IS waiting.kind "
            "LIMIT 1) "
            "ORDER BY judged.shard LIMIT ?",
            (self.most,),
        ).fetchall()
        wanted: dict[str, dict[str, list[Entry]]] = {}
        for path, size, modified, shard, judged in rows:
            entries = wanted.setdefault(shard, {}).setdefault(judged, [])
            entries.append(Entry(path, size, modified))
        return [
            copy_record(record, entry)
            for shard, paths in wanted.items()
            for record in self.folder.read(shard, paths)
            for entry in paths[record["file"]]
        ]

    def _write_overlay(self, result: Result) -> None:
        tag = hashlib.sha256(result.path.encode()).hexdigest()[:12]
        name = f"{OVERLAYS}/{PurePosixPath(result.path).stem}-{tag}.png"
        with atomic_path(self.folder.root / name) as temporary:
            temporary.write_bytes(result.overlay)
        for face in result.record["faces"]:
            face["overlay"] = name
