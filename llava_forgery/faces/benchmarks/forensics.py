"""FaceForensics++ (Rössler et al., 2019) and DeepFakeDetection, which shares its folders.

The layout that the official download script makes, and the repository's ``dataset/splits``::

    ROOT/original_sequences/youtube/c23/videos/000.mp4
         original_sequences/actors/c23/videos/01__kitchen_pan.mp4                     (DFD)
         manipulated_sequences/Deepfakes/c23/videos/000_003.mp4
         manipulated_sequences/Deepfakes/masks/videos/000_003.mp4      (one for all compressions)
         manipulated_sequences/DeepFakeDetection/c23/videos/01_02__kitchen_pan__ABCDEFGH.mp4
         splits/train.json val.json test.json      (or in ROOT): [["000", "003"], ...]

The layout of some copies, ``c23/masks/000_003.mp4``, is read as well.
"""

import logging
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from llava_forgery.constants import FAKE, REAL
from llava_forgery.faces.benchmarks.listing import (
    check_complete,
    is_there,
    match_masks,
    need_folder,
    need_json,
    relative_name,
    videos_in,
)
from llava_forgery.faces.records import SPLITS
from llava_forgery.faces.sources import MediaSource

logger = logging.getLogger(__name__)

METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "FaceShifter", "NeuralTextures")
COMPRESSIONS = ("raw", "c23", "c40")
# The authors do not distribute masks of it.
WITHOUT_MASKS = ("FaceShifter",)
_DFD = "DeepFakeDetection"


def read_forensics(
    root: str | PathLike,
    *,
    methods: Sequence[str] | None = None,
    compressions: Sequence[str] = ("c23",),
    masks: bool | None = None,
    partial: bool = False,
) -> list[MediaSource]:
    """FaceForensics++ with its official splits.

    The two videos of a pair and the forgeries made from them share an identity, ``"000_003"``: the
    official splits keep pairs together.

    Args:
        root: Folder of the benchmark.
        methods: Some of ``METHODS``; None for those that have a folder.
        compressions: Some of ``COMPRESSIONS``; one video in two of them counts as two.
        masks: Whether to read masks of forgeries; None to read those whose folder exists.
        partial: Accept that folders, or videos of the splits, are missing.

    Raises:
        FileNotFoundError: A folder, a split file, a video or a mask is missing.
        ValueError: A method or compression is unknown, or a video is in no split or in two.
    """
    root = need_folder(Path(root), "the folder of FaceForensics++")
    manipulated = root / "manipulated_sequences"
    if methods is None:
        methods = [method for method in METHODS if (manipulated / method).is_dir()]
        if not methods:
            raise FileNotFoundError(f"{manipulated} holds none of {', '.join(METHODS)}")
    _check_names("method", methods, METHODS)
    _check_names("compression", compressions, COMPRESSIONS)
    splits, pairs = _read_splits(root)
    originals = {name: name for pair in pairs for name in pair}
    forged = {f"{a}_{b}": a for pair in pairs for a, b in (pair, pair[::-1])}
    partners = {name: "_".join(sorted(pair)) for pair in pairs for name in pair}

    sources = []
    for compression in compressions:
        parts = [("youtube", root / "original_sequences/youtube", originals)]
        parts += [(method, manipulated / method, forged) for method in methods]
        for part, folder, expected in parts:
            place = folder / compression / "videos"
            if not is_there(place, f"the videos of {part}", partial):
                continue
            videos = videos_in(place)
            check_complete(list(expected), list(videos), str(place), partial)
            label = REAL if part == "youtube" else FAKE
            found = {}
            if label == FAKE and part not in WITHOUT_MASKS:
                found = _masks(folder, compression, videos, masks, partial)
            for name, path in videos.items():
                sources.append(
                    MediaSource(
                        path=path,
                        name=relative_name(path, root),
                        video_id=f"{part}/{compression}/{name}",
                        identity=partners[expected[name]],
                        label=label,
                        split=splits[expected[name]],
                        method=part if label == FAKE else None,
                        compression=compression,
                        mask_path=found.get(name),
                    )
                )
    return sources


def read_dfd(
    root: str | PathLike,
    *,
    compressions: Sequence[str] = ("c23",),
    masks: bool | None = None,
    partial: bool = False,
) -> list[MediaSource]:
    """DeepFakeDetection (Google and Jigsaw), all for testing, as there are no official splits.

    The identity is the actor in the picture, whose face the forgeries replace.

    Args:
        root: Folder of FaceForensics++.
        compressions: Some of ``COMPRESSIONS``.
        masks: As for :func:`read_forensics`.
        partial: Accept that folders, or videos of masks, are missing.

    Raises:
        FileNotFoundError: A folder, its videos or a mask is missing.
        ValueError: A compression is unknown, or the name of a video does not give the actor.
    """
    root = need_folder(Path(root), "the folder of FaceForensics++")
    _check_names("compression", compressions, COMPRESSIONS)
    sources = []
    for compression in compressions:
        for label, folder, pattern, form in (
            (REAL, root / "original_sequences/actors", r"(\d\d)__.+", "01__scene"),
            (FAKE, root / "manipulated_sequences" / _DFD, r"(\d\d)_\d\d__.+", "01_02__scene__ID"),
        ):
            place = folder / compression / "videos"
            if not is_there(place, f"the videos of {folder.name}", partial):
                continue
            videos = videos_in(place)
            if not videos and not partial:
                raise FileNotFoundError(f"{place} holds no videos at all")
            found = _masks(folder, compression, videos, masks, partial) if label == FAKE else {}
            for name, path in videos.items():
                match = re.fullmatch(pattern, name)
                if match is None:
                    raise ValueError(f"{path} is not named like {form}: the person is not known")
                sources.append(
                    MediaSource(
                        path=path,
                        name=relative_name(path, root),
                        video_id=f"{folder.name}/{compression}/{name}",
                        identity=match[1],
                        label=label,
                        split="test",
                        method=_DFD if label == FAKE else None,
                        compression=compression,
                        mask_path=found.get(name),
                    )
                )
    return sources


def _check_names(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}; expected some of {', '.join(known)}")
    if not names:
        raise ValueError(f"expected at least one {what} of {', '.join(known)}, got none")


def _read_splits(root: Path) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The split of each original video, and all pairs."""
    places = [root / "splits", root / "dataset/splits", root]
    folder = next((place for place in places if (place / "train.json").is_file()), places[0])
    splits: dict[str, str] = {}
    pairs = []
    for split in SPLITS:
        file = folder / f"{split}.json"
        listed = need_json(file, "the official splits of the FaceForensics repository")
        for pair in listed if isinstance(listed, list) else [listed]:
            names = pair if isinstance(pair, list) and len(pair) == 2 else [None]
            if not all(isinstance(name, str) and name.isdigit() for name in names):
                raise ValueError(f'{file} holds {pair!r}; expected pairs such as ["000", "003"]')
            for name in pair:
                if name in splits:
                    raise ValueError(
                        f"video {name} is in two pairs, of the splits {splits[name]} and "
                        f"{split} ({file}); expected it once"
                    )
                splits[name] = split
            pairs.append((pair[0], pair[1]))
    return splits, pairs


def _masks(
    folder: Path, compression: str, videos: dict[str, Path], wanted: bool | None, partial: bool
) -> dict[str, Path]:
    """The masks of the videos of a method."""
    places = [folder / "masks/videos", folder / compression / "masks"]
    place = next((place for place in places if place.is_dir()), None)
    if wanted is False:
        return {}
    if place is None:
        if wanted:
            need_folder(places[0], "masks, which the download script gets with --type masks")
        logger.info("%s has no masks", folder)
        return {}
    masks = videos_in(place)
    match_masks(videos, masks, str(place), partial)
    return masks
