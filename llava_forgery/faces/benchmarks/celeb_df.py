"""Celeb-DF, versions 1 and 2 (Li et al., 2020)::

    ROOT/Celeb-real/id0_0000.mp4  YouTube-real/00000.mp4  Celeb-synthesis/id0_id1_0000.mp4
         List_of_testing_videos.txt:  1 YouTube-real/00170.mp4      (1 is real, 0 is fake)

``Celeb-real/videos/id0_0000.mp4``, as DeepfakeBench keeps it, is read as well.
"""

import re
from os import PathLike
from pathlib import Path

from llava_forgery.constants import FAKE, LABEL_NAMES, REAL
from llava_forgery.faces.benchmarks.listing import (
    check_complete,
    need_folder,
    relative_name,
    videos_in,
    without_shared_people,
)
from llava_forgery.faces.sources import MediaSource

LIST = "List_of_testing_videos.txt"
# Folder: label, form of the names; the group is the person in the picture.
_FOLDERS = {
    "Celeb-real": (REAL, r"(id\d+)_\d+"),
    "YouTube-real": (REAL, r"(\d+)"),
    "Celeb-synthesis": (FAKE, r"(id\d+)_id\d+_\d+"),
}
# The list's own numbers, the other way round than the project's.
_LISTED = {"1": REAL, "0": FAKE}


def read_celeb_df(root: str | PathLike, *, partial: bool = False) -> list[MediaSource]:
    """Celeb-DF: the listed videos for testing, all others for training.

    In the real benchmark both splits show the same people, so that no identities are given.

    Args:
        root: The benchmark's folder, of either version.
        partial: Take the videos that are there although the list names more.

    Raises:
        FileNotFoundError: A folder, the list or a listed video is missing.
        ValueError: A line of the list that cannot be understood, contradicts the folder, or comes
            twice; a video of another form of name.
    """
    root = need_folder(Path(root), "the folder of Celeb-DF")
    listed = _read_list(root / LIST)
    sources = []
    for folder, (label, pattern) in _FOLDERS.items():
        place = need_folder(root / folder, "a folder of Celeb-DF")
        inner = place / "videos"
        place = inner if inner.is_dir() else place
        videos = videos_in(place)
        testing = {name for there, name in listed if there == folder}
        # Videos that the list does not name are the training's.
        check_complete(testing | set(videos), list(videos), str(place), partial)
        for name, path in videos.items():
            match = re.fullmatch(pattern, name)
            if match is None:
                raise ValueError(f"{path} is not named as the videos of {folder} are ({pattern})")
            sources.append(
                MediaSource(
                    path=path,
                    name=relative_name(path, root),
                    video_id=f"{folder}/{name}",
                    # YouTube's people are counted for themselves.
                    identity=match[1] if match[1].startswith("id") else f"youtube-{match[1]}",
                    label=label,
                    split="test" if name in testing else "train",
                    method="Celeb-synthesis" if label == FAKE else None,
                )
            )
    return without_shared_people(sources, "Celeb-DF")


def _read_list(path: Path) -> set[tuple[str, str]]:
    """Folder and name of each video for testing."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; expected the list that Celeb-DF carries")
    listed: set[tuple[str, str]] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        number_and_file = line.split(maxsplit=1)
        if len(number_and_file) != 2 or number_and_file[0] not in _LISTED:
            raise ValueError(f"{where}: expected '1 Celeb-real/id0_0000.mp4', got {line!r}")
        file = Path(number_and_file[1].strip().replace("\\", "/"))
        if file.parts[0] not in _FOLDERS or len(file.parts) != 2:
            raise ValueError(f"{where}: {file} lies in none of {', '.join(_FOLDERS)}")
        label = _LISTED[number_and_file[0]]
        of_folder = _FOLDERS[file.parts[0]][0]
        if label != of_folder:
            raise ValueError(
                f"{where}: {file} is listed as {LABEL_NAMES[label]} (1 is real), but its folder "
                f"holds {LABEL_NAMES[of_folder]} videos"
            )
        key = (file.parts[0], file.stem)
        if key in listed:
            raise ValueError(f"{where}: {file} is listed twice")
        listed.add(key)
    if not listed:
        raise ValueError(f"{path} lists no videos")
    return listed
