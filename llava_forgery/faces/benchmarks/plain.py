"""Data without a layout of its own: two folders, or AntifakePrompt's CSV.

Folders of pictures or videos, with or without splits; numbered pictures in a folder of their own
are the frames of one video::

    ROOT/real/**  ROOT/fake/**          ROOT/train/real/**  ROOT/train/fake/**  ROOT/test/...
    ROOT/real/VIDEO/000.png 001.png     ROOT/fake/METHOD/VIDEO/000.png 001.png

AntifakePrompt's CSV, whose label is the answer to "Is this photo real?"::

    img_path,label
    COCO/000.jpg,yes
    SD2/000.png,no
"""

import logging
import os
import re
from collections.abc import Iterator
from itertools import groupby
from os import PathLike
from pathlib import Path

from llava_forgery.constants import FAKE, LABEL_NAMES, REAL
from llava_forgery.faces.benchmarks.listing import check_split, need_folder, relative_name, some
from llava_forgery.faces.kinds import Kind, kind_of
from llava_forgery.faces.records import SPLITS
from llava_forgery.faces.sources import MediaSource, media_below
from llava_forgery.tables import read_table

logger = logging.getLogger(__name__)

_ANSWERS = {"yes": REAL, "real": REAL, "no": FAKE, "fake": FAKE}


def read_folders(
    root: str | PathLike,
    *,
    split: str = "test",
    frames: bool | None = None,
    partial: bool = False,
) -> list[MediaSource]:
    """Pictures and videos below ``real/`` and ``fake/``.

    The folder directly below ``fake/``, if there is one, is the method, unless it holds the frames
    of a video.

    Args:
        root: Folder with ``real/`` and ``fake/``, or with these two for each split.
        split: Split of all files, if the folders do not give it.
        frames: Whether the pictures of a folder below ``real/`` or ``fake/`` are the frames of one
            video, sorted by number. None: only in folders whose pictures have the same name except
            for their numbers, such as ``000.png`` or ``frame_12.png``; these folders are logged.
            False: every picture is a photograph of its own.
        partial: Accept that one of ``real/`` and ``fake/`` is missing or empty.

    Raises:
        FileNotFoundError: One of the two folders is missing or empty.
        ValueError: The split is unknown; or, with ``frames=True``, the name of a picture has no
            number, or two of a folder have the same.
    """
    root = need_folder(Path(root), "a folder with real/ and fake/")
    check_split(split)
    of_splits = {name: root / name for name in SPLITS if (root / name).is_dir()}
    sources = []
    for name, place in (of_splits or {split: root}).items():
        for label, kind in enumerate(LABEL_NAMES):
            folder = place / kind
            if partial and not folder.is_dir():
                continue
            need_folder(folder, f"the {kind} pictures or videos")
            files = media_below(folder)
            if not files and not partial:
                raise FileNotFoundError(
                    f"{folder} holds no pictures or videos; without the {kind} ones AUC is not "
                    "defined: add them, or accept this (partial=True, --partial)"
                )
            sources += _below(root, folder, files, label, name, frames)
    if not sources:
        raise FileNotFoundError(f"{root} holds no pictures or videos in real/ or fake/")
    videos = {s.video_id for s in sources if s.frame is not None}
    if videos and frames is None:
        logger.warning(
            "the numbered pictures of %d folders are read as one video each (%s); if they are "
            "separate photographs, say so (frames=False, --no-frames)",
            len(videos),
            some(sorted(videos)),
        )
    return sources


def _below(
    root: Path, folder: Path, files: list[Path], label: int, split: str, frames: bool | None
) -> Iterator[MediaSource]:
    """The files of one label, with frames sorted by number."""
    for place, inside in groupby(sorted(files, key=lambda path: path.parent), lambda p: p.parent):
        media = list(inside)
        pictures = [path for path in media if kind_of(path) is Kind.PICTURE]
        numbers = {}
        if place != folder and frames is not False:
            numbers = _numbers(pictures, place, insist=bool(frames))
        for path in sorted(media, key=lambda path: (numbers.get(path, -1), path)):
            below = path.relative_to(folder).parts
            # The folder of a video's frames is not a method.
            methods = below[: -2 if path in numbers else -1]
            name = relative_name(path, root)
            yield MediaSource(
                path=path,
                name=name,
                video_id=relative_name(place, root) if path in numbers else name,
                identity=None,
                label=label,
                split=split,
                method=methods[0] if label == FAKE and methods else None,
                frame=numbers.get(path),
            )


def _numbers(pictures: list[Path], place: Path, insist: bool) -> dict[Path, int]:
    """Frame number of each picture of a folder; empty if the pictures are not frames."""
    found = {path: re.fullmatch(r"(.*?)(\d+)", path.stem) for path in pictures}
    strange = [path.name for path, match in found.items() if match is None]
    numbers = {path: int(match[2]) for path, match in found.items() if match}
    beginnings = {match[1] for match in found.values() if match}
    # A time such as 20261128093000 belongs to a photograph and is not a frame number.
    largest = max(numbers.values(), default=0)
    counted = len(set(numbers.values())) == len(pictures) and largest < 2**31
    if insist and not counted:
        names = strange or [path.name for path in pictures]
        raise ValueError(
            f"{place} holds {some(names)}; as the frames of one video they need names that end in "
            "different numbers, such as 000.png"
        )
    series = counted and len(beginnings) == 1 and len(pictures) > 1
    return numbers if insist or series else {}


def read_antifakeprompt(
    path: str | PathLike, *, split: str = "test", partial: bool = False
) -> list[MediaSource]:
    """Read AntifakePrompt's CSV; its paths are absolute or relative to the CSV.

    Args:
        path: CSV file.
        split: Split of all its pictures.
        partial: Accept that pictures of the CSV are missing.

    Raises:
        FileNotFoundError: The CSV or a picture is missing.
        ValueError: The columns differ, a label is unknown, or a picture is listed twice.
    """
    path = Path(path)
    check_split(split)
    sources: dict[str, MediaSource] = {}
    missing = 0
    for where, row in read_table(path, ("img_path", "label")):
        label = _ANSWERS.get(row["label"].lower())
        if label is None:
            raise ValueError(
                f"{where}: the label must be yes (real) or no (fake), got {row['label']!r}"
            )
        listed = row["img_path"].replace("\\", "/")
        file = path.parent / listed
        if not file.is_file():
            if not partial:
                raise FileNotFoundError(
                    f"{where}: there is no file {file}; paths are relative to the CSV: complete "
                    "the pictures, or accept missing ones (partial=True, --partial)"
                )
            missing += 1
            continue
        name = _name(listed, path.parent)
        if name in sources:
            raise ValueError(f"{where}: {listed} is listed twice")
        folder = Path(name).parent.name
        sources[name] = MediaSource(
            path=file,
            name=name,
            video_id=name,
            identity=None,
            label=label,
            split=split,
            method=folder if label == FAKE and folder else None,
        )
    if missing:
        logger.warning("%s: %d of its pictures are missing", path, missing)
    if missing and not sources:
        raise FileNotFoundError(f"none of the {missing} pictures that {path} names exists")
    if not sources:
        raise ValueError(f"{path} names no pictures")
    return list(sources.values())


def _name(listed: str, folder: Path) -> str:
    """Name for a listed path: relative to the folder if it is below it, else from the root."""
    file = Path(os.path.abspath(folder / listed))
    below = Path(os.path.abspath(folder))
    return file.relative_to(below if file.is_relative_to(below) else file.anchor).as_posix()
