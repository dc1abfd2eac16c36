"""Verdicts on videos: the faces of some frames, followed, judged and pooled."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from llava_forgery.constants import REAL
from llava_forgery.faces.crop import Box, crop_box
from llava_forgery.faces.extract import CropSettings, find_faces
from llava_forgery.faces.sources import VIDEO_SUFFIXES, MediaSource
from llava_forgery.faces.video import FrameChoice, Video
from llava_forgery.infer.overlay import photograph_overlay
from llava_forgery.infer.predictor import MARGIN, FaceInput, ForgeryPredictor
from llava_forgery.infer.verdict import Verdict, agree
from llava_forgery.pooling import check_reduction, pool

_JUDGED_AT_ONCE = 8
# Of a picture of a video's faces: how many, and how wide at most, in pixels.
_DRAWN = 8
_DRAWN_WIDTH = 1920


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
    """A face in one frame; its pixels are read again where they are needed again."""

    box: Box
    frame: int
    track: int
    area: float


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
    path = Path(path)
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise ValueError(f"{path} is no video by its suffix; expected {', '.join(VIDEO_SUFFIXES)}")
    look = _whole_frames if cropped else _tracked_faces
    tracks: dict[int, list[tuple[_Seen, FrameScore]]] = {}
    with closing(look(predictor, path, frames or FrameChoice())) as found:
        while batch := list(islice(found, _JUDGED_AT_ONCE)):
            rated = zip(*predictor.predict_scores([face for face, _ in batch]), strict=True)
            for (_, seen), (score, p_yes) in zip(batch, rated, strict=True):
                frame_score = FrameScore(seen.frame, score, p_yes)
                tracks.setdefault(seen.track, []).append((seen, frame_score))
    if not tracks:
        raise ValueError(
            f"no face was found in the frames of {path} that were looked at; look at more of them "
            "(--frames), or pass cropped=True (--cropped) if they are face crops already"
        )
    # As prepare chooses the main face of a video.
    by_size = sorted(tracks.values(), key=lambda rows: -sum(seen.area for seen, _ in rows))
    return _describe(predictor, path, by_size, reduce)


def video_overlay(path: str | PathLike, verdicts: Sequence[VideoVerdict]) -> Image.Image:
    """For the first faces of a video, below each other, the described frame beside its map.

    Args:
        path: The video.
        verdicts: Of its faces; eight are drawn at most.
    """
    verdicts = verdicts[:_DRAWN]
    pictures = dict(Video(path).read(sorted({verdict.frame for verdict in verdicts})))
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
    predictor: ForgeryPredictor, path: Path, choice: FrameChoice
) -> Iterator[tuple[FaceInput, _Seen]]:
    video = Video(path)
    with closing(video.read(choice.numbers(len(video)))) as pictures:
        for number, image in pictures:
            (face,) = predictor.find_faces(image, cropped=True)
            yield face, _Seen(face.box, number, 0, 1.0)


def _tracked_faces(
    predictor: ForgeryPredictor, path: Path, choice: FrameChoice
) -> Iterator[tuple[FaceInput, _Seen]]:
    # Split and label are not known and not read.
    source = MediaSource(
        path, name=path.name, video_id=path.name, identity=None, label=REAL, split="test"
    )
    settings = CropSettings(predictor.size, MARGIN, largest_only=False, frames=choice)
    for found in find_faces(source, predictor.face_detector, settings):
        crop = found.crop
        seen = _Seen(crop.box, crop.frame, crop.track, found.area)
        yield FaceInput(crop.image, crop.box), seen


def _describe(
    predictor: ForgeryPredictor,
    path: Path,
    tracks: Sequence[Sequence[tuple[_Seen, FrameScore]]],
    reduce: str,
) -> list[VideoVerdict]:
    """Pool each track, and write the answer on the frame that is closest to the pooled score."""
    pooled, shown = [], []
    for rows in tracks:
        scores = [score for _, score in rows]
        score = pool(np.array([s.score for s in scores]), reduce)
        pooled.append((score, pool(np.array([s.p_yes for s in scores]), reduce)))
        shown.append(min(rows, key=lambda row: abs(row[1].score - score))[0])
    pictures = Video(path).read(sorted({seen.frame for seen in shown}))
    faces: dict[int, FaceInput] = {}
    for number, image in pictures:
        for i, seen in enumerate(shown):
            if seen.frame == number:
                faces[i] = FaceInput(crop_box(image, seen.box, predictor.size), seen.box)
    verdicts: list[Verdict] = []
    for start in range(0, len(shown), _JUDGED_AT_ONCE):
        stop = min(start + _JUDGED_AT_ONCE, len(shown))
        verdicts += predictor.predict_faces([faces[i] for i in range(start, stop)])
    return [
        VideoVerdict(
            **vars(
                replace(
                    verdict, score=score, p_yes=p_yes, agree=agree(score, p_yes, verdict.answer)
                )
            ),
            frame=seen.frame,
            track=seen.track,
            frames=tuple(frame_score for _, frame_score in rows),
        )
        for verdict, (score, p_yes), seen, rows in zip(verdicts, pooled, shown, tracks, strict=True)
    ]
