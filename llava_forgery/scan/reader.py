"""Reading: from a file to the faces that are judged, with the package's own readers."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from llava_forgery.faces.animation import open_video
from llava_forgery.faces.kinds import Kind, kind_of
from llava_forgery.faces.video import FrameChoice
from llava_forgery.images import set_pixel_limit
from llava_forgery.infer.batch import error_sentence
from llava_forgery.infer.predictor import FaceFinder
from llava_forgery.infer.video import crop_seen, find_video_faces, no_face
from llava_forgery.scan.sources import local_copy, read_chunks
from llava_forgery.scan.units import Item, Unit

# So often a file may be the one that was read when its process died.
_MOST_DEATHS = 3


class Registry(Protocol):
    """What the readers of a scan ask; see :class:`llava_forgery.scan.registry.Registry`."""

    def begin(self, paths: Sequence[str]) -> int:
        """Say that files are read now; how often the same call was begun and not ended before."""

    def end(self, paths: Sequence[str]) -> None:
        """Say that they were read."""

    def claim(self, sha256: str, kind: str | None, path: str) -> bool:
        """Whether this file is the one that is judged, of all with these bytes and this kind."""


@dataclass(frozen=True)
class ReadSettings:
    """How files are read."""

    frames: FrameChoice = field(default_factory=FrameChoice)
    """Which frames of a video are looked at."""
    cropped: bool = False
    """The files are face crops already."""
    max_pixels: int | None = None
    """Of the largest picture or frame that is read; None: Pillow's limit."""
    span: int = 256
    """Of a video more frames than that are looked at in spans."""

    def __post_init__(self) -> None:
        if self.span < 1:
            raise ValueError(f"span must be 1 or more frames, got {self.span}")


class Reader:
    """Reads files and finds their faces; whatever one of them fails for is said in its item.

    Args:
        finder: Finds the faces.
        settings: How files are read.
        registry: Tells duplicates, and files that kill their process.
    """

    def __init__(self, finder: FaceFinder, settings: ReadSettings, registry: Registry) -> None:
        self.finder, self.settings, self.registry = finder, settings, registry
        if settings.max_pixels is not None:
            set_pixel_limit(settings.max_pixels)
        if not settings.cropped:
            # What every file would fail for stops here.
            _ = finder.face_detector

    def __call__(self, units: Sequence[Unit]) -> list[Item]:
        """The faces of files, an item for each, in order."""
        paths = [unit.path for unit in units]
        alone = self.registry.begin(paths) > 0
        # A process died over one of these: which one shows when they are begun one by one.
        items = [self._guarded(unit) if alone else self._read(unit) for unit in units]
        self.registry.end(paths)
        return items

    def _guarded(self, unit: Unit) -> Item:
        item = self._read(unit, deaths=self.registry.begin([unit.path]))
        self.registry.end([unit.path])
        return item

    def _read(self, unit: Unit, deaths: int = 0) -> Item:
        item = Item(unit)
        if unit.entry.problem is not None:
            return replace(item, error=unit.entry.problem)
        try:
            with local_copy(unit.path) as path:
                try:
                    self._fill(item, path, deaths)
                except Exception as error:
                    # Of an address, the copy's name says nothing.
                    item.error = error_sentence(error).replace(str(path), unit.path)
        except Exception as error:
            item.error = error_sentence(error)
        return item

    def _fill(self, item: Item, path: Path, deaths: int) -> None:
        unit = item.unit
        item.sha256 = unit.sha256 or hash_file(str(path))
        item.kind = kind_of(path)
        if deaths >= _MOST_DEATHS:
            # Its bytes are known: what is a duplicate of it gets the same record.
            raise ValueError(f"reading {unit.path} ended its process {deaths} times")
        if unit.tracks is not None:
            if not unit.tracks:
                raise ValueError(no_face(path))
            item.tracks, item.seen = unit.tracks, list(unit.shown)
            item.faces = crop_seen(path, item.seen, self.finder.size)
        elif unit.span is None and not self.registry.claim(item.sha256, item.kind, item.path):
            item.is_duplicate = True
        elif item.kind is not Kind.VIDEO:
            item.faces = self.finder.find_faces(path, self.settings.cropped)
        else:
            self._film(item, path)

    def _film(self, item: Item, path: Path) -> None:
        settings, choice = self.settings, item.unit.span or self.settings.frames
        if item.unit.span is None and (choice.count is None or choice.count > settings.span):
            chosen = len(choice.numbers(len(open_video(path))))
            if chosen > settings.span:
                item.long = chosen
                return
        for face, seen in find_video_faces(self.finder, path, choice, settings.cropped):
            item.faces.append(face)
            item.seen.append(seen)


def hash_file(path: str) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    for chunk in read_chunks(path):
        digest.update(chunk)
    return digest.hexdigest()
