"""Verdicts on videos: the faces of some frames, followed, judged and pooled."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from llava_forgery.constants import REAL
from llava_forgery.evaluation.video import check_reduction, pool
from llava_forgery.faces.extract import CropSettings, find_faces
from llava_forgery.faces.sources import MediaSource
from llava_forgery.faces.video import FrameChoice, Video
from llava_forgery.infer.overlay import photograph_overlay
from llava_forgery.infer.predictor import MARGIN, ForgeryPredictor, JudgedFace
from llava_forgery.infer.verdict import Verdict, agree

_RATED_AT_ONCE = 8


class FrameScore(NamedTuple):
    """What one frame of a track says."""

    frame: int
    """Its number in the video, from 0."""
    score: float
    """The detector's probability of fake."""
    p_yes: float
    """The language model's probability of "Yes" (fake)."""


@dataclass(frozen=True)
class VideoVerdict(Verdict):
    """What detector and language model say of one face along a video.

    ``score`` and ``p_yes`` are pooled over the frames. Answer, regions, mask and box are those of
    ``frame``, whose own score is the closest to the pooled one: the video as it mostly is, not its
    most striking moment.
    """

    frame: int
    """Number of the frame that is described, from 0."""
    track: int
    """Number of the face in this video, from 0."""
    frames: tuple[FrameScore, ...]
    """All frames of this face that were judged, in order."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the mask."""
        frames = [score._asdict() for score in self.frames]
        return {**super().to_dict(), "frame": self.frame, "track": self.track, "frames": frames}


@dataclass(frozen=True)
class _Seen:
    """A face in one frame."""

    face: JudgedFace
    frame: int
    track: int


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
        cropped: The frames are face crops already, of one face; none is looked for.
        reduce: How frames are pooled: ``mean``, ``median``, ``max``, or ``top_k``, the mean of the
            five highest. See :func:`llava_forgery.evaluation.video.video_level`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, or none of the chosen frames shows a face.
        ImportError: PyAV is not installed (extra ``video``).
    """
    check_reduction(reduce)
    frames = frames or FrameChoice()
    look = _whole_frames if cropped else _tracked_faces
    seen = list(look(predictor, Path(path), frames))
    if not seen:
        raise ValueError(
            f"no face was found in the frames of {path} that were looked at; look at more of them "
            "(--frames), or pass cropped=True (--cropped) if they are face crops already"
        )
    scores = _rate(predictor, seen)
    tracks: dict[int, list[int]] = {}
    for i, item in enumerate(seen):
        tracks.setdefault(item.track, []).append(i)
    by_size = sorted(tracks.values(), key=lambda rows: -sum(_area(seen[i]) for i in rows))
    return [
        _verdict(predictor, [seen[i] for i in rows], [scores[i] for i in rows], reduce)
        for rows in by_size
    ]


def video_overlay(path: str | PathLike, verdicts: Sequence[VideoVerdict]) -> Image.Image:
    """For each face of a video, below each other, the frame that is described beside its map.

    Args:
        path: The video.
        verdicts: Of its faces.
    """
    video = Video(path)
    numbers = sorted({verdict.frame for verdict in verdicts})
    pictures = dict(video.read(numbers))
    rows = [
        photograph_overlay(pictures[verdict.frame], [verdict], f"frame {verdict.frame}")
        for verdict in verdicts
    ]
    return Image.fromarray(np.vstack([np.asarray(row) for row in rows]))


def _whole_frames(predictor: ForgeryPredictor, path: Path, choice: FrameChoice) -> Iterator[_Seen]:
    video = Video(path)
    with closing(video.read(choice.numbers(len(video)))) as pictures:
        for number, image in pictures:
            (face,) = predictor.find_faces(image, cropped=True)
            yield _Seen(face, number, 0)


def _tracked_faces(predictor: ForgeryPredictor, path: Path, choice: FrameChoice) -> Iterator[_Seen]:
    # Split and label are not known and not read.
    source = MediaSource(
        path, name=path.name, video_id=path.name, identity=None, label=REAL, split="test"
    )
    settings = CropSettings(predictor.size, MARGIN, largest_only=False, frames=choice)
    for found in find_faces(source, predictor.face_detector, settings):
        crop = found.crop
        yield _Seen(JudgedFace(crop.image, crop.box), crop.frame, crop.track)


def _rate(predictor: ForgeryPredictor, seen: Sequence[_Seen]) -> list[FrameScore]:
    scores = []
    for start in range(0, len(seen), _RATED_AT_ONCE):
        batch = seen[start : start + _RATED_AT_ONCE]
        rated = zip(*predictor.rate([item.face for item in batch]), strict=True)
        scores += [
            FrameScore(item.frame, score, p_yes)
            for item, (score, p_yes) in zip(batch, rated, strict=True)
        ]
    return scores


def _verdict(
    predictor: ForgeryPredictor, seen: Sequence[_Seen], scores: Sequence[FrameScore], reduce: str
) -> VideoVerdict:
    score = pool(np.array([s.score for s in scores]), reduce)
    p_yes = pool(np.array([s.p_yes for s in scores]), reduce)
    shown = min(range(len(seen)), key=lambda i: abs(scores[i].score - score))
    (verdict,) = predictor.judge([seen[shown].face])
    pooled = replace(verdict, score=score, p_yes=p_yes, agree=agree(score, p_yes))
    return VideoVerdict(
        **vars(pooled),
        frame=seen[shown].frame,
        track=seen[shown].track,
        frames=tuple(scores),
    )


def _area(item: _Seen) -> float:
    x0, y0, x1, y1 = item.face.box
    return (x1 - x0) * (y1 - y0)
