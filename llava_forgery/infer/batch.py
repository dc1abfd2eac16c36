"""Judging pictures, videos and folders of them; what fails is reported and the rest goes on."""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from llava_forgery.faces.images import SUFFIXES, read_image
from llava_forgery.faces.sources import VIDEO_SUFFIXES
from llava_forgery.faces.video import FrameChoice
from llava_forgery.infer.overlay import photograph_overlay, save_png
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.infer.verdict import Verdict
from llava_forgery.infer.video import judge_video, video_overlay

logger = logging.getLogger(__name__)


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
        """Plain values for JSON, as ``llava-forgery detect --json`` prints them."""
        faces = [{**face.to_dict(), "overlay": self.overlay} for face in self.faces]
        return {"file": self.file, "error": self.error, "faces": faces}


def list_media(paths: Iterable[str | Path]) -> Iterator[tuple[Path, str | None]]:
    """Files to read, in order, and a sentence for each path that gives none.

    Args:
        paths: Files and folders; folders are searched to the bottom.

    Yields:
        The file and None, or the path and why there is nothing to read.
    """
    for path in map(Path, paths):
        if path.is_dir():
            kinds = (*sorted(SUFFIXES), *VIDEO_SUFFIXES)
            files = sorted(f for f in path.rglob("*") if f.suffix.lower() in kinds)
            if not files:
                yield path, f"the folder {path} holds no images or videos ({', '.join(kinds)})"
            yield from ((file, None) for file in files)
        elif path.is_file():
            yield path, None
        else:
            yield path, f"there is no file or folder {path}"


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
    """
    if not cropped:
        # What every file would fail for stops here.
        _ = predictor.face_detector
    for path, problem in list_media(paths):
        if problem is not None:
            logger.error(problem)
            yield FileVerdicts(str(path), error=problem)
            continue
        try:
            if path.suffix.lower() in VIDEO_SUFFIXES:
                faces = judge_video(predictor, path, frames=frames, cropped=cropped, reduce=reduce)
                draw = partial(video_overlay, path)
            else:
                pixels = read_image(path)
                faces = predictor.predict_all(pixels, cropped)
                draw = partial(photograph_overlay, pixels)
        # Without PyAV the pictures can still be judged.
        except (ValueError, FileNotFoundError, ImportError) as error:
            logger.error("%s: %s", path, error)
            yield FileVerdicts(str(path), error=str(error))
            continue
        overlay = None
        if overlay_dir is not None:
            overlay = str(_overlay_path(Path(overlay_dir), path))
            note = f"map of the forged area in {path.name}, drawn by a detector"
            save_png(draw(faces), overlay, note)
        yield FileVerdicts(str(path), faces=faces, overlay=overlay)


def _overlay_path(directory: Path, source: Path) -> Path:
    """A name that files of one name in different folders do not share."""
    tag = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:8]
    return directory / f"{source.stem}-{tag}.png"
