"""Celeb-DF, versions 1 and 2 (Li et al., 2020), and Celeb-DF++ (Li et al., 2025)::

    ROOT/Celeb-real/id0_0000.mp4  YouTube-real/00000.mp4  Celeb-synthesis/id0_id1_0000.mp4
         List_of_testing_videos.txt:  1 YouTube-real/00170.mp4      (1 is real, 0 is fake)

Celeb-DF++ has the forgeries of each method in a folder of its own::

    ROOT/Celeb-synthesis/FaceSwap/SimSwap/id0_id1_0000.mp4  FaceReenact/LIA/...  TalkingFace/...

DeepfakeBench's layout, ``Celeb-real/videos/id0_0000.mp4``, is read as well.
"""

import re
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from llava_forgery.constants import FAKE, LABEL_NAMES, REAL
from llava_forgery.faces.benchmarks.listing import (
    check_complete,
    is_there,
    need_folder,
    relative_name,
    videos_in,
    without_shared_people,
)
from llava_forgery.faces.sources import MediaSource
from llava_forgery.tables import read_text

LIST = "List_of_testing_videos.txt"
_FAKES = "Celeb-synthesis"
# Folder: label, pattern of the names; the group is the person in the picture.
_FOLDERS = {
    "Celeb-real": (REAL, r"(id\d+)_\d+"),
    "YouTube-real": (REAL, r"(\d+)"),
    _FAKES: (FAKE, r"(id\d+)_id\d+_\d+"),
}
# The labels of the list, opposite to the project's.
_LISTED = {"1": REAL, "0": FAKE}


def read_celeb_df(root: str | PathLike, *, partial: bool = False) -> list[MediaSource]:
    """Celeb-DF: the listed videos for testing, all others for training.

    In the published benchmark both splits show the same people, so no identities are given.

    Args:
        root: Folder of the benchmark, version 1 or 2.
        partial: Accept that a folder or listed videos are missing.

    Raises:
        FileNotFoundError: A folder, the list or a listed video is missing.
        ValueError: A line of the list is malformed, contradicts the folder, or is a duplicate; the
            name of a video has another pattern; or the folder is that of Celeb-DF++.
    """
    root = need_folder(Path(root), "the folder of Celeb-DF")
    methods = _method_folders(root)
    if methods:
        raise ValueError(
            f"{root} is Celeb-DF++: {methods[0]} is a folder of one method; read it as celeb-df++"
        )
    folders = [(name, _FAKES if label == FAKE else None) for name, (label, _) in _FOLDERS.items()]
    return _read(root, folders, partial, "Celeb-DF")


def read_celeb_df_pp(root: str | PathLike, *, partial: bool = False) -> list[MediaSource]:
    """Celeb-DF++: as :func:`read_celeb_df`, each forgery with its method, such as ``"SimSwap"``.

    Args:
        root: Folder of the benchmark, ``Celeb-DF-v3`` as distributed.
        partial: Accept that a folder or listed videos are missing.

    Raises:
        FileNotFoundError: A folder, the list or a listed video is missing.
        ValueError: As for :func:`read_celeb_df`.
    """
    root = need_folder(Path(root), "the folder of Celeb-DF++")
    methods = _method_folders(root)
    if not methods and not partial:
        raise FileNotFoundError(
            f"{root / _FAKES} holds no folders such as FaceSwap/SimSwap; versions 1 and 2 are read "
            "as celeb-df-v1 and celeb-df-v2"
        )
    folders: list[tuple[str, str | None]] = [
        (name, None) for name, (label, _) in _FOLDERS.items() if label == REAL
    ]
    folders += [(folder, Path(folder).name) for folder in methods]
    return _read(root, folders, partial, "Celeb-DF++")


def _method_folders(root: Path) -> list[str]:
    """``Celeb-synthesis/FaceSwap/SimSwap`` and the other folders of Celeb-DF++."""
    found = sorted(path for path in (root / _FAKES).glob("*/*") if path.is_dir())
    return [relative_name(path, root) for path in found]


def _read(
    root: Path, folders: list[tuple[str, str | None]], partial: bool, benchmark: str
) -> list[MediaSource]:
    """Videos of folders, each given with its method of forgery; None for real videos."""
    listed = _read_list(root / LIST)
    places = dict(folders)
    found = {
        f"{folder}/{name}": path
        for folder in places
        for name, path in _videos(root / folder, partial)
    }
    # Videos that are not on the list are for training.
    check_complete(listed | set(found), list(found), str(root), partial)
    sources = []
    for video, path in found.items():
        folder, name = video.rsplit("/", 1)
        label, pattern = _FOLDERS[folder.split("/")[0]]
        # Celeb-DF++ does not document how it names its newer forgeries.
        match = re.fullmatch(pattern, name) or ("/" in folder and re.match(r"(id\d+)_", name))
        if not match and "/" not in folder:
            raise ValueError(f"{path} is not named like the videos of {folder} ({pattern})")
        person = match[1] if match else None
        sources.append(
            MediaSource(
                path=path,
                name=relative_name(path, root),
                video_id=video,
                # The people of YouTube-real are numbered separately.
                identity=f"youtube-{person}" if person and person.isdecimal() else person,
                label=label,
                split="test" if video in listed else "train",
                method=places[folder],
            )
        )
    return without_shared_people(sources, benchmark)


def _videos(place: Path, partial: bool) -> Iterator[tuple[str, Path]]:
    if is_there(place, "a folder of Celeb-DF", partial):
        inner = place / "videos"
        yield from videos_in(inner if inner.is_dir() else place).items()


def _read_list(path: Path) -> set[str]:
    """The videos for testing, as paths without the suffix."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; expected Celeb-DF's list of test videos")
    listed: set[str] = set()
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        number_and_file = line.split(maxsplit=1)
        if len(number_and_file) != 2 or number_and_file[0] not in _LISTED:
            raise ValueError(f"{where}: expected '1 Celeb-real/id0_0000.mp4', got {line!r}")
        file = Path(number_and_file[1].strip().replace("\\", "/"))
        if file.parts[0] not in _FOLDERS or len(file.parts) < 2:
            raise ValueError(f"{where}: {file} is in none of {', '.join(_FOLDERS)}")
        label = _LISTED[number_and_file[0]]
        of_folder = _FOLDERS[file.parts[0]][0]
        if label != of_folder:
            raise ValueError(
                f"{where}: {file} is listed as {LABEL_NAMES[label]} (1 is real), but its folder "
                f"holds {LABEL_NAMES[of_folder]} videos"
            )
        key = file.with_suffix("").as_posix()
        if key in listed:
            raise ValueError(f"{where}: {file} is listed twice")
        listed.add(key)
    if not listed:
        raise ValueError(f"{path} lists no videos")
    return listed
