"""Data without a layout of its own: two folders, or AntifakePrompt's CSV.

Folders, of pictures or videos, with splits or without::

    ROOT/real/**  ROOT/fake/**          ROOT/train/real/**  ROOT/train/fake/**  ROOT/test/...

AntifakePrompt's CSV, whose label is the answer to "Is this photo real?"::

    img_path,label
    COCO/000.jpg,yes
    SD2/000.png,no
"""

import csv
import os
from os import PathLike
from pathlib import Path

from llava_forgery.constants import FAKE, LABEL_NAMES, REAL
from llava_forgery.faces.benchmarks.listing import check_split, need_folder, relative_name
from llava_forgery.faces.records import SPLITS
from llava_forgery.faces.sources import VIDEO_SUFFIXES, MediaSource
from llava_forgery.images import SUFFIXES

_ANSWERS = {"yes": REAL, "real": REAL, "no": FAKE, "fake": FAKE}


def read_folders(root: str | PathLike, *, split: str = "test") -> list[MediaSource]:
    """Pictures and videos below ``real/`` and ``fake/``; each file is a video of its own.

    The folder directly below ``fake/``, if there is one, is the method.

    Args:
        root: Holds ``real/`` and ``fake/``, or a folder of these for each split.
        split: Of all files, where the folders do not say it.

    Raises:
        FileNotFoundError: One of the two folders is missing or empty.
        ValueError: Another split.
    """
    root = need_folder(Path(root), "a folder with real/ and fake/")
    check_split(split)
    of_splits = {name: root / name for name in SPLITS if (root / name).is_dir()}
    sources = []
    for name, place in (of_splits or {split: root}).items():
        for label, kind in enumerate(LABEL_NAMES):
            folder = need_folder(place / kind, f"the {kind} pictures or videos")
            files = [
                path
                for path in sorted(folder.rglob("*"))
                if path.name.lower().endswith(SUFFIXES + VIDEO_SUFFIXES) and path.is_file()
            ]
            if not files:
                raise FileNotFoundError(f"{folder} holds no pictures or videos")
            for path in files:
                below = path.relative_to(folder).parts
                source = relative_name(path, root)
                sources.append(
                    MediaSource(
                        path=path,
                        name=source,
                        video_id=source,
                        identity=None,
                        label=label,
                        split=name,
                        method=below[0] if label == FAKE and len(below) > 1 else None,
                    )
                )
    return sources


def read_antifakeprompt(path: str | PathLike, *, split: str = "test") -> list[MediaSource]:
    """AntifakePrompt's CSV; a path in it is relative to the file, or absolute.

    Args:
        path: The CSV.
        split: Of all its pictures.

    Raises:
        FileNotFoundError: The CSV or a picture is missing.
        ValueError: Other columns, an unknown label, or a picture that comes twice.
    """
    path = Path(path)
    check_split(split)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; expected a CSV with img_path,label")
    sources: dict[str, MediaSource] = {}
    with path.open(newline="", encoding="utf-8-sig") as stream:
        rows = csv.DictReader(stream)
        if not {"img_path", "label"} <= set(rows.fieldnames or []):
            raise ValueError(f"{path} has the columns {rows.fieldnames}, expected img_path,label")
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            label = _ANSWERS.get((row["label"] or "").strip().lower())
            if label is None:
                raise ValueError(
                    f"{where}: the label must be yes (real) or no (fake), got {row['label']!r}"
                )
            listed = row["img_path"].strip().replace("\\", "/")
            file = path.parent / listed
            if not file.is_file():
                raise FileNotFoundError(f"{where}: there is no file {file}")
            name = _name(listed, path.parent)
            if name in sources:
                raise ValueError(f"{where}: {listed} comes twice")
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
    if not sources:
        raise ValueError(f"{path} names no pictures")
    return list(sources.values())


def _name(listed: str, folder: Path) -> str:
    """A listed path as a name: below the folder relative to it, else from the root of all files."""
    file = Path(os.path.abspath(folder / listed))
    below = Path(os.path.abspath(folder))
    return file.relative_to(below if file.is_relative_to(below) else file.anchor).as_posix()
