"""What the readers of a scan must agree on: who judges which bytes, and who died over what."""

from collections.abc import Iterable, Sequence


class Registry:
    """One for a scan. Calls that are repeated, as after a death, give the same answers."""

    def __init__(self) -> None:
        self._owners: dict[bytes, str] = {}
        self._begun: dict[tuple[str, ...], int] = {}

    def add(self, judged: Iterable[tuple[str, str]]) -> None:
        """Tell of files that have a record already.

        Args:
            judged: SHA-256 and path of each.
        """
        for sha256, path in judged:
            self._owners.setdefault(bytes.fromhex(sha256), path)

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

    def claim(self, sha256: str, path: str) -> bool:
        """Whether this file is the one that is judged, of all with these bytes."""
        return self._owners.setdefault(bytes.fromhex(sha256), path) == path
