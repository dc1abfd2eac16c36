"""The Deepfake Detection Challenge (Dolhansky et al.): the preview (DFDCP) and the full set (DFDC).

DFDCP::

    ROOT/dataset.json: {"method_A/1061039/1061039_A_000.mp4": {"label": "fake", "set": "train",
        "target_id": "1061039", "swapped_id": "804888", ...}, ...}

DFDC::

    ROOT/train/dfdc_train_part_0/metadata.json: {"a.mp4": {"label": "FAKE", "original": "b.mp4"}}
         train/dfdc_train_part_0/a.mp4 ...
         test/labels.csv: filename,label      (1 is fake)
         test/c.mp4 ...                       (or test/videos/c.mp4)
         validation/labels.csv                (optional)
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from llava_forgery.constants import FAKE, REAL
from llava_forgery.faces.benchmarks.listing import (
    check_complete,
    check_split,
    need_folder,
    need_json,
    relative_name,
    videos_in,
    without_shared_people,
)
from llava_forgery.faces.kinds import Kind, kind_by_name
from llava_forgery.faces.sources import MediaSource
from llava_forgery.tables import read_table

_LABELS = {"real": REAL, "fake": FAKE}
_FOLDERS = {"train": "train", "validation": "val", "test": "test"}


def read_dfdcp(root: str | PathLike, *, partial: bool = False) -> list[MediaSource]:
    """The preview set, with labels and splits from its ``dataset.json``.

    The method is the folder, ``method_A`` or ``method_B``; the identity is the person in the
    picture (``target_id``), if the splits keep people apart.

    Args:
        root: Folder of the benchmark.
        partial: Accept that videos of ``dataset.json`` are missing.

    Raises:
        FileNotFoundError: ``dataset.json`` or a video it names is missing.
        ValueError: A label or split is unknown, or a video is not in ``dataset.json``.
    """
    root = need_folder(Path(root), "the folder of DFDCP")
    file = root / "dataset.json"
    listed = _entries(need_json(file, "DFDCP's description of its videos"), file)
    found = {
        relative_name(path, root): path
        for path in sorted(root.rglob("*"))
        if kind_by_name(path.name) is Kind.VIDEO
    }
    check_complete(list(listed), list(found), str(root), partial)
    sources = []
    for name, path in found.items():
        entry = listed[name]
        label = _label(entry, f"{file}, {name}")
        person = entry.get("target_id")
        split = "val" if entry.get("set") == "validation" else entry.get("set")
        try:
            check_split(split)
        except ValueError as error:
            raise ValueError(f"{file}, {name}: {error}") from error
        sources.append(
            MediaSource(
                path=path,
                name=name,
                video_id=str(Path(name).with_suffix("").as_posix()),
                identity=None if person is None else str(person),
                label=label,
                split=split,
                method=Path(name).parts[0] if label == FAKE else None,
            )
        )
    return without_shared_people(sources, "DFDCP")


def read_dfdc(
    root: str | PathLike, *, splits: Sequence[str] | None = None, partial: bool = False
) -> list[MediaSource]:
    """The full set: training parts from their ``metadata.json``, test and validation from CSV.

    Identities are not published: a forgery shares the identity of its original.

    Args:
        root: Folder of the benchmark.
        splits: Some of train, val and test; None for those that have a folder.
        partial: Accept that listed videos are missing.

    Raises:
        FileNotFoundError: A folder, a list or a video is missing.
        ValueError: A label or split is unknown, or a video is on no list.
    """
    root = need_folder(Path(root), "the folder of DFDC")
    for split in splits or ():
        check_split(split)
    sources = []
    for folder, split in _FOLDERS.items():
        if splits is None and not (root / folder).is_dir():
            continue
        if splits is not None and split not in splits:
            continue
        place = need_folder(root / folder, f"the {split} videos of DFDC")
        read = _read_training if split == "train" else _read_labelled
        sources += read(root, place, split, partial)
    if not sources:
        raise FileNotFoundError(f"{root} holds none of the folders {', '.join(_FOLDERS)}")
    return sources


def _read_training(root: Path, place: Path, split: str, partial: bool) -> list[MediaSource]:
    files = sorted(place.glob("*/metadata.json"))
    if not files:
        raise FileNotFoundError(f"{place} holds no */metadata.json, one for each part of DFDC")
    return [
        source
        for file in files
        for source in _sources(
            root, file.parent, _entries(need_json(file, "labels"), file), split, partial, file
        )
    ]


def _read_labelled(root: Path, place: Path, split: str, partial: bool) -> list[MediaSource]:
    file = place / "labels.csv"
    listed: dict[str, dict[str, Any]] = {}
    for where, row in read_table(file, ("filename", "label")):
        if row["label"] not in ("0", "1"):
            raise ValueError(
                f"{where}: the label of {row['filename']} must be 0 (real) or 1 (fake), got "
                f"{row['label']!r}"
            )
        if row["filename"] in listed:
            raise ValueError(f"{where}: {row['filename']} is listed twice")
        listed[row["filename"]] = {"label": "fake" if row["label"] == "1" else "real"}
    inner = place / "videos"
    return _sources(root, inner if inner.is_dir() else place, listed, split, partial, file)


def _sources(
    root: Path,
    place: Path,
    listed: Mapping[str, Mapping[str, Any]],
    split: str,
    partial: bool,
    file: Path,
) -> list[MediaSource]:
    videos = {path.name: path for path in videos_in(place).values()}
    check_complete(list(listed), list(videos), str(place), partial)
    sources = []
    for name, path in videos.items():
        label = _label(listed[name], f"{file}, {name}")
        original = listed[name].get("original") if label == FAKE else None
        sources.append(
            MediaSource(
                path=path,
                name=relative_name(path, root),
                video_id=f"{split}/{path.stem}",
                identity=f"{split}/{Path(original or name).stem}",
                label=label,
                split=split,
            )
        )
    return sources


def _entries(value: Any, file: Path) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
        raise ValueError(f"{file} must be an object with an object for each video")
    return value


def _label(entry: Mapping[str, Any], where: str) -> int:
    label = _LABELS.get(str(entry.get("label")).lower())
    if label is None:
        raise ValueError(f"{where}: the label must be real or fake, got {entry.get('label')!r}")
    return label
