"""Files to prepare, each with everything that is known about it except its faces.

Readers of benchmarks make these records; :func:`~llava_forgery.faces.prepare.prepare_sources` reads
the files and finds the faces.
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
    """One photograph, video, or frame saved as a picture."""

    path: Path
    """The file, a picture or a video depending on its content."""
    name: str
    """Name in the manifest: a path relative to the prepared folder, with forward slashes. Unique
    among the sources of one run. :func:`llava_forgery.files.is_name` holds for this and the other
    names."""
    video_id: str
    """Id shared by pictures that are frames of one video."""
    identity: str | None
    """The person; faces of one identity are never in different splits. None if unknown, or if a
    benchmark's own splits do not keep people apart: ``video_id`` is then used instead."""
    label: int
    """0 real, 1 fake."""
    split: str
    """``"train"``, ``"val"`` or ``"test"``."""
    method: str | None = None
    """Method of the forgery, such as ``"Deepfakes"``; None if real or unknown."""
    compression: str | None = None
    """Compression of the video, such as ``"c23"``; None if unknown."""
    mask_path: Path | None = None
    """Picture or video with the same frames and size, whose bright pixels are forged."""
    frame: int | None = None
    """Number in its video, from 0, of a picture that was a frame."""

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
        """Whether the file is a video, by its content; by its name if it does not exist.

        Raises:
            OSError: The file cannot be read.
        """
        return kind_of(self.path) is Kind.VIDEO

    @property
    def person(self) -> str:
        """The identity, or ``video_id`` if it is unknown."""
        return self.identity or self.video_id


def check_sources(sources: Iterable[MediaSource]) -> None:
    """Check the list as a whole, before hours are spent on it.

    Raises:
        ValueError: A name occurs twice, or an identity or a video is in two splits.
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
                    f"{what} {value!r} is in the splits {before} and {source.split} (there with "
                    f"{source.name}); each must be in a single split. If given splits do not keep "
                    "people apart, omit the identity (None)"
                )


@dataclass(frozen=True)
class MediaFiles:
    """The pictures and videos of a folder and its subfolders."""

    root: Path
    """Folder that the paths are relative to."""
    files: list[str]
    """Sorted paths with forward slashes."""
    problems: list[tuple[str, str]]
    """Files and folders that cannot be read, each with the reason; undecodable bytes of names are
    escaped."""
    others: dict[str, int]
    """Number of files that are neither, by suffix, and of hidden ones as ``hidden``."""


def find_media(src: Path, leave_out: Path | None = None) -> MediaFiles:
    """List the pictures and videos of a folder, or one file.

    The content of a file decides whether it is a picture or a video, or its name if the content is
    inconclusive. Links to files and folders are followed; each folder is entered once.

    Args:
        src: Folder or file. Hidden files and folders are skipped.
        leave_out: Folder to skip.

    Raises:
        FileNotFoundError: ``src`` does not exist, or holds neither pictures nor videos nor anything
            that cannot be read.
        ValueError: ``src`` is a file of another type.
    """
    if src.is_file():
        if kind_of(src) is None:
            raise ValueError(f"{src} is neither picture nor video by its content or its name")
        return MediaFiles(src.parent, [src.name], [], {})
    if not src.is_dir():
        what = "is not a regular file" if os.path.lexists(src) else "does not exist"
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
    """All pictures and videos below a folder, with an error for any that cannot be read.

    Args:
        folder: Folder, searched recursively like :func:`find_media`.
        videos: Whether videos are allowed.

    Returns:
        Sorted paths; empty if the folder does not exist or holds none.

    Raises:
        ValueError: Something cannot be read, or there is a video although only pictures are
            allowed.
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
        # By device and inode, so that a folder is entered once however it is reached.
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
                self._problem(here, f"it leads to the folder {other}, which is already searched")
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
            # Links last, so that the link is reported and not the folder it leads to.
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
            # Opening a pipe would block forever.
            kind = kind_of(path) if path.is_file() else None
        except OSError as error:
            self._problem(path, f"it cannot be read ({error.strerror})")
            return
        if not path.is_file() and promised:
            self._problem(path, "it is not a regular file")
        elif kind is None:
            self.others[path.suffix.lower()] += 1
        elif not _is_text(self._relative(path)):
            self._problem(path, "its name is not valid UTF-8; rename it")
        else:
            self.files.append(self._relative(path))

    def _relative(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()

    def _name(self, path: Path) -> str:
        return _shown(self._relative(path))

    def _problem(self, path: Path, reason: str) -> None:
        self.problems.append((self._name(path), reason))


def _shown(name: str) -> str:
    """A name with its undecodable bytes escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
