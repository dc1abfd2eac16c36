"""What the readers of a scan must agree on: who judges which bytes, and who died over what."""

from collections.abc import Iterable, Sequence


class Registry:
    """One for a scan. Calls that are repeated, as after a worker's death, give the same answers.

    One that died itself begins with nothing: some bytes are then judged more than once, and every
    file still has one record.
    """

    def __init__(self) -> None:
        self._owners: dict[tuple[bytes, str | None], str] = {}
        self._begun: dict[tuple[str, ...], int] = {}

    def add(self, judged: Iterable[tuple[str, str | None, str]]) -> None:
        """Tell of files that have a record already.

        Args:
            judged: SHA-256, kind and path of each.
        """
        for sha256, kind, path in judged:
            self.claim(sha256, kind, path)

    def begin(self, paths: Sequence[str]) -> int:
        """Say that files are read now.

        Returns:
            How often this was said before without the end of it.
        """
        before = self._begun.get(tuple(paths), 0)
        self._begun[tuple(paths)] = before + 1
        return before

    def end(self, paths: Sequence[str]) -> None:
        """Say that they were read."""
        self._begun.pop(tuple(paths), None)

    def claim(self, sha256: str, kind: str | None, path: str) -> bool:
        """Whether this file is the one that is judged, of all with these bytes.

        Args:
            sha256: Of the bytes.
            kind: As what they are read: where they do not tell, the file's name decides.
            path: Of the file.
        """
        return self._owners.setdefault((bytes.fromhex(sha256), kind), path) == path
