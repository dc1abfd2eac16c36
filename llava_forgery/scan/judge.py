"""Judging: from the faces of files to verdicts, in batches that files share."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from llava_forgery.faces.kinds import Kind
from llava_forgery.images import png_bytes, read_image
from llava_forgery.infer.batch import error_sentence
from llava_forgery.infer.batching import complete, in_batches
from llava_forgery.infer.overlay import heat_overlay, photograph_overlay
from llava_forgery.infer.predictor import FaceInput, ForgeryPredictor
from llava_forgery.infer.verdict import Verdict, agree
from llava_forgery.infer.video import (
    FrameScore,
    SeenFace,
    VideoVerdict,
    join_tracks,
    video_overlay,
)
from llava_forgery.scan.sources import local_copy
from llava_forgery.scan.units import Item

# Side of a face in the report's contact sheet, in pixels.
_SIDE = 128


def is_flagged(verdict: Verdict) -> bool:
    """Whether a face may be forged: its score reaches the lower threshold."""
    return verdict.score >= verdict.thresholds.low


@dataclass(frozen=True)
class JudgeSettings:
    """How faces are judged."""

    reduce: str = "mean"
    """How the frames of a video are pooled."""
    batch_size: int = 16
    """How many faces are judged at once, where memory has room for so many."""
    overlays: bool = False
    """Whether a flagged file's picture is drawn, beside its maps."""
    masks: bool = False
    """Whether the maps of flagged faces are kept as they are."""


class Judge:
    """Adds verdicts to items; whatever one of them fails for is said in it.

    Args:
        predictor: The detector alone, or with the language model.
        settings: How faces are judged.
        flagged_only: The items have verdicts; those of flagged faces are replaced.
        is_last: Pictures are drawn, and what is not needed for the record is let go.
    """

    def __init__(
        self,
        predictor: ForgeryPredictor,
        settings: JudgeSettings,
        flagged_only: bool = False,
        is_last: bool = True,
    ) -> None:
        self.predictor, self.settings = predictor, settings
        self.flagged_only, self.is_last = flagged_only, is_last

    def __call__(self, items: Sequence[Item]) -> list[Item]:
        """The same items, in order."""
        open_items = [item for item in items if item.is_open]
        if self.flagged_only:
            self._ask(open_items)
        else:
            films = [item for item in open_items if item.kind is Kind.VIDEO]
            self._pictures([item for item in open_items if item.kind is not Kind.VIDEO])
            self._rate([item for item in films if item.unit.tracks is None])
            self._describe([item for item in films if item.tracks is not None])
        for item in items:
            try:
                self._close(item)
            except Exception as error:
                item.error = error_sentence(error)
                item.verdicts, item.pictures, item.masks = [], [], []
        return list(items)

    def _pictures(self, items: Sequence[Item]) -> None:
        groups = ((item, item.faces) for item in items)
        for item, verdicts in self._run(groups, self.predictor.predict_faces):
            item.verdicts = verdicts

    def _rate(self, items: Sequence[Item]) -> None:
        """Scores of a video's frames; its tracks, unless others see the rest of it."""
        for item, rated in self._run(((item, item.faces) for item in items), self._scores):
            pairs = zip(item.seen, rated, strict=True)
            item.scores = [
                FrameScore(f.frame, score, p_yes, f.seconds) for f, (score, p_yes) in pairs
            ]
            if item.unit.span is None:
                try:
                    item.tracks = join_tracks(zip(item.seen, item.scores, strict=True), item.path)
                except ValueError as error:
                    item.error = str(error)

    def _describe(self, items: Sequence[Item]) -> None:
        """Verdicts of tracks, by the frame of each that is shown."""
        reduce = self.settings.reduce
        groups = ((item, [shown(item, t.shown(reduce)) for t in item.tracks]) for item in items)
        for item, verdicts in self._run(groups, self.predictor.predict_faces):
            pairs = zip(item.tracks, verdicts, strict=True)
            item.verdicts = [track.verdict(verdict, reduce) for track, verdict in pairs]

    def _ask(self, items: Sequence[Item]) -> None:
        """What the language model says of flagged faces; the rest of their verdicts stays."""
        asked = {
            id(item): [i for i, v in enumerate(item.verdicts) if _is_asked(v)] for item in items
        }
        groups = ((item, [_face(item, i) for i in asked[id(item)]]) for item in items)
        for item, answers in self._run(groups, self.predictor.predict_faces):
            for i, said in zip(asked[id(item)], answers, strict=True):
                item.verdicts[i] = with_answer(item.verdicts[i], said)

    def _scores(self, faces: Sequence[FaceInput]) -> list[tuple[float, float | None]]:
        return list(zip(*self.predictor.predict_scores(faces), strict=True))

    def _run(
        self,
        groups: Iterable[tuple[Item, Sequence[FaceInput]]],
        run: Callable[[Sequence[FaceInput]], list],
    ) -> Iterator[tuple[Item, list]]:
        """Results of the groups none of whose faces failed; the others' items get the error."""
        for item, results in in_batches(groups, run, self.settings.batch_size):
            try:
                yield item, complete(results)
            except Exception as error:
                item.error = error_sentence(error)

    def _close(self, item: Item) -> None:
        """Draw what is wanted, and let go what nobody needs."""
        if item.error is not None:
            item.verdicts, item.pictures, item.masks = [], [], []
        if not self.flagged_only:
            item.pictures = [
                face_picture(_face(item, i), verdict) if is_flagged(verdict) else None
                for i, verdict in enumerate(item.verdicts)
            ]
            item.masks = [
                mask_picture(verdict) if self.settings.masks and is_flagged(verdict) else None
                for verdict in item.verdicts
            ]
        flagged = any(is_flagged(verdict) for verdict in item.verdicts)
        drawn = flagged and self.settings.overlays
        if self.is_last and drawn:
            item.overlay = _draw(item)
        if self.is_last or not flagged:
            item.faces = []
        if self.is_last or not drawn:
            nothing = np.empty((0, 0), np.float32)
            item.verdicts = [replace(verdict, mask=nothing) for verdict in item.verdicts]


def _face(item: Item, number: int) -> FaceInput:
    """What the verdict with this number shows."""
    verdict = item.verdicts[number]
    return shown(item, verdict) if isinstance(verdict, VideoVerdict) else item.faces[number]


def shown(item: Item, face: SeenFace | VideoVerdict) -> FaceInput:
    """The pixels of a face of a video.

    Args:
        item: Of the video, with its faces.
        face: Tells frame and track.
    """
    places = [(seen.frame, seen.track) for seen in item.seen]
    return item.faces[places.index((face.frame, face.track))]


def _is_asked(verdict: Verdict) -> bool:
    """As a predictor decides it: by the score of the picture that the language model would see."""
    if isinstance(verdict, VideoVerdict):
        (score,) = (f.score for f in verdict.frames if f.frame == verdict.frame)
        return score >= verdict.thresholds.low
    return is_flagged(verdict)


# Of a verdict, what the detector says of the picture.
_DETECTED = ("score", "mask", "box", "thresholds", "warnings", "agree")


def with_answer(verdict: Verdict, said: Verdict) -> Verdict:
    """A verdict by the detector with what the language model says of the same face.

    Args:
        verdict: Of a picture, or of a video.
        said: Of the picture that is shown.
    """
    words = {name: value for name, value in vars(said).items() if name not in _DETECTED}
    agreed = agree(verdict.score, said.p_yes, said.answer, verdict.thresholds.fake)
    return replace(verdict, agree=agreed, **words)


def face_picture(face: FaceInput, verdict: Verdict) -> bytes:
    """JPEG of a face beside its map.

    Args:
        face: The square that was judged.
        verdict: Of it, with its mask.
    """
    sheet = Image.new("RGB", (2 * _SIDE, _SIDE))
    for i, pixels in enumerate((face.image, heat_overlay(face.image, verdict.mask))):
        sheet.paste(Image.fromarray(pixels).resize((_SIDE, _SIDE)), (i * _SIDE, 0))
    buffer = io.BytesIO()
    sheet.save(buffer, format="JPEG", quality=80)
    return buffer.getvalue()


def mask_picture(verdict: Verdict) -> bytes:
    """PNG of a map over its box: (S, S) grey, 255 where it is 1."""
    grey = Image.fromarray((255 * verdict.mask).round().astype(np.uint8))
    return png_bytes(grey, "map of the forged area, drawn by a detector")


def _draw(item: Item) -> bytes:
    """PNG of a file beside its maps."""
    with local_copy(item.path) as path:
        if item.kind is Kind.VIDEO:
            picture = video_overlay(path, item.verdicts)
        else:
            picture = photograph_overlay(read_image(path), item.verdicts)
    return png_bytes(picture, f"map of the forged area in {item.path}, drawn by a detector")
