"""Checks of folders and lists that the readers of benchmarks share."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from llava_forgery.faces.kinds import Kind, kind_by_name
from llava_forgery.faces.records import SPLITS
from llava_forgery.faces.sources import MediaSource
from llava_forgery.files import read_json

logger = logging.getLogger(__name__)


def need_folder(path: Path, what: str) -> Path:
    """Return the folder if it exists.

    Raises:
        FileNotFoundError: The folder does not exist.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}; expected {what}")
    return path


def is_there(path: Path, what: str, partial: bool) -> bool:
    """Whether a folder of a benchmark exists, which a partial download may lack.

    Raises:
        FileNotFoundError: It does not, and ``partial`` is False.
    """
    if partial and not path.is_dir():
        logger.warning("there is no folder %s", path)
        return False
    if not path.is_dir():
        raise FileNotFoundError(
            f"there is no folder {path}; expected {what}: complete the download, or accept missing "
            "ones (partial=True, --partial)"
        )
    return True


def need_json(path: Path, what: str) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; expected {what}")
    return read_json(path)


def videos_in(folder: Path) -> dict[str, Path]:
    """The videos directly in a folder, by their names without suffix, sorted.

    Raises:
        ValueError: Two videos have the same name.
    """
    videos: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if kind_by_name(path.name) is Kind.VIDEO and not path.name.startswith("."):
            if path.stem in videos:
                raise ValueError(f"{folder} holds {videos[path.stem].name} and {path.name}: "
                                 "expected one video of each name")  # fmt: skip
            videos[path.stem] = path
    return videos


def check_complete(
    expected: Collection[str], found: Collection[str], where: str, partial: bool
) -> None:
    """Compare the expected videos with those that exist.

    Args:
        expected: Names on the benchmark's own list.
        found: Names on the disk.
        where: Name of the location for messages.
        partial: Accept fewer videos than expected.

    Raises:
        FileNotFoundError: A listed video is missing, or there are no videos at all.
        ValueError: A video is on no list.
    """
    unknown = sorted(set(found) - set(expected))
    if unknown:
        raise ValueError(
            f"{where} holds {some(unknown)}, which are not on the benchmark's lists and so have "
            "no label or split; move what does not belong there"
        )
    missing = sorted(set(expected) - set(found))
    if missing and not partial:
        raise FileNotFoundError(
            f"{where} lacks {some(missing)}, which the benchmark's lists name; complete the "
            "download, or accept missing ones (partial=True, --partial)"
        )
    if missing:
        logger.warning("%s: %d of %d videos are missing", where, len(missing), len(expected))
    if not found and not partial:
        raise FileNotFoundError(f"{where} holds no videos at all")


def match_masks(
    videos: Mapping[str, Path], masks: Mapping[str, Path], where: str, partial: bool
) -> None:
    """Check that each video has its mask and each mask its video.

    Raises:
        FileNotFoundError: A mask or a video is missing.
    """
    lonely = sorted(set(masks) - set(videos))
    if lonely and not partial:
        raise FileNotFoundError(
            f"{where} holds masks of {some(lonely)}, whose videos are missing; complete the "
            "download, or ignore these masks (partial=True, --partial)"
        )
    bare = sorted(set(videos) - set(masks))
    if bare:
        raise FileNotFoundError(
            f"{where} lacks the masks of {some(bare)}; a missing mask is not an empty one: "
            "complete the download, or import without masks (masks=False, --no-masks)"
        )


def some(names: Sequence[str]) -> str:
    """The first names of a list and the number of the others."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def check_split(split: str) -> str:
    """Return the split if it is valid.

    Raises:
        ValueError: It is not one of ``SPLITS``.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    return split


def relative_name(path: Path, root: str | PathLike) -> str:
    """Name of a source: its path relative to the benchmark's folder, with forward slashes."""
    return path.relative_to(root).as_posix()


def without_shared_people(sources: Iterable[MediaSource], benchmark: str) -> list[MediaSource]:
    """Omit all identities, with a warning, if the benchmark's own splits share people.

    The project's splits keep people apart; official ones need not, and are kept unchanged. Each
    video then counts as a separate person.
    """
    sources = list(sources)
    splits: dict[str, str] = {}
    for source in sources:
        if source.identity and splits.setdefault(source.identity, source.split) != source.split:
            logger.warning(
                "%s: the official splits share people (identity %s is in %s and %s); identities "
                "are omitted, and figures on its test split are not of unseen people only",
                benchmark, source.identity, splits[source.identity], source.split,
            )  # fmt: skip
            return [replace(source, identity=None) for source in sources]
    return sources
