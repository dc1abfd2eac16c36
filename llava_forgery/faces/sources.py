"""What is to be prepared: files, each with all that is known of it but its faces.

Whoever knows a benchmark's folders makes these records; :func:`~llava_forgery.faces.prepare.
prepare_sources` reads the files and finds the faces.
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llava_forgery.constants import FAKE, REAL
from llava_forgery.faces.records import SPLITS
from llava_forgery.files import check_name
from llava_forgery.images import SUFFIXES

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
"""File types that are read as videos."""


@dataclass(frozen=True, slots=True)
class MediaSource:
    """One photograph, video or frame that was saved as a picture."""

    path: Path
    """The file. Its suffix decides between picture and video."""
    name: str
    """What the manifest calls it: a path relative to the prepared folder, forward slashes. Unique
    among the sources of one run. For this and the other names
    :func:`llava_forgery.files.is_name` holds."""
    video_id: str
    """Pictures that are frames of one video share it."""
    identity: str | None
    """Who it is; faces of one identity never stand in different splits. None where it is not
    known, or where a benchmark's own splits do not keep people apart: ``video_id`` then takes its
    place."""
    label: int
    """0 real, 1 fake."""
    split: str
    """``"train"``, ``"val"`` or ``"test"``."""
    method: str | None = None
    """What made the forgery, such as ``"Deepfakes"``; None if real or not known."""
    compression: str | None = None
    """Such as ``"c23"``; None if not known."""
    mask_path: Path | None = None
    """Picture or video of the same frames and size whose bright pixels are forged."""
    frame: int | None = None
    """Of a picture that was a frame of a video: its number there, from 0."""

    def __post_init__(self) -> None:
        for name in ("path", "mask_path"):
            value = getattr(self, name)
            if not isinstance(value, Path) and not (name == "mask_path" and value is None):
                raise ValueError(f"{name} must be a Path, got {value!r}")
        if not self.path.name.lower().endswith(SUFFIXES + VIDEO_SUFFIXES):
            raise ValueError(
                f"{self.path} is neither picture nor video by its suffix; expected one of "
                f"{', '.join(SUFFIXES + VIDEO_SUFFIXES)}"
            )
        for name in ("name", "video_id", "identity", "method", "compression"):
            if getattr(self, name) is not None or name in ("name", "video_id"):
                check_name(getattr(self, name), f"{name} of {self.path}")
        if self.label not in (REAL, FAKE):
            raise ValueError(
                f"label of {self.path} must be {REAL} (real) or {FAKE} (fake), got {self.label!r}"
            )
        if self.split not in SPLITS:
            raise ValueError(
                f"split of {self.path} must be one of {', '.join(SPLITS)}, got {self.split!r}"
            )
        if self.frame is not None and (
            self.is_video or not isinstance(self.frame, int) or self.frame < 0
        ):
            raise ValueError(
                f"frame of {self.path} must be None for a video and 0 or more for a picture, got "
                f"{self.frame!r}"
            )

    @property
    def is_video(self) -> bool:
        """Whether its suffix is that of a video."""
        return self.path.name.lower().endswith(VIDEO_SUFFIXES)

    @property
    def person(self) -> str:
        """The identity, or what stands for it."""
        return self.identity or self.video_id


def check_sources(sources: Iterable[MediaSource]) -> None:
    """Check what only the list as a whole can show, before hours are spent on it.

    Raises:
        ValueError: A name that occurs twice; an identity or a video in two splits.
    """
    names: set[str] = set()
    splits: dict[tuple[str, str], str] = {}
    for source in sources:
        if source.name in names:
            raise ValueError(f"{source.name} occurs twice among the sources; expected it once")
        names.add(source.name)
        for what, value in (("identity", source.person), ("video_id", source.video_id)):
            before = splits.setdefault((what, value), source.split)
            if before != source.split:
                raise ValueError(
                    f"{what} {value!r} stands in the splits {before} and {source.split} (there "
                    f"with {source.name}); every one must stand in a single split. Where given "
                    "splits do not keep people apart, leave the identity out (None)"
                )


@dataclass(frozen=True)
class MediaFiles:
    """The pictures and videos of a folder and its subfolders."""

    root: Path
    """What the paths are relative to."""
    files: list[str]
    """Paths with forward slashes, sorted."""
    unnamed: list[str]
    """Files whose names are not text in this system's encoding, the odd bytes written out."""
    others: dict[str, int]
    """How many files there are of other suffixes."""


def find_media(src: Path, leave_out: Path | None = None) -> MediaFiles:
    """List a folder, or one file.

    Args:
        src: Folder or file. Hidden files and folders are left out.
        leave_out: A folder that is not entered.

    Raises:
        FileNotFoundError: ``src`` does not exist, or holds neither pictures nor videos.
        ValueError: ``src`` is a file of another type.
    """
    kinds = SUFFIXES + VIDEO_SUFFIXES
    if src.is_file():
        if not src.name.lower().endswith(kinds):
            raise ValueError(f"{src} is neither picture nor video; expected {', '.join(kinds)}")
        return MediaFiles(src.parent, [src.name], [], {})
    if not src.is_dir():
        raise FileNotFoundError(
            f"{src} does not exist; expected a folder of photographs and videos, or one of them"
        )
    avoided = leave_out.resolve() if leave_out is not None else None
    files, unnamed, others = [], [], Counter()
    for folder, subfolders, names in os.walk(src):
        here = Path(folder)
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".") and (here / name).resolve() != avoided
        ]
        for name in names:
            if name.startswith("."):
                continue
            path = (here / name).relative_to(src).as_posix()
            if not name.lower().endswith(kinds):
                others[Path(name).suffix.lower()] += 1
            elif not _is_text(path):
                unnamed.append(os.fsencode(path).decode("utf-8", "backslashreplace"))
            else:
                files.append(path)
    if not files:
        raise FileNotFoundError(
            f"{src} holds no pictures or videos; expected files ending in {', '.join(kinds)}"
        )
    readable = {os.fsencode(k).decode("utf-8", "replace"): n for k, n in sorted(others.items())}
    return MediaFiles(src, sorted(files), sorted(unnamed), readable)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
