"""Long builds in numbered parts, so that an interruption costs at most one part.

A part is a Parquet file that is renamed into place when it is complete. ``settings.json`` next to
the parts identifies the build: only one with the same settings resumes with them.
"""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as parquet

from llava_forgery.files import atomic_path, changed_setting, read_json, write_json

logger = logging.getLogger(__name__)

SETTINGS = "settings.json"


class PartStore:
    """The parts of one build, in a folder of their own.

    Args:
        folder: Folder, created if it is missing; leftovers of an interrupted part are removed.
        count: Number of parts of the complete build.
        features: Features of the rows.
        settings: Everything that the rows depend on, JSON-serializable.

    Raises:
        ValueError: The folder holds parts of a build with other settings.
    """

    def __init__(
        self,
        folder: str | PathLike,
        count: int,
        features: datasets.Features,
        settings: Mapping[str, Any],
    ) -> None:
        self.folder, self.count, self.features = Path(folder), count, features
        self._open(dict(settings))
        self.missing = [number for number in range(count) if not self.path(number).is_file()]
        """Numbers of the parts that are still to be made."""
        if len(self.missing) < count:
            logger.info(
                "%d of %d parts are already in %s", count - len(self.missing), count, folder
            )

    def path(self, number: int) -> Path:
        """Path of a part once it is complete."""
        return self.folder / f"part-{number:05d}.parquet"

    def write(self, number: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a part; it appears when it is complete."""
        part = datasets.Dataset.from_list([dict(row) for row in rows], features=self.features)
        with atomic_path(self.path(number)) as temporary:
            parquet.write_table(part.data.table, temporary)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of all parts in order, with one part in memory at a time.

        Raises:
            ValueError: A part is missing.
        """
        for number in range(self.count):
            if not self.path(number).is_file():
                raise ValueError(f"part {number} of {self.count} is missing in {self.folder}")
            yield from parquet.read_table(self.path(number)).to_pylist()

    def remove(self) -> None:
        """Remove the folder, once the result built from it is in place."""
        shutil.rmtree(self.folder)

    def _open(self, settings: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / SETTINGS
        if file.is_file():
            changed = changed_setting(read_json(file), settings)
            if changed:
                raise ValueError(
                    f"{self.folder} holds parts of an interrupted build with other settings: "
                    f"{changed}. Repeat the build unchanged to complete it, or remove that folder"
                )
        else:
            write_json(file, settings)
        for leftover in self.folder.glob(".*.tmp"):
            logger.info("removing %s, left by an interruption", leftover)
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
