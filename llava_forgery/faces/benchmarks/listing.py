"""What every benchmark's reader asks of its folders."""

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
    """The folder itself.

    Raises:
        FileNotFoundError: It is not there.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}; expected {what}")
    return path


def is_there(path: Path, what: str, partial: bool) -> bool:
    """Whether a folder of a benchmark is there, which a part of a download may lack.

    Raises:
        FileNotFoundError: It is not, and ``partial`` is False.
    """
    if partial and not path.is_dir():
        logger.warning("there is no folder %s", path)
        return False
    if not path.is_dir():
        raise FileNotFoundError(
            f"there is no folder {path}; expected {what}: complete the download, or take what is "
            "there (partial=True, --partial)"
        )
    return True


def need_json(path: Path, what: str) -> Any:
    """What a JSON file holds.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is not JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; expected {what}")
    return read_json(path)


def videos_in(folder: Path) -> dict[str, Path]:
    """The videos that lie in a folder, by their names without the suffix, in order.

    Raises:
        ValueError: Two of one name.
    """
    videos: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if kind_by_name(path.name) is Kind.VIDEO and not path.name.startswith("."):
            if path.stem in videos:
                raise ValueError(f"{folder} holds {videos[path.stem].name} and {path.name}: "
                                 "expected one video of a name")  # fmt: skip
            videos[path.stem] = path
    return videos


def check_complete(
    expected: Collection[str], found: Collection[str], where: str, partial: bool
) -> None:
    """Compare the videos that should be there with those that are.

    Args:
        expected: Names by the benchmark's own list.
        found: Names on the disk.
        where: What to call the place.
        partial: Fewer than expected are fine.

    Raises:
        FileNotFoundError: A video of the list is not there, or none at all.
        ValueError: A video that no list names.
    """
    unknown = sorted(set(found) - set(expected))
    if unknown:
        raise ValueError(
            f"{where} holds {some(unknown)}, which the benchmark's lists do not name and so give "
            "no label or split; move what does not belong there"
        )
    missing = sorted(set(expected) - set(found))
    if missing and not partial:
        raise FileNotFoundError(
            f"{where} lacks {some(missing)}, which the benchmark's lists name; complete the "
            "download, or take what is there (partial=True, --partial)"
        )
    if missing:
        logger.warning("%s: %d of %d videos are not there", where, len(missing), len(expected))
    if not found and not partial:
        raise FileNotFoundError(f"{where} holds no videos at all")


def match_masks(
    videos: Mapping[str, Path], masks: Mapping[str, Path], where: str, partial: bool
) -> None:
    """Each video needs its mask, and each mask its video.

    Raises:
        FileNotFoundError: One of the two is missing.
    """
    lonely = sorted(set(masks) - set(videos))
    if lonely and not partial:
        raise FileNotFoundError(
            f"{where} holds masks of {some(lonely)}, whose videos are not there; complete the "
            "download, or leave these masks (partial=True, --partial)"
        )
    bare = sorted(set(videos) - set(masks))
    if bare:
        raise FileNotFoundError(
            f"{where} lacks the masks of {some(bare)}; a missing mask is no empty one: complete "
            "the download, or import without masks (masks=False, --no-masks)"
        )


def some(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def check_split(split: str) -> str:
    """The split itself.

    Raises:
        ValueError: Not one of ours.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    return split


def relative_name(path: Path, root: str | PathLike) -> str:
    """A source's name: its path under the benchmark's folder, with forward slashes."""
    return path.relative_to(root).as_posix()


def without_shared_people(sources: Iterable[MediaSource], benchmark: str) -> list[MediaSource]:
    """Leave all identities out where the benchmark's own splits share people.

    The project's splits keep people apart; a benchmark's official ones need not, and are kept as
    they are. It is then said aloud, and each video stands for itself.
    """
    sources = list(sources)
    splits: dict[str, str] = {}
    for source in sources:
        if source.identity and splits.setdefault(source.identity, source.split) != source.split:
            logger.warning(
                "%s: the official splits share people (identity %s is in %s and %s); identities "
                "are left out, and figures on its test split are not of unseen people alone",
                benchmark, source.identity, splits[source.identity], source.split,
            )  # fmt: skip
            return [replace(source, identity=None) for source in sources]
    return sources
