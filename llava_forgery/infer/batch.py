"""Judging pictures, videos and folders of them; what fails is reported and the rest goes on."""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_forgery.faces.kinds import Kind, kind_of
from llava_forgery.faces.sources import find_media
from llava_forgery.faces.video import FrameChoice
from llava_forgery.images import read_image, save_png
from llava_forgery.infer.batching import complete, in_batches, read_ahead
from llava_forgery.infer.halving import is_out_of_memory
from llava_forgery.infer.overlay import photograph_overlay
from llava_forgery.infer.predictor import FaceInput, ForgeryPredictor
from llava_forgery.infer.verdict import Verdict
from llava_forgery.infer.video import judge_video, video_overlay

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
"""Of the records: it rises when a name in them changes its meaning or goes."""


@dataclass(frozen=True)
class FileVerdicts:
    """What came of one file."""

    file: str
    error: str | None = None
    """A sentence, None where the file was judged."""
    faces: list[Verdict] = field(default_factory=list)
    """The largest first; of a video a ``VideoVerdict`` for each face."""
    overlay: str | None = None
    """Path of the picture that was written, if any; one for all faces of the file."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, as ``llava-forgery detect`` prints them."""
        faces = [{**face.to_dict(), "overlay": self.overlay} for face in self.faces]
        return {
            "schema_version": SCHEMA_VERSION,
            "file": _text(self.file),
            "error": None if self.error is None else _text(self.error),
            "faces": faces,
        }


def _text(name: str) -> str:
    """What may hold a file's name whose bytes are no text, as UTF-8 can have it."""
    return name.encode("utf-8", "backslashreplace").decode()


def list_media(paths: Iterable[str | Path]) -> Iterator[tuple[Path, str | None]]:
    """Files to read, in order, and a sentence for each path that gives none.

    Args:
        paths: Files and folders; folders are searched to the bottom, hidden files left out.

    Yields:
        The file and None, or the path and why there is nothing to read.
    """
    for path in map(Path, paths):
        try:
            if path.is_file():
                yield path, None
                continue
            found = find_media(path)
        except (OSError, ValueError) as error:
            yield path, str(error)
            continue
        yield from ((path / name, None) for name in found.files)
        yield from ((path / name, f"{path / name}: {reason}") for name, reason in found.problems)
        if found.others:
            others = (f"{count} {kind or 'without'}" for kind, count in found.others.items())
            logger.info("%s: neither pictures nor videos, by suffix: %s", path, ", ".join(others))


def judge_files(
    predictor: ForgeryPredictor,
    paths: Iterable[str | Path],
    *,
    cropped: bool = False,
    overlay_dir: str | Path | None = None,
    frames: FrameChoice | None = None,
    reduce: str = "mean",
) -> Iterator[FileVerdicts]:
    """Judge every image and every video under the paths.

    Files are read and faces found in threads, ahead of the batches that the faces of several files
    share. Whatever one file fails for, memory that ran out included, is said in its record, and the
    rest is judged.

    Args:
        predictor: The skill.
        paths: Files and folders.
        cropped: The files are face crops already.
        overlay_dir: Where to write a picture for each file; None writes none.
        frames: Which frames of a video are looked at, as for :func:`judge_video`.
        reduce: How they are pooled.

    Yields:
        One record for each file, in order.

    Raises:
        ImportError: Faces must be found, and the package that finds them is not installed.
        FileNotFoundError: The same of its weights.
        OSError: A picture cannot be written, as none after it could.
    """
    if not cropped:
        # What every file would fail for stops here.
        _ = predictor.face_detector

    def read(entry: tuple[Path, str | None]) -> _ReadFile:
        return _read(predictor, *entry, cropped)

    files = ((file, file.faces) for file in read_ahead(read, list_media(paths)))
    size = predictor.limits.faces
    for file, verdicts in in_batches(files, predictor.predict_faces, size):
        path, picture = file.path, None
        try:
            if file.error is not None:
                raise file.error
            if file.is_video:
                verdicts = judge_video(
                    predictor, path, frames=frames, cropped=cropped, reduce=reduce
                )
                picture = video_overlay(path, verdicts) if overlay_dir else None
            else:
                verdicts = complete(verdicts)
                if overlay_dir:
                    picture = photograph_overlay(read_image(path), verdicts)
        except Exception as error:
            sentence = error_sentence(error)
            named = sentence.startswith(str(path))
            logger.error("%s", sentence if named else f"{path}: {sentence}")
            # For those who look for the cause.
            logger.debug("%s", path, exc_info=True)
            yield FileVerdicts(str(path), error=sentence)
            continue
        overlay = None
        if picture is not None:
            overlay = str(_overlay_path(Path(overlay_dir), path))
            note = f"map of the forged area in {path.name}, drawn by a detector"
            save_png(picture, overlay, note)
        yield FileVerdicts(str(path), faces=verdicts, overlay=overlay)


@dataclass(frozen=True)
class _ReadFile:
    """The faces of a file on their way to a batch; its own pixels are let go."""

    path: Path
    faces: Sequence[FaceInput] = ()
    is_video: bool = False
    """A video's frames are read when it is its turn."""
    error: Exception | None = None


def _read(predictor: ForgeryPredictor, path: Path, problem: str | None, cropped: bool) -> _ReadFile:
    if problem is not None:
        return _ReadFile(path, error=ValueError(problem))
    try:
        if kind_of(path) is Kind.VIDEO:
            return _ReadFile(path, is_video=True)
        # The pixels, not the path: what is said of a face that is not found names the file once.
        return _ReadFile(path, predictor.find_faces(read_image(path), cropped))
    except Exception as error:
        return _ReadFile(path, error=error)


def error_sentence(error: Exception) -> str:
    """What an error says; its name too where we did not word it, as it says little without."""
    if isinstance(error, (ValueError, FileNotFoundError, ImportError)) and str(error):
        return str(error)
    if is_out_of_memory(error):
        return f"memory ran out with one face at a time ({_first_line(error)})"
    return f"{type(error).__name__}: {_first_line(error)}".removesuffix(": ")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else ""


def _overlay_path(directory: Path, source: Path) -> Path:
    """A name that files of one name in different folders do not share."""
    tag = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:8]
    return directory / f"{source.stem}-{tag}.png"
