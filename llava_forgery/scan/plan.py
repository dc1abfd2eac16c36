"""Which files of an archive are to be judged, and in which order."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from llava_forgery.scan.folder import ScanFolder
from llava_forgery.scan.sources import Entry

_TABLE = """
CREATE TEMP TABLE plan (
    path TEXT PRIMARY KEY, size INTEGER, modified INTEGER, problem TEXT, place INTEGER
);
CREATE INDEX temp.by_place ON plan (place);
"""
# What a record of an earlier run is of: the same file as far as its listing tells.
_SAME = "file.size = plan.size AND file.modified = plan.modified"
_CHUNK = 1000


@dataclass(frozen=True)
class Selection:
    """Which of the listed files are taken; the same ones whenever the command is repeated."""

    limit: int | None = None
    """So many at most, of the first in order."""
    sample: float = 1.0
    """This share of them, in (0, 1], drawn by their paths."""
    shuffle: bool = False
    """In an order drawn by their paths, instead of that of the listing."""
    seed: int = 0
    """Of what is drawn."""

    def __post_init__(self) -> None:
        if not 0 < self.sample <= 1 or (self.limit is not None and self.limit < 1):
            raise ValueError(
                f"expected a sample in (0, 1] and a limit of 1 or more, got {self.sample} and "
                f"{self.limit}"
            )

    def draw(self, path: str) -> int:
        """A number in [0, 2^62) that path and seed decide."""
        digest = hashlib.sha256(f"{self.seed}\0{path}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 2


def parse_share(text: str) -> float:
    """A share from ``1%`` or ``0.01``.

    Raises:
        ValueError: It is neither, or not in (0, 1].
    """
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ValueError(f"expected a share such as 1% or 0.01, got {text!r}")
    return share


@dataclass(frozen=True)
class Counts:
    """How many files there are of a kind, and their bytes."""

    files: int
    bytes: int


class Plan:
    """The files that were listed, beside what the folder holds of them.

    A temporary table of the folder's index: memory does not grow with the number of files.

    Args:
        folder: That the scan writes.
        entries: What was listed; of a path that comes twice the first counts.
        selection: Which of them are taken.
    """

    def __init__(
        self, folder: ScanFolder, entries: Iterable[Entry], selection: Selection = Selection()
    ) -> None:
        self._folder, self._index = folder, folder.index
        self._index.executescript("DROP TABLE IF EXISTS temp.plan;" + _TABLE)
        most = selection.sample * 2**62
        with self._index:
            self._index.executemany(
                "INSERT OR IGNORE INTO plan VALUES (?, ?, ?, ?, ?)",
                (
                    (*entry, drawn if selection.shuffle else number)
                    for number, entry in enumerate(entries)
                    if (drawn := selection.draw(entry.path)) < most
                ),
            )
            if selection.limit is not None:
                self._index.execute(
                    "DELETE FROM plan WHERE path NOT IN "
                    "(SELECT path FROM plan ORDER BY place LIMIT ?)",
                    (selection.limit,),
                )

    def drop_changed(self, retry_errors: bool = False) -> int:
        """Remove the records of files that have changed since, and say how many.

        Args:
            retry_errors: Also of those that could not be judged.
        """
        return self._drop(f"NOT ({_SAME})", retry_errors)

    def drop_other_content(
        self, hashes: Iterable[tuple[str, str | None]], retry_errors: bool = False
    ) -> int:
        """Remove the records of files whose bytes have changed, and say how many.

        Args:
            hashes: Path and SHA-256 of files, None where they could not be read.
            retry_errors: As for :meth:`drop_changed`.
        """
        self._index.executescript(
            "DROP TABLE IF EXISTS temp.hashed;"
            "CREATE TEMP TABLE hashed (path TEXT PRIMARY KEY, sha256 TEXT);"
        )
        self._index.executemany("INSERT INTO hashed VALUES (?, ?)", hashes)
        return self._drop(
            "EXISTS (SELECT 1 FROM hashed WHERE hashed.path = file.path "
            "AND hashed.sha256 IS NOT file.sha256)",
            retry_errors,
        )

    def _drop(self, condition: str, retry_errors: bool) -> int:
        if retry_errors:
            condition += " OR file.failed"
        query = f"SELECT file.path FROM file JOIN plan USING (path) WHERE {condition}"
        changed = [path for (path,) in self._index.execute(query)]
        self._folder.drop(changed)
        return len(changed)

    def judged(self) -> Iterator[Entry]:
        """Files that have a record."""
        return self._entries("JOIN file USING (path)", "1")

    def pending(self) -> Iterator[Entry]:
        """Files without a record, in order."""
        return self._entries("LEFT JOIN file USING (path)", "file.path IS NULL")

    def left(self) -> int:
        """How many files have no record."""
        query = "SELECT count(*) FROM plan LEFT JOIN file USING (path) WHERE file.path IS NULL"
        return self._index.execute(query).fetchone()[0]

    def failed(self) -> int:
        """How many files have a record that is an error."""
        query = "SELECT count(*) FROM plan JOIN file USING (path) WHERE file.failed"
        return self._index.execute(query).fetchone()[0]

    def count(self, pending: bool = False) -> dict[str, Counts]:
        """Files and bytes by suffix, of all files or of those without a record."""
        counts: dict[str, list[int]] = {}
        for entry in self.pending() if pending else self._entries("", "1"):
            suffix = entry.path[entry.path.rfind(".") :].lower()
            found = counts.setdefault(suffix, [0, 0])
            found[0] += 1
            found[1] += entry.size
        return {suffix: Counts(*found) for suffix, found in sorted(counts.items())}

    def __len__(self) -> int:
        return self._index.execute("SELECT count(*) FROM plan").fetchone()[0]

    def _entries(self, join: str, condition: str) -> Iterator[Entry]:
        query = (
            "SELECT place, plan.rowid, plan.path, plan.size, plan.modified, problem "
            f"FROM plan {join} WHERE ({condition}) AND (place, plan.rowid) > (?, ?) "
            "ORDER BY place, plan.rowid LIMIT ?"
        )
        last = (-1, -1)
        # In pieces: the folder is written while the plan is read.
        while rows := self._index.execute(query, (*last, _CHUNK)).fetchall():
            yield from (Entry(*row[2:]) for row in rows)
            last = rows[-1][:2]
