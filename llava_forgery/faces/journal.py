"""The results of a run so far, on disk, so that the next run resumes where this one ended.

A working folder holds ``job.json`` (how faces are cut out), ``journal.jsonl`` (one line per source)
and ``pixels-*.bin`` (encoded crops, concatenated, one file per process). Pixels are written before
the line that refers to them. An unfinished line is truncated; bytes that no line refers to do no
harm. Other properties of a source, such as its split, are not stored: they may change from one run
to the next.
"""

import json
import logging
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

from llava_forgery.faces.sources import MediaSource
from llava_forgery.files import naming, read_json, write_json

try:
    import fcntl
except ImportError:  # Not a POSIX system: concurrent runs are then not detected.
    fcntl = None

logger = logging.getLogger(__name__)

UNTOUCHED = "untouched"
"""Field of a row: number of a real face in a forged file; None for any other face."""
_JOB, _LINES, _LOCK = "job.json", "journal.jsonl", "lock"


@dataclass(frozen=True)
class Outcome:
    """Result of one source."""

    faces: list[dict[str, Any]]
    """Rows of the faces, with ``image`` and ``mask`` as places for :meth:`Journal.pixels`."""
    reason: str | None = None
    """Why there is no face; None if there is one."""
    people: int = 1
    """Largest number of faces in one frame, if no mask says which of them are forged."""

    def __post_init__(self) -> None:
        if bool(self.faces) == (self.reason is not None):
            raise ValueError(
                f"expected faces or a reason, got {len(self.faces)} and {self.reason!r}"
            )


class PixelFile:
    """A file of its own in the working folder, to which bytes are appended."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / f"pixels-{uuid4().hex}.bin").open("xb")

    def add(self, data: bytes) -> list[Any]:
        """Append bytes; returns name, offset, length and CRC-32, JSON-serializable."""
        offset = self._file.tell()
        with naming(self._file.name):
            self._file.write(data)
        return [Path(self._file.name).name, offset, len(data), zlib.crc32(data)]

    def flush(self) -> None:
        """Pass everything to the system, so that it survives the end of this process."""
        with naming(self._file.name):
            self._file.flush()

    def close(self) -> None:
        # Closing retries a write that failed before.
        with naming(self._file.name):
            self._file.close()


class Journal:
    """Outcomes by the keys of their sources; made by :func:`open_journal`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._offsets: dict[bytes, int] = {}
        self._sizes: dict[str, int] = {}
        self._lines = (folder / _LINES).open("a+b")
        self._read()

    def __contains__(self, key: bytes) -> bool:
        return key in self._offsets

    def add(self, key: bytes, outcome: Outcome) -> None:
        """Write the outcome of a source; its pixels must have been flushed."""
        entry = {"key": key.hex(), **asdict(outcome)}
        self._lines.seek(0, 2)
        offset = self._lines.tell()
        with naming(self._lines.name):
            self._lines.write(json.dumps(entry, allow_nan=False).encode() + b"\n")
            self._lines.flush()
        self._offsets[key] = offset

    def get(self, key: bytes) -> Outcome:
        """Read the outcome of a source.

        Raises:
            KeyError: The source has no outcome yet.
        """
        self._lines.seek(self._offsets[key])
        entry = json.loads(self._lines.readline())
        return Outcome(entry["faces"], entry["reason"], entry.get("people", 1))

    def pixels(self, place: list[Any]) -> bytes:
        """Read bytes that :meth:`PixelFile.add` wrote.

        Raises:
            ValueError: The bytes differ, for example after a power failure.
        """
        name, offset, length, check = place
        with (self.folder / name).open("rb") as file:
            file.seek(offset)
            data = file.read(length)
        if zlib.crc32(data) != check:
            raise ValueError(
                f"{self.folder / name} is damaged; delete the folder {self.folder} and prepare "
                "again"
            )
        return data

    def close(self) -> None:
        with naming(self._lines.name):
            self._lines.close()

    def _read(self) -> None:
        self._lines.seek(0)
        end = 0
        for line in self._lines:
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
            except json.JSONDecodeError:
                entry = None
            if entry is None or not all(self._is_there(face) for face in entry["faces"]):
                logger.warning("the end of %s was not written and is dropped", self._lines.name)
                self._lines.truncate(end)
                break
            self._offsets[bytes.fromhex(entry["key"])] = end
            end += len(line)

    def _is_there(self, face: Mapping[str, Any]) -> bool:
        places = [face[name] for name in ("image", "mask") if face.get(name)]
        for name, offset, length, _ in places:
            if name not in self._sizes:
                path = self.folder / name
                self._sizes[name] = path.stat().st_size if path.is_file() else 0
            if offset + length > self._sizes[name]:
                return False
        return True


@contextmanager
def open_journal(folder: Path, job: Mapping[str, Any]) -> Iterator[Journal]:
    """Open a working folder; one made with different settings is emptied first.

    Args:
        folder: Working folder, created if missing.
        job: How faces are found and cut out, JSON-serializable.

    Raises:
        RuntimeError: Another process has the folder open.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as lock:
        if fcntl is not None:
            try:
                # The system releases the lock when the process ends, however it ends.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RuntimeError(
                    f"another process is at work in {folder}; wait for it, or write elsewhere"
                ) from error
        before = read_json(folder / _JOB) if (folder / _JOB).is_file() else None
        if before != dict(job):
            if before is not None:
                changed = [name for name in job if before.get(name) != job[name]]
                logger.warning(
                    "%s holds the unfinished work of other settings (%s), which is dropped",
                    folder,
                    ", ".join(changed),
                )
            for entry in folder.iterdir():
                if entry.name != _LOCK:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            write_json(folder / _JOB, dict(job))
        journal = Journal(folder)
        try:
            yield journal
        finally:
            journal.close()


def source_key(source: MediaSource) -> bytes:
    """16 bytes that change when the source's files change, by their sizes and times."""
    # Mask and label decide which faces of a file are forged.
    told = [source.frame, source.label if source.mask_path else None]
    for path in (source.path, source.mask_path):
        if path is None:
            told.append(None)
            continue
        try:
            status = path.stat()
            told.append([str(path.absolute()), status.st_size, status.st_mtime_ns])
        except OSError:
            told.append([str(path.absolute())])
    return sha256(json.dumps(told).encode()).digest()[:16]
