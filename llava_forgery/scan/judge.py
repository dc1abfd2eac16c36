"""Judging: from the faces of files to verdicts, in batches that files share."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from llava_forgery.faces.kinds import Kind
from llava_forgery.images import png_bytes, read_image
from llava_forgery.infer.batch import error_sentence
from llava_forgery.infer.batching import BatchLimits, in_batches
from llava_forgery.infer.overlay import heat_overlay, photograph_overlay
from llava_forgery.infer.predictor import FaceInput, ForgeryPredictor
from llava_forgery.infer.verdict import Verdict
from llava_forgery.infer.video import (
    FrameScore,
    SeenFace,
    VideoVerdict,
    join_tracks,
    no_face,
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
    limits: BatchLimits = field(default_factory=BatchLimits)
    """How many faces are judged at once."""
    overlays: bool = False
    """Whether a flagged file's picture is drawn, beside its maps."""


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
        kinds: dict[str, list[Item]] = {}
        for item in items:
            if item.is_open:
                kinds.setdefault(_kind(item), []).append(item)
        self._pictures(kinds.get("picture", ()))
        self._videos(kinds.get("video", ()))
        self._rate(kinds.get("asked" if self.flagged_only else "span", ()))
        self._describe(kinds.get("tracks", ()))
        for item in items:
            try:
                self._close(item)
            except Exception as error:
                item.error, item.verdicts = error_sentence(error), []
        return list(items)

    def _chosen(self, item: Item) -> list[int]:
        """Which of an item's faces are judged here."""
        if not self.flagged_only:
            return list(range(len(item.faces)))
        if _kind(item) != "video":
            return [i for i, verdict in enumerate(item.verdicts) if is_flagged(verdict)]
        tracks = {verdict.track for verdict in item.verdicts if is_flagged(verdict)}
        return [i for i, seen in enumerate(item.seen) if seen.track in tracks]

    def _pictures(self, items: Sequence[Item]) -> None:
        groups = ((item, [item.faces[i] for i in self._chosen(item)]) for item in items)
        for item, verdicts in self._run(groups, self.predictor.predict_faces):
            if not self.flagged_only:
                item.verdicts = verdicts
            else:
                for i, verdict in zip(self._chosen(item), verdicts, strict=True):
                    item.verdicts[i] = verdict

    def _videos(self, items: Sequence[Item]) -> None:
        reduce = self.settings.reduce
        groups = ((item, [item.faces[i] for i in self._chosen(item)]) for item in items)
        shown = []
        for item, rated in self._run(groups, self._scores):
            seen = [item.seen[i] for i in self._chosen(item)]
            if not seen and self.flagged_only:
                continue
            try:
                tracks = join_tracks(zip(seen, _scores(seen, rated), strict=True), item.path)
            except ValueError as error:
                item.error = str(error)
                continue
            faces = [item.faces[item.seen.index(track.shown(reduce))] for track in tracks]
            shown.append(((item, tracks), faces))
        for (item, tracks), verdicts in self._run(shown, self.predictor.predict_faces):
            pairs = zip(tracks, verdicts, strict=True)
            judged = {t.faces[0].track: t.verdict(verdict, reduce) for t, verdict in pairs}
            if self.flagged_only:
                item.verdicts = [judged.get(v.track, v) for v in item.verdicts]
            else:
                item.verdicts = list(judged.values())

    def _rate(self, items: Sequence[Item]) -> None:
        """Scores alone, of steps of long videos."""
        for item, rated in self._run(((item, item.faces) for item in items), self._scores):
            item.scores = _scores(item.seen, rated)
            item.low = self.predictor.kfd.thresholds.low

    def _describe(self, items: Sequence[Item]) -> None:
        """The last step of long videos: verdicts of the frames that are shown."""
        groups = ((item, [item.faces[i] for i in self._chosen(item)]) for item in items)
        for item, verdicts in self._run(groups, self.predictor.predict_faces):
            tracks = item.unit.tracks
            if not tracks:
                item.error = no_face(item.path)
                continue
            judged = dict(enumerate(item.verdicts))
            for i, verdict in zip(self._chosen(item), verdicts, strict=True):
                judged[i] = tracks[i].verdict(verdict, self.settings.reduce)
            item.verdicts = list(judged.values())

    def _scores(self, faces: Sequence[FaceInput]) -> list[tuple[float, float | None]]:
        return list(zip(*self.predictor.predict_scores(faces), strict=True))

    def _run(self, groups, run) -> Iterator[tuple]:
        """Results of the groups none of whose faces failed; the others' items get the error."""
        for key, results in in_batches(groups, run, self.settings.limits):
            failed = next((r for r in results if isinstance(r, Exception)), None)
            if failed is None:
                yield key, results
            else:
                (key if isinstance(key, Item) else key[0]).error = error_sentence(failed)

    def _close(self, item: Item) -> None:
        if item.error is not None:
            item.verdicts = []
        flagged = any(is_flagged(verdict) for verdict in item.verdicts)
        if self.is_last:
            item.pictures = [
                face_picture(self._face(item, i), verdict) if is_flagged(verdict) else None
                for i, verdict in enumerate(item.verdicts)
            ]
            if flagged and self.settings.overlays:
                item.overlay = _draw(item)
        if self.is_last or not (flagged or item.unit.is_asked):
            item.faces = []
        if self.is_last or not (flagged and self.settings.overlays):
            nothing = np.empty((0, 0), np.float32)
            item.verdicts = [replace(verdict, mask=nothing) for verdict in item.verdicts]

    def _face(self, item: Item, i: int) -> FaceInput:
        """What the verdict with this number shows."""
        verdict = item.verdicts[i]
        if not isinstance(verdict, VideoVerdict):
            return item.faces[i]
        places = [(seen.track, seen.frame) for seen in item.seen]
        return item.faces[places.index((verdict.track, verdict.frame))]


def _kind(item: Item) -> str:
    """Which of the ways through a judge an item takes."""
    unit = item.unit
    if item.kind is not Kind.VIDEO:
        return "picture"
    if unit.tracks is not None:
        return "tracks"
    return "asked" if unit.is_asked else "span" if unit.span is not None else "video"


def _scores(
    seen: Sequence[SeenFace], rated: Sequence[tuple[float, float | None]]
) -> list[FrameScore]:
    pairs = zip(seen, rated, strict=True)
    return [FrameScore(face.frame, score, p_yes, face.seconds) for face, (score, p_yes) in pairs]


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


def _draw(item: Item) -> bytes:
    """PNG of a file beside its maps."""
    with local_copy(item.path) as path:
        if item.kind is Kind.VIDEO:
            picture = video_overlay(path, item.verdicts)
        else:
            picture = photograph_overlay(read_image(path), item.verdicts)
    return png_bytes(picture, f"map of the forged area in {item.path}, drawn by a detector")
