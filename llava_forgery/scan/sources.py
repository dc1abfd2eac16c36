"""What is to be scanned: folders, globs, lists and fsspec addresses become single files."""

import csv
import glob
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from llava_forgery.faces.kinds import Kind, kind_by_name, kind_of
from llava_forgery.files import parse_json
from llava_forgery.infer.batch import list_media

LISTS = (".jsonl", ".csv", ".parquet")
"""Suffixes of files that name files: lines of JSON or rows with a ``path`` or ``file``."""

_COLUMNS = ("path", "file")
_CHUNK = 1 << 20


class Entry(NamedTuple):
    """One file of an archive, as its listing tells it."""

    path: str
    """Absolute, or an fsspec address such as ``s3://bucket/a.jpg``."""
    size: int
    """In bytes."""
    modified: int
    """Nanoseconds since 1970; 0 where the file system does not tell."""
    problem: str | None = None
    """Why there is nothing to read."""

    @property
    def kind(self) -> Kind | None:
        """What its name promises; what it holds decides when it is read."""
        return kind_by_name(self.path)


def is_address(path: str) -> bool:
    """Whether a path is an fsspec address, not of this machine's own files."""
    return "://" in path


def list_entries(sources: Iterable[str], leave_out: Path | None = None) -> Iterator[Entry]:
    """The files of an archive, each once as far as a source itself names it once.

    Args:
        sources: Folders, files, globs, lists (``LISTS``) or fsspec addresses of any of these.
            Folders are searched to the bottom; hidden files are left out.
        leave_out: A folder whose files are none of the archive.

    Yields:
        Photographs and videos; what is named and cannot be read has a ``problem``.

    Raises:
        FileNotFoundError: A source is not there.
        ValueError: A list is damaged, or names no files in the way described.
    """
    own: tuple[str, ...] = ()
    if leave_out is not None:
        own = (os.path.join(os.path.abspath(leave_out), ""),
               os.path.join(os.path.realpath(leave_out), ""))  # fmt: skip
    yield from (entry for entry in _all_entries(sources) if not entry.path.startswith(own))


def _all_entries(sources: Iterable[str]) -> Iterator[Entry]:
    for source in sources:
        if source.startswith("file://"):
            source = url_to_fs(source)[1]
        if source.lower().endswith(LISTS):
            yield from _listed(source)
        elif is_address(source):
            yield from _remote(source)
        elif glob.has_magic(source) and not os.path.lexists(source):
            found = sorted(glob.iglob(source, recursive=True))
            if not found:
                raise FileNotFoundError(f"no file fits the pattern {source}")
            yield from _local(path for path in found if os.path.isdir(path) or _is_media(path))
        elif not os.path.lexists(source):
            raise FileNotFoundError(f"{source} does not exist; expected a file, folder or address")
        else:
            yield from _local([source])


def _is_media(path: str) -> bool:
    try:
        return kind_of(Path(path)) is not None
    except OSError:
        # Reading it will say why.
        return kind_by_name(path) is not None


def _local(paths: Iterable[str]) -> Iterator[Entry]:
    for path, problem in list_media(paths):
        yield _stat(os.path.abspath(path), problem)


def _stat(path: str, problem: str | None = None) -> Entry:
    # A name that is no text in UTF-8 can stand in no Parquet file.
    name = os.fsencode(path).decode("utf-8", "backslashreplace")
    try:
        status = os.stat(path)
    except OSError as error:
        return Entry(name, 0, 0, problem or f"{name} cannot be read: {error.strerror}")
    return Entry(name, status.st_size, status.st_mtime_ns, problem)


def _remote(address: str) -> Iterator[Entry]:
    fs, root = url_to_fs(address)
    if glob.has_magic(root):
        found = fs.glob(root, detail=True)
    elif fs.isfile(root):
        found = {root: fs.info(root)}
    else:
        found = fs.find(root, detail=True)
    # Their bytes are far away, so that names decide.
    media = [name for name in sorted(found) if kind_by_name(name)]
    if not media:
        raise FileNotFoundError(f"{address} holds no photographs or videos")
    for name in media:
        hidden = any(part.startswith(".") for part in name[len(root) :].split("/"))
        if not hidden:
            yield _entry(fs.unstrip_protocol(name), found[name])


def _entry(address: str, info: dict[str, Any]) -> Entry:
    """From what a file system tells, each in words of its own."""
    for key in ("mtime", "LastModified", "last_modified", "updated", "created"):
        time = info.get(key)
        if isinstance(time, str):
            time = datetime.fromisoformat(time)
        if isinstance(time, datetime):
            time = time.timestamp()
        if time:
            return Entry(address, int(info.get("size") or 0), round(time * 1e6) * 1000)
    return Entry(address, int(info.get("size") or 0), 0)


def _listed(source: str) -> Iterator[Entry]:
    """The files that a list names; paths are relative to its folder."""
    remote = is_address(source)
    folder = os.path.dirname(source if remote else os.path.abspath(source))
    for number, name in enumerate(_names(source), start=1):
        if not isinstance(name, str) or not name:
            raise ValueError(f"{source}: its file number {number} has no path, but {name!r}")
        if remote and not is_address(name):
            name = f"{folder}/{name}"
        if is_address(name) and not name.startswith("file://"):
            fs, path = url_to_fs(name)
            try:
                yield _entry(name, fs.info(path))
            except OSError as error:
                yield Entry(name, 0, 0, f"{name} cannot be read: {error}")
        else:
            path = name.removeprefix("file://")
            yield _stat(os.path.normpath(os.path.join(folder, path)))


def _names(source: str) -> Iterator[str]:
    kind = Path(source).suffix.lower()
    if not (is_address(source) or os.path.isfile(source)):
        raise FileNotFoundError(f"there is no list {source}")
    if kind == ".parquet":
        with fsspec.open(source, "rb") as opened, pq.ParquetFile(opened) as file:
            column = _column(file.schema_arrow.names, source)
            for batch in file.iter_batches(columns=[column]):
                yield from batch.column(0).to_pylist()
        return
    # Spreadsheets begin a CSV file with a byte order mark.
    with fsspec.open(source, "r", encoding="utf-8-sig", newline="") as file:
        if kind == ".csv":
            rows = csv.DictReader(file)
            column = _column(rows.fieldnames or (), source)
            yield from (row[column] for row in rows)
            return
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{source}, line {number}"
                row = parse_json(line, where)
                if not isinstance(row, dict):
                    raise ValueError(f"{where}: expected an object with a path, got {line[:80]}")
                yield row[_column(row, where)]


def _column(names: Iterable[str], where: str) -> str:
    for column in _COLUMNS:
        if column in names:
            return column
    raise ValueError(f"{where} has no column {' or '.join(_COLUMNS)}, only {', '.join(names)}")


def read_bytes(path: str) -> bytes:
    """A file's bytes.

    Raises:
        OSError: It cannot be read.
    """
    with fsspec.open(path, "rb") if is_address(path) else open(path, "rb") as file:
        return file.read()


def read_chunks(path: str) -> Iterator[bytes]:
    """A file's bytes in pieces of at most 1 MiB."""
    with fsspec.open(path, "rb") if is_address(path) else open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


@contextmanager
def local_copy(path: str) -> Iterator[Path]:
    """A file of this machine with the bytes of ``path``: itself, or a copy that is removed.

    Args:
        path: Absolute, or an address.

    Raises:
        OSError: It cannot be read, or the folder of temporary files has no room for it.
    """
    if not is_address(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="llava-forgery-") as folder:
        copy = Path(folder) / os.path.basename(path)
        with copy.open("xb") as file:
            for chunk in read_chunks(path):
                file.write(chunk)
        yield copy
