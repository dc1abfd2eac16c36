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
from llava_forgery.faces.kinds import Kind, kind_by_name, kind_of
from llava_forgery.faces.records import SPLITS
from llava_forgery.files import check_name


@dataclass(frozen=True, slots=True)
class MediaSource:
    """One photograph, video or frame that was saved as a picture."""

    path: Path
    """The file. What it holds decides between picture and video."""
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
            kind_by_name(self.path.name) is Kind.VIDEO
            or not isinstance(self.frame, int)
            or self.frame < 0
        ):
            raise ValueError(
                f"frame of {self.path} must be None for a video and 0 or more for a picture, got "
                f"{self.frame!r}"
            )

    @property
    def is_video(self) -> bool:
        """Whether the file is a video, by what it holds; by its name if it is not there.

        Raises:
            OSError: It cannot be read.
        """
        return kind_of(self.path) is Kind.VIDEO

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
    problems: list[tuple[str, str]]
    """What may hold pictures or videos and cannot be read, each with a sentence; odd bytes of names
    are written out."""
    others: dict[str, int]
    """How many files are neither, by suffix, and hidden ones as ``hidden``."""


def find_media(src: Path, leave_out: Path | None = None) -> MediaFiles:
    """List a folder, or one file.

    What a file holds decides whether it is a picture or a video, and its name where that does not
    tell. Links to files and folders are followed; each folder is entered once.

    Args:
        src: Folder or file. Hidden files and folders are left out.
        leave_out: A folder that is not entered.

    Raises:
        FileNotFoundError: ``src`` does not exist, or holds neither pictures nor videos nor anything
            that could not be read.
        ValueError: ``src`` is a file of another type.
    """
    if src.is_file():
        if kind_of(src) is None:
            raise ValueError(f"{src} is neither picture nor video by what it holds or its name")
        return MediaFiles(src.parent, [src.name], [], {})
    if not src.is_dir():
        what = "is no regular file" if os.path.lexists(src) else "does not exist"
        raise FileNotFoundError(
            f"{src} {what}; expected a folder of photographs and videos, or one of them"
        )
    listing = _Listing(src, leave_out)
    listing.enter(src)
    if not listing.files and not listing.problems:
        passed = ", ".join(f"{count} {kind or 'without suffix'}" for kind, count in
                           sorted(listing.others.items()))  # fmt: skip
        raise FileNotFoundError(
            f"{src} holds no pictures or videos ({passed or 'it is empty'}); expected photographs "
            "or videos in it or its subfolders"
        )
    others = {_shown(kind): count for kind, count in sorted(listing.others.items())}
    return MediaFiles(src, sorted(listing.files), sorted(listing.problems), others)


def media_below(folder: Path, *, videos: bool = True) -> list[Path]:
    """All pictures and videos below a folder, where each of them counts.

    Args:
        folder: Searched to the bottom, as :func:`find_media` does.
        videos: False where only pictures can be read.

    Returns:
        Sorted paths; none where the folder is not there or holds none.

    Raises:
        ValueError: Something cannot be read, or there is a video where only pictures can be.
    """
    try:
        found = find_media(folder)
    except FileNotFoundError:
        return []
    if found.problems:
        told = "; ".join(f"{name}: {reason}" for name, reason in found.problems[:3])
        raise ValueError(
            f"{folder} holds {len(found.problems)} entries that cannot be read ({told})"
        )
    paths = [folder / name for name in found.files]
    for path in paths if not videos else ():
        if kind_of(path) is Kind.VIDEO:
            raise ValueError(
                f"{path} is a video or an animation; expected pictures: cut faces out of videos "
                "with `data prepare` first"
            )
    return sorted(paths)


class _Listing:
    def __init__(self, root: Path, leave_out: Path | None) -> None:
        self._root = root
        # By device and number: however a folder is reached, it is entered once.
        self._seen: dict[tuple[int, int], Path] = {}
        if leave_out is not None and leave_out.is_dir():
            status = leave_out.stat()
            self._left_out: tuple[int, int] | None = (status.st_dev, status.st_ino)
        else:
            self._left_out = None
        self.files: list[str] = []
        self.problems: list[tuple[str, str]] = []
        self.others: Counter[str] = Counter()

    def enter(self, folder: Path) -> None:
        pending = [folder]
        while pending:
            here = pending.pop()
            try:
                status = here.stat()
                entries = sorted(os.scandir(here), key=lambda entry: entry.name)
            except OSError as error:
                self._problem(here, f"the folder cannot be read ({error.strerror})")
                continue
            known = (status.st_dev, status.st_ino)
            if known == self._left_out:
                continue
            if known in self._seen:
                other = self._name(self._seen[known])
                self._problem(here, f"it leads to the folder {other}, which is searched already")
                continue
            self._seen[known] = here
            inside = []
            for entry in entries:
                path = here / entry.name
                if entry.name.startswith("."):
                    self.others["hidden"] += 1
                elif path.is_dir():
                    inside.append(path)
                else:
                    self._add(path)
            # Links last, so that what is told of is the link and not the folder it leads to.
            pending[:0] = [path for path in inside if path.is_symlink()]
            pending += [path for path in inside if not path.is_symlink()]

    def _add(self, path: Path) -> None:
        promised = kind_by_name(path.name)
        try:
            if not path.exists():
                if promised:
                    self._problem(path, "it is a link that leads nowhere")
                else:
                    self.others[path.suffix.lower()] += 1
                return
            # Opening a pipe would wait for ever.
            kind = kind_of(path) if path.is_file() else None
        except OSError as error:
            self._problem(path, f"it cannot be read ({error.strerror})")
            return
        if not path.is_file() and promised:
            self._problem(path, "it is no regular file")
        elif kind is None:
            self.others[path.suffix.lower()] += 1
        elif not _is_text(self._relative(path)):
            self._problem(path, "its name is no text in this encoding (UTF-8); rename it")
        else:
            self.files.append(self._relative(path))

    def _relative(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()

    def _name(self, path: Path) -> str:
        return _shown(self._relative(path))

    def _problem(self, path: Path, reason: str) -> None:
        self.problems.append((self._name(path), reason))


def _shown(name: str) -> str:
    """A name with its odd bytes written out."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
