"""DeepfakeBench's data set JSON, read and written (Yan et al., 2023; its ``rearrange.py``)::

    {"FaceForensics++": {"FF-DF": {"test": {"c23": {"000_003": {
        "label": "FF-DF", "frames": [".../000.png", ...], "masks": [".../000.png", ...]}}}}}}

Only FaceForensics++, FaceShifter and DeepFakeDetection have the level of the compression. A frame
is a picture of a face, named after its number in the video; a mask has the name of its frame. DF40
(Yan et al., 2024) uses the same format, with labels such as ``simswap_Fake``.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from os.path import commonpath
from pathlib import Path, PurePosixPath
from typing import Any

from llava_forgery.constants import FAKE, REAL
from llava_forgery.faces.benchmarks.listing import check_split, need_json, some
from llava_forgery.faces.records import SPLITS
from llava_forgery.faces.sources import MediaSource
from llava_forgery.files import contained

logger = logging.getLogger(__name__)

# Label of DeepfakeBench: our label, and the method of forgery if it is given.
LABELS: dict[str, tuple[int, str | None]] = {
    "FF-real": (REAL, None),
    "FF-DF": (FAKE, "Deepfakes"),
    "FF-F2F": (FAKE, "Face2Face"),
    "FF-FS": (FAKE, "FaceSwap"),
    "FF-NT": (FAKE, "NeuralTextures"),
    "FF-FH": (FAKE, "FaceShifter"),
    "FF-SH": (FAKE, "FaceShifter"),
    "DFD_real": (REAL, None),
    "DFD_fake": (FAKE, "DeepFakeDetection"),
    "CelebDFv1_real": (REAL, None),
    "CelebDFv1_fake": (FAKE, "Celeb-synthesis"),
    "CelebDFv2_real": (REAL, None),
    "CelebDFv2_fake": (FAKE, "Celeb-synthesis"),
    "DFDCP_Real": (REAL, None),
    "DFDCP_FakeA": (FAKE, "method_A"),
    "DFDCP_FakeB": (FAKE, "method_B"),
    "DFDC_Real": (REAL, None),
    "DFDC_Fake": (FAKE, None),
    "DF_real": (REAL, None),
    "DF_fake": (FAKE, "DeeperForensics"),
    "UADFV_Real": (REAL, None),
    "UADFV_Fake": (FAKE, None),
}
# Suffixes of the other labels; what precedes them is the method.
_ENDINGS = {"real": REAL, "fake": FAKE}
# Data sets with a level of compression, and the data set whose labels they use.
COMPRESSED = {
    "FaceForensics++": "FF-",
    "FF-DF": "FF-",
    "FF-F2F": "FF-",
    "FF-FS": "FF-",
    "FF-NT": "FF-",
    "FaceShifter": "FF-",
    "DeepFakeDetection": "DFD_",
}
_PREFIXES = COMPRESSED | {
    "Celeb-DF-v1": "CelebDFv1_",
    "Celeb-DF-v2": "CelebDFv2_",
    "DFDCP": "DFDCP_",
    "DFDC": "DFDC_",
    "UADFV": "UADFV_",
}
RGB_FOLDER = "./datasets/rgb"
"""Default folder in which its training looks for pictures."""


def read_deepfakebench(
    path: str | PathLike,
    images: str | PathLike,
    *,
    splits: Sequence[str] = SPLITS,
    compressions: Sequence[str] = ("c23",),
    masks: bool = True,
    partial: bool = False,
) -> list[MediaSource]:
    """Frames of one of DeepfakeBench's or DF40's JSON files, sorted by number within a video.

    A frame whose name is not a number, such as a picture that is not from a video, has no number.

    Args:
        path: JSON file.
        images: Folder of pictures that its paths are relative to (DeepfakeBench's ``rgb_dir``).
        splits: Splits to read. Some files list a video in several splits: read only one of them.
        compressions: Levels of compression to read, if there are any.
        masks: Whether to read the masks that the file names.
        partial: Accept that frames are missing.

    Raises:
        FileNotFoundError: The file, a frame or a mask is missing.
        ValueError: The structure differs, a label is unknown, a video is in two of the splits, a
            mask lacks its frame or a frame its mask, or there is nothing in these splits.
    """
    path, images = Path(path), Path(images)
    for split in splits:
        check_split(split)
    value = need_json(path, "a data set JSON of DeepfakeBench")
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{path} must be an object {{DATASET: {{LABEL: ...}}}}")
    sources: list[MediaSource] = []
    seen: dict[str, str] = {}
    missing = 0
    for where, label, split, compression, video, entry in _videos(value, path, splits):
        if compression is not None and compression not in compressions:
            continue
        video_id = "/".join(part for part in (label, compression, video) if part)
        if seen.setdefault(video_id, split) != split:
            raise ValueError(
                f"{path}: the video {video_id} is in the splits {seen[video_id]} and {split}; "
                f"read one of them (splits=({split!r},), --split {split})"
            )
        value_of_label, method = read_label(label)
        for name, frame, mask in _frames(entry, where, masks):
            file = _find(frame, images, where)
            if file is None and partial:
                missing += 1
                continue
            if file is None:
                raise FileNotFoundError(
                    f"{where}: there is no file {frame} below {images}; complete the pictures, "
                    "accept missing ones (partial=True, --partial), or check whether its paths are "
                    "relative to another folder"
                )
            mask_path = None if mask is None else _find(mask, images, where)
            if mask is not None and mask_path is None:
                raise FileNotFoundError(
                    f"{where}: there is no mask {mask} below {images}; a missing mask is not an "
                    "empty one: complete the masks, or read without them (masks=False, --no-masks)"
                )
            sources.append(
                MediaSource(
                    path=file,
                    name=f"{video_id}/{name}",
                    video_id=video_id,
                    identity=None,
                    label=value_of_label,
                    split=split,
                    method=method,
                    compression=compression,
                    mask_path=mask_path,
                    frame=_number(frame),
                )
            )
    if missing:
        logger.warning("%s: %d of its frames are not below %s", path, missing, images)
    if missing and not sources:
        raise FileNotFoundError(
            f"of the {missing} frames that {path} names, none is below {images}; its paths are "
            "relative to that folder: is it the right one?"
        )
    if not sources:
        raise ValueError(
            f"{path} has no frames of the splits {', '.join(splits)} and the compressions "
            f"{', '.join(compressions)}"
        )
    return sources


def to_deepfakebench(
    sources: Iterable[MediaSource],
    dataset: str,
    root: str | PathLike,
    prefix: str = RGB_FOLDER,
) -> dict[str, Any]:
    """Frames as DeepfakeBench's JSON, to be written by :func:`llava_forgery.files.write_json`.

    Args:
        sources: Pictures with a frame number.
        dataset: One of DeepfakeBench's names, such as ``"Celeb-DF-v2"``: its labels are used. With
            another name the labels are ``NAME_real`` and ``NAME_fake``, which must be added to the
            ``label_dict`` of DeepfakeBench's configuration.
        root: Folder of pictures; paths are written relative to it.
        prefix: Prefix of these paths. DeepfakeBench uses a path unchanged if it begins with a
            full stop, relative to the folder in which its training is started.

    Raises:
        ValueError: There are no sources, one is a video, a method has no label in the data set, or
            a compression is missing or not allowed.
    """
    root = Path(root)
    labels: dict[str, Any] = {}
    for source in sources:
        if source.is_video or source.frame is None:
            raise ValueError(
                f"{source.name} is not a numbered frame; DeepfakeBench reads pictures: prepare "
                "videos first"
            )
        label = _label_of(source, dataset)
        videos = labels.setdefault(label, {split: {} for split in SPLITS})[source.split]
        if dataset in COMPRESSED:
            if source.compression is None:
                raise ValueError(f"{source.name} has no compression, which {dataset} needs")
            videos = videos.setdefault(source.compression, {})
        video = PurePosixPath(source.video_id).name
        entry = videos.setdefault(
            video, {"label": label, "frames": [], "masks": [], "of": source.video_id}
        )
        if entry["of"] != source.video_id:
            raise ValueError(
                f"two videos of {label} are called {video}: {entry['of']} and {source.video_id}"
            )
        entry["frames"].append(_written(source.path, root, prefix))
        if source.mask_path is not None:
            entry["masks"].append(_written(source.mask_path, root, prefix))
    if not labels:
        raise ValueError(f"no frames were given for {dataset}")
    for splits in labels.values():
        for videos in splits.values():
            for level in videos.values() if dataset in COMPRESSED else (videos,):
                for entry in level.values():
                    del entry["of"]
                    entry["frames"].sort(key=_numeric)
                    entry["masks"].sort(key=_numeric)
    return {dataset: labels}


def _videos(
    value: Mapping[str, Any], path: Path, splits: Sequence[str]
) -> Iterator[tuple[str, str, str, str | None, str, Mapping[str, Any]]]:
    """Location, label, split, compression or None, name and entry of each video."""
    for dataset, labels in value.items():
        for label, of_splits in _object(labels, f"{path}, {dataset}").items():
            if read_label(label) is None:
                raise ValueError(
                    f"{path}, {dataset}: unknown label {label!r}; known are {', '.join(LABELS)} "
                    "and names that end in _Real or _Fake"
                )
            of_splits = _object(of_splits, f"{path}, {dataset}, {label}")
            for split in splits:
                videos = _object(of_splits.get(split, {}), f"{path}, {label}, {split}")
                levels = {None: videos}
                # A level of compression is recognised by having no frames of its own.
                if videos and not any("frames" in _object(v, label) for v in videos.values()):
                    levels = videos
                for level, inner in levels.items():
                    for video, entry in _object(inner, f"{path}, {label}, {split}").items():
                        where = f"{path}, {label}, {split}, {video}"
                        entry = _object(entry, where)
                        if entry.get("label", label) != label:
                            raise ValueError(f"{where} has the label {entry['label']!r} in it")
                        yield where, label, split, level, video, entry


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, got {type(value).__name__}")
    return value


def read_label(label: str) -> tuple[int, str | None] | None:
    """Our label, 0 real or 1 fake, and the method of a fake, for one of DeepfakeBench's or DF40's.

    None if it is neither in ``LABELS`` nor ends in ``_Real`` or ``_Fake``.
    """
    if label in LABELS:
        return LABELS[label]
    method, _, ending = label.rpartition("_")
    if not method or ending.lower() not in _ENDINGS:
        return None
    value = _ENDINGS[ending.lower()]
    return value, method if value == FAKE else None


def _frames(
    entry: Mapping[str, Any], where: str, with_masks: bool
) -> list[tuple[str, PurePosixPath, PurePosixPath | None]]:
    """Names and paths of the frames, sorted by number, each with its mask or None."""
    frames, masks = (_by_name(entry.get(name) or (), where) for name in ("frames", "masks"))
    if not frames:
        raise ValueError(f"{where} has no frames; prepare the video again, or remove it")
    if with_masks and masks and set(masks) != set(frames):
        lonely = sorted(set(masks) - set(frames))
        bare = sorted(set(frames) - set(masks))
        if lonely:
            raise ValueError(f"{where}: no frames belong to the masks {some(lonely)}")
        raise ValueError(
            f"{where}: the frames {some(bare)} have no masks, others have; a missing mask is "
            "not an empty one: complete them, or read without masks (masks=False, --no-masks)"
        )
    found = masks if with_masks else {}
    return [
        (f"{name}{frames[name].suffix}", frames[name], found.get(name))
        for name in sorted(frames, key=_numeric)
    ]


def _by_name(paths: Iterable[str], where: str) -> dict[str, PurePosixPath]:
    """Paths by their names without suffix, preceded by differing folders if names repeat."""
    # Paths written on Windows contain backslashes.
    files = list(dict.fromkeys(PurePosixPath(text.replace("\\", "/")) for text in paths))
    found = {file.stem: file for file in files}
    if len(found) < len(files):
        try:
            common = commonpath([file.parent for file in files])
        except ValueError as error:
            raise ValueError(f"{where} mixes absolute and relative paths: {error}") from error
        found = {str(file.relative_to(common).with_suffix("")): file for file in files}
    if len(found) < len(files):
        raise ValueError(f"{where} names one frame in two formats; expected each once")
    return found


def _numeric(name: str) -> tuple[Any, ...]:
    """Sort key of frames: by number, 2 before 10, then by folder."""
    folder, _, stem = name.rpartition("/")
    parts = re.split(r"(\d+)", stem)
    return [int(part) if part.isdecimal() else part for part in parts], folder


def _number(frame: PurePosixPath) -> int | None:
    return int(frame.stem) if frame.stem.isdecimal() else None


def _find(path: PurePosixPath, root: Path, where: str) -> Path | None:
    """The file that a path of the JSON names; None if it does not exist."""
    text = str(path)
    for start in ("datasets/rgb/", "datasets/"):
        text = text.removeprefix(start)
    try:
        # An absolute path is fine as long as it leads there.
        files = [contained(root, str(path)), contained(root, text)]
    except ValueError as error:
        raise ValueError(
            f"{where}: {error}; expected paths below the folder of pictures (--images)"
        ) from error
    return next((file for file in files if file.is_file()), None)


def _label_of(source: MediaSource, dataset: str) -> str:
    prefix = _PREFIXES.get(dataset)
    if prefix is None:
        return f"{dataset}_{'fake' if source.label == FAKE else 'real'}"
    known = {
        name: made_by
        for name, (label, made_by) in LABELS.items()
        if name.startswith(prefix) and label == source.label
    }
    # A data set with one kind of fakes needs no method.
    fitting = [name for name, made_by in known.items() if made_by == source.method]
    if not fitting and len(known) == 1:
        fitting = list(known)
    if not fitting:
        raise ValueError(
            f"{source.name}: the method {source.method!r} has no label in {dataset}; expected one "
            f"of {', '.join(str(made_by) for made_by in known.values())}"
        )
    return fitting[0]


def _written(path: Path, root: Path, prefix: str) -> str:
    return f"{prefix}/{path.relative_to(root).as_posix()}"
