"""The folder that a scan writes: shards of records, and which files they hold.

A record is there once a complete shard in ``records/`` holds it; nothing else decides.
``scan.sqlite`` is an index over the shards: what it lacks is read from them when the folder is
opened.
"""

import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llava_forgery.files import (
    atomic_path,
    changed_setting,
    check_output,
    read_json,
    remove_leftovers,
    write_json,
)
from llava_forgery.scan.schema import check_layout, to_table
from llava_forgery.scan.sources import Entry

try:
    import fcntl
except ImportError:
    # Windows: two scans at once are then not told apart.
    fcntl = None

logger = logging.getLogger(__name__)

RECORDS = "records"
"""Folder of the shards."""
SETTINGS = "scan.json"
_INDEX, _LOCK = "scan.sqlite", ".lock"
_FORMAT = 1

_TABLES_VERSION = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS shard (name TEXT PRIMARY KEY, size INTEGER, modified INTEGER);
CREATE TABLE IF NOT EXISTS file (
    path TEXT PRIMARY KEY, size INTEGER, modified INTEGER, sha256 TEXT, kind TEXT, failed INTEGER,
    shard TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_content ON file (sha256);
CREATE INDEX IF NOT EXISTS by_shard ON file (shard);
CREATE TABLE IF NOT EXISTS part (
    path TEXT, size INTEGER, modified INTEGER, name TEXT, value BLOB, PRIMARY KEY (path, name)
) WITHOUT ROWID;
"""


class ScanFolder:
    """Records by file, each once; made by :func:`open_folder`.

    One process writes it: the driver of the scan. Memory does not grow with the number of records.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.records = root / RECORDS
        self.records.mkdir(exist_ok=True)
        remove_leftovers(self.records)
        self.index = _open_index(root / _INDEX)
        self._reconcile()

    def close(self) -> None:
        self.index.close()

    def shards(self) -> list[Path]:
        """Complete shards, in the order in which they were written."""
        return list_shards(self.root)

    def add(self, records: Sequence[Mapping[str, Any]]) -> list[str]:
        """Write records as a shard; those of files that have one already are left out.

        Returns:
            Paths of the files whose records were written.

        Raises:
            OSError: It cannot be written; nothing of it is there then.
        """
        new: dict[str, Mapping[str, Any]] = {}
        for record in records:
            if record["file"] not in new and not self.has(record["file"]):
                new[record["file"]] = record
        if new:
            number = int(self.shards()[-1].stem.split("-")[1]) + 1 if self.shards() else 0
            self._write(self.records / f"part-{number:06d}.parquet", to_table(list(new.values())))
        return list(new)

    def has(self, path: str) -> bool:
        """Whether a file has a record."""
        return (
            self.index.execute("SELECT 1 FROM file WHERE path = ?", (path,)).fetchone() is not None
        )

    def contents(self) -> Iterator[tuple[str, str | None, str]]:
        """SHA-256, kind and path of all files that have a record and could be read."""
        query = "SELECT sha256, kind, path FROM file WHERE sha256 IS NOT NULL"
        yield from self.index.execute(query)

    def read(self, shard: str, paths: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Records of a shard.

        Args:
            shard: Its file's name.
            paths: Of the files.
        """
        wanted = pa.array(list(paths), pa.string())
        table = pq.read_table(self.records / shard)
        yield from table.filter(pc.is_in(table["file"], wanted)).to_pylist()

    def drop(self, paths: Iterable[str]) -> None:
        """Remove the records of files, which are to be judged again."""
        by_shard: dict[str, list[str]] = {}
        for path in paths:
            row = self.index.execute("SELECT shard FROM file WHERE path = ?", (path,)).fetchone()
            if row is not None:
                by_shard.setdefault(row[0], []).append(path)
        for shard, gone in by_shard.items():
            table = pq.read_table(self.records / shard)
            kept = table.filter(pc.invert(pc.is_in(table["file"], pa.array(gone, pa.string()))))
            self._write(self.records / shard, kept)

    def parts(self, entry: Entry) -> dict[str, bytes]:
        """What is known of a file that is judged in several steps; see :meth:`add_part`."""
        query = "SELECT name, value FROM part WHERE path = ? AND size = ? AND modified = ?"
        return dict(self.index.execute(query, entry[:3]))

    def add_part(self, entry: Entry, name: str, value: bytes) -> None:
        """Keep what a step gave until the file has a record.

        Args:
            entry: The file; another size or time makes what is kept worthless.
            name: Of the step.
            value: What it gave.
        """
        with self.index:
            row = (*entry[:3], name, value)
            self.index.execute("INSERT OR REPLACE INTO part VALUES (?, ?, ?, ?, ?)", row)

    def _write(self, path: Path, table: pa.Table) -> None:
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        if table.num_rows == 0:
            path.unlink()
        self._index_shard(path.name)

    def _reconcile(self) -> None:
        """Bring the index to what the shards hold: a kill can fall between the two."""
        here = {path.name: path.stat() for path in self.shards()}
        known = {name: rest for name, *rest in self.index.execute("SELECT * FROM shard")}
        for name in known.keys() | here.keys():
            status = here.get(name)
            if status is None or known.get(name) != [status.st_size, status.st_mtime_ns]:
                self._index_shard(name)

    def _index_shard(self, name: str) -> None:
        path = self.records / name
        with self.index:
            self.index.execute("DELETE FROM file WHERE shard = ?", (name,))
            self.index.execute("DELETE FROM shard WHERE name = ?", (name,))
            if not path.is_file():
                return
            with pq.ParquetFile(path) as file:
                check_layout(file.schema_arrow, str(path))
                table = file.read(["file", "size", "modified", "sha256", "kind", "error"])
            times = table["modified"].cast(pa.int64()).fill_null(0).to_pylist()
            failed = table["error"].is_valid().to_pylist()
            columns = (table[c].to_pylist() for c in ("file", "size", "sha256", "kind"))
            rows = [
                (file, size, time, sha256, kind, bad, name)
                for file, size, sha256, kind, time, bad in zip(*columns, times, failed, strict=True)
            ]
            try:
                self.index.executemany("INSERT INTO file VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            except sqlite3.IntegrityError as error:
                raise ValueError(
                    f"{path} holds a file that another shard holds as well ({error}); a scan "
                    "writes each once: move the shard that does not belong here away"
                ) from error
            self.index.execute(
                "DELETE FROM part WHERE path IN (SELECT path FROM file WHERE shard = ?)", (name,)
            )
            status = path.stat()
            row = (name, status.st_size, status.st_mtime_ns)
            self.index.execute("INSERT INTO shard VALUES (?, ?, ?)", row)


def list_shards(root: Path) -> list[Path]:
    """The complete shards of a scan's folder, in order."""
    return sorted((root / RECORDS).glob("part-*.parquet"))


def _open_index(path: Path) -> sqlite3.Connection:
    for attempt in range(2):
        index = sqlite3.connect(path)
        try:
            empty = not index.execute("SELECT 1 FROM sqlite_master").fetchone()
            if not empty and index.execute("PRAGMA user_version").fetchone() != (_TABLES_VERSION,):
                raise sqlite3.DatabaseError("it is of another version")
            index.executescript(f"{_TABLES}PRAGMA user_version = {_TABLES_VERSION};")
            return index
        except sqlite3.DatabaseError as error:
            index.close()
            # It can be made again, so a damaged one is no reason to stop.
            if attempt:
                raise OSError(f"{path} cannot be used: {error}") from error
            logger.warning("%s is made again from the shards: %s", path, error)
            path.unlink()
    raise AssertionError("unreachable")


@contextmanager
def open_folder(root: Path, settings: Mapping[str, Any]) -> Iterator[ScanFolder]:
    """Open the folder of a scan, or begin one.

    Args:
        root: Made if missing.
        settings: All that decides the records beside the files, as JSON takes it.

    Raises:
        ValueError: It holds a scan of other settings, or something else.
        OSError: It cannot be written, or another process writes it.
    """
    check_output(root, inside=True)
    root.mkdir(parents=True, exist_ok=True)
    settings = {"format": _FORMAT, **settings}
    with (root / _LOCK).open("w") as lock:
        if fcntl is not None:
            try:
                # The system lets go of it when the process ends, however it ends.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise OSError(
                    f"another scan writes {root}; wait for it, or give another --out"
                ) from error
        if (root / SETTINGS).is_file():
            changed = changed_setting(read_json(root / SETTINGS), settings)
            if changed is not None:
                raise ValueError(
                    f"{root} holds a scan with other settings: {changed}; repeat it as it was, or "
                    "give another --out"
                )
        elif list_shards(root):
            raise ValueError(f"{root} holds records but no {SETTINGS}; give another --out")
        else:
            write_json(root / SETTINGS, settings)
        try:
            folder = ScanFolder(root)
            try:
                yield folder
            finally:
                folder.close()
        except sqlite3.OperationalError as error:
            raise OSError(f"{root / _INDEX} cannot be written: {error}") from error
