"""Verdicts on videos: the faces of some frames, followed, judged and pooled."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava_forgery.constants import REAL
from llava_forgery.faces.animation import open_video
from llava_forgery.faces.crop import MARGIN, Box, crop_box
from llava_forgery.faces.extract import CropSettings, find_faces
from llava_forgery.faces.kinds import Kind, kind_of
from llava_forgery.faces.sources import MediaSource
from llava_forgery.faces.video import FrameChoice
from llava_forgery.infer.overlay import photograph_overlay
from llava_forgery.infer.predictor import FaceFinder, FaceInput, ForgeryPredictor
from llava_forgery.infer.segments import FrameScore, Segment, split_scores
from llava_forgery.infer.verdict import Verdict, agree
from llava_forgery.pooling import check_reduction, pool

_JUDGED_AT_ONCE = 8
# Of a picture of a video's faces: how many, and how wide at most, in pixels.
_DRAWN = 8
_DRAWN_WIDTH = 1920


@dataclass(frozen=True)
class VideoVerdict(Verdict):
    """What detector and language model say of one face along a video.

    ``score`` and ``p_yes`` are pooled over the frames; where not all faces are asked about
    (``answers``), ``p_yes`` is that of ``frame``. Answer, regions, mask and box are those of
    ``frame``, whose own score is the closest to the pooled one: the video as it mostly is, not its
    most striking moment.
    """

    frame: int
    """Number of the frame that is described, from 0."""
    seconds: float
    """When it is shown, in seconds from the video's beginning."""
    track: int
    """Number of the face in this video, from 0."""
    frames: tuple[FrameScore, ...]
    """All frames of this face that were judged, in order."""

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The parts between which the scores change for good; empty where they do not."""
        return split_scores(self.frames)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the mask."""
        frames = [score._asdict() for score in self.frames]
        mine = {"frame": self.frame, "seconds": self.seconds, "track": self.track}
        segments = [segment._asdict() for segment in self.segments]
        return {**super().to_dict(), **mine, "frames": frames, "segments": segments}


@dataclass(frozen=True)
class SeenFace:
    """A face in one frame; its pixels are read again where they are needed again."""

    box: Box
    """The square that is judged, in pixels of the frame."""
    frame: int
    """Number of the frame in the video, from 0."""
    track: int
    """Number of the face in the video, from 0."""
    area: float
    """Of the detector's box, in pixels of the frame."""
    seconds: float
    """When the frame is shown, in seconds from the video's beginning."""
    warnings: tuple[str, ...] = ()
    """What is wrong with the square, in whole phrases."""


@dataclass(frozen=True)
class Track:
    """One face along a video: where it was seen, and what each of these frames says."""

    faces: tuple[SeenFace, ...]
    scores: tuple[FrameScore, ...]
    """As many as ``faces``, of the same frames."""

    def pooled(self, reduce: str) -> tuple[float, float | None]:
        """Score and P(yes) over the frames, each in [0, 1]; see :func:`judge_video`."""
        scores, p_yes = ([getattr(s, name) for s in self.scores] for name in ("score", "p_yes"))
        known = None if None in p_yes else pool(np.array(p_yes), reduce)
        return pool(np.array(scores), reduce), known

    def shown(self, reduce: str) -> SeenFace:
        """The face in the frame that is described: its score is the closest to the pooled one."""
        pooled = pool(np.array([score.score for score in self.scores]), reduce)
        gaps = [abs(score.score - pooled) for score in self.scores]
        return self.faces[gaps.index(min(gaps))]

    def verdict(self, shown: Verdict, reduce: str) -> VideoVerdict:
        """The verdict of the video from that of the frame that is described."""
        score, p_yes = self.pooled(reduce)
        if p_yes is None:
            p_yes = shown.p_yes
        face = self.shown(reduce)
        agreed = agree(score, p_yes, shown.answer, shown.thresholds.fake)
        warnings = shown.warnings
        if split_scores(self.scores):
            warnings += ("its scores change for good along the video: one score of the whole hides "
                         "that, see segments",)  # fmt: skip
        whole = replace(shown, score=score, p_yes=p_yes, agree=agreed, warnings=warnings)
        return VideoVerdict(
            **vars(whole),
            frame=face.frame,
            seconds=face.seconds,
            track=face.track,
            frames=tuple(self.scores),
        )


def judge_video(
    predictor: ForgeryPredictor,
    path: str | PathLike,
    *,
    frames: FrameChoice | None = None,
    cropped: bool = False,
    reduce: str = "mean",
) -> list[VideoVerdict]:
    """Judge the faces of a video, the one seen largest and longest first.

    Score and P(yes) are computed for every chosen frame, the answer is written once for each face.

    Args:
        predictor: The skill.
        path: The video.
        frames: Which frames; 32 spread evenly by default.
        cropped: The frames are face crops already, of one face; see ``find_faces`` of a predictor.
        reduce: How frames are pooled: ``mean``, ``median``, ``max``, or ``top_k``, the mean of the
            five highest. See :func:`llava_forgery.evaluation.video.video_level`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, or none of the chosen frames shows a face.
        ImportError: PyAV is not installed (extra ``video``); animations need none.
    """
    check_reduction(reduce)
    path = Path(path)
    if kind_of(path) is not Kind.VIDEO:
        raise ValueError(f"{path} is neither a video nor an animation; judge it as a photograph")
    rows: list[tuple[SeenFace, FrameScore]] = []
    with closing(find_video_faces(predictor, path, frames or FrameChoice(), cropped)) as found:
        while batch := list(islice(found, _JUDGED_AT_ONCE)):
            rated = zip(*predictor.predict_scores([face for face, _ in batch]), strict=True)
            for (_, seen), (score, p_yes) in zip(batch, rated, strict=True):
                rows.append((seen, FrameScore(seen.frame, score, p_yes, seen.seconds)))
    return _describe(predictor, path, join_tracks(rows, path), reduce)


def find_video_faces(
    finder: FaceFinder, path: Path, choice: FrameChoice, cropped: bool = False
) -> Generator[tuple[FaceInput, SeenFace], None, None]:
    """The faces of a video's frames, followed.

    Args:
        finder: Finds them, such as a predictor.
        path: The video.
        choice: Which frames.
        cropped: As for :func:`judge_video`.

    Yields:
        What is judged and where it was seen, in the order of the frames.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read.
        ImportError: PyAV is not installed (extra ``video``).
    """
    return (_whole_frames if cropped else _tracked_faces)(finder, path, choice)


def join_tracks(rows: Iterable[tuple[SeenFace, FrameScore]], path: str | PathLike) -> list[Track]:
    """The faces of a video from those of its frames, the one seen largest and longest first.

    Args:
        rows: In the order of the frames.
        path: Names the video in the error.

    Raises:
        ValueError: There is no face.
    """
    tracks: dict[int, list[tuple[SeenFace, FrameScore]]] = {}
    for row in rows:
        tracks.setdefault(row[0].track, []).append(row)
    if not tracks:
        raise ValueError(no_face(path))
    # As prepare chooses the main face of a video.
    by_size = sorted(tracks.values(), key=lambda rows: -sum(seen.area for seen, _ in rows))
    return [Track(*map(tuple, zip(*rows, strict=True))) for rows in by_size]


def no_face(path: str | PathLike) -> str:
    """What is said of a video without a face."""
    return (
        f"no face was found in the frames of {path} that were looked at; look at more of them "
        "(--frames), or give a video in which the face is larger, or seen from the front"
    )


def video_overlay(path: str | PathLike, verdicts: Sequence[VideoVerdict]) -> Image.Image:
    """For the first faces of a video, below each other, the described frame beside its map.

    Args:
        path: The video.
        verdicts: Of its faces; eight are drawn at most.
    """
    verdicts = verdicts[:_DRAWN]
    pictures = dict(open_video(path).read(sorted({verdict.frame for verdict in verdicts})))
    rows = []
    for verdict in verdicts:
        row = photograph_overlay(pictures[verdict.frame], [verdict], f"frame {verdict.frame}")
        row.thumbnail((_DRAWN_WIDTH, row.height))
        rows.append(row)
    # Frames of one video can differ in size.
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), "white")
    y = 0
    for row in rows:
        sheet.paste(row, (0, y))
        y += row.height
    return sheet


def _whole_frames(
    finder: FaceFinder, path: Path, choice: FrameChoice
) -> Generator[tuple[FaceInput, SeenFace], None, None]:
    video = open_video(path)
    with closing(video.read(choice.numbers(len(video)))) as pictures:
        for number, image in pictures:
            (face,) = finder.find_faces(image, cropped=True)
            seconds = video.seconds(number)
            yield face, SeenFace(face.box, number, 0, 1.0, seconds, face.warnings)


def _tracked_faces(
    finder: FaceFinder, path: Path, choice: FrameChoice
) -> Generator[tuple[FaceInput, SeenFace], None, None]:
    # Split and label are not known and not read.
    source = MediaSource(
        path, name=path.name, video_id=path.name, identity=None, label=REAL, split="test"
    )
    settings = CropSettings(finder.size, MARGIN, largest_only=False, frames=choice)
    for found in find_faces(source, finder.face_detector, settings):
        crop = found.crop
        # Known of every face of a video.
        assert crop.frame is not None
        assert crop.track is not None
        assert found.seconds is not None
        seen = SeenFace(crop.box, crop.frame, crop.track, found.area, found.seconds)
        yield FaceInput(crop.image, crop.box), seen


def _describe(
    predictor: ForgeryPredictor, path: Path, tracks: Sequence[Track], reduce: str
) -> list[VideoVerdict]:
    """Pool each track, and write the answer on the frame that is closest to the pooled score."""
    shown = [track.shown(reduce) for track in tracks]
    faces = list(crop_seen(path, shown, predictor.size))
    verdicts: list[Verdict] = []
    for start in range(0, len(faces), _JUDGED_AT_ONCE):
        verdicts += predictor.predict_faces(faces[start : start + _JUDGED_AT_ONCE])
    pairs = zip(tracks, verdicts, strict=True)
    return [track.verdict(verdict, reduce) for track, verdict in pairs]


def crop_seen(path: str | PathLike, seen: Sequence[SeenFace], size: int) -> list[FaceInput]:
    """Cut faces out of a video's frames again.

    Args:
        path: The video.
        seen: Where they were, in any order.
        size: Side of the squares in pixels.

    Returns:
        As many as ``seen``, in its order.
    """
    crops: dict[int, FaceInput] = {}
    for number, image in open_video(path).read(sorted({face.frame for face in seen})):
        for i, face in enumerate(seen):
            if face.frame == number:
                crops[i] = FaceInput(crop_box(image, face.box, size), face.box, face.warnings)
    return [crops[i] for i in range(len(seen))]
