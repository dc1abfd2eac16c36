"""Long videos: read and judged in spans by several processes, joined as one process would have.

A span also looks at the frames right before it, as many as a face may be missing before its track
ends. Where these frames show a face that the span before has seen as well, the two tracks are one.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

from llava_forgery.faces.tracks import PATIENCE
from llava_forgery.faces.video import FrameChoice
from llava_forgery.infer.video import FrameScore, SeenFace, join_tracks
from llava_forgery.scan.columns import codec_of
from llava_forgery.scan.sources import Entry
from llava_forgery.scan.units import Span, Unit

_OVERLAP = PATIENCE + 1
LONG = "long"
"""Name of the part that says that a video is judged in spans."""

Rows = list[tuple[SeenFace, FrameScore]]
_SEEN, _SCORES = codec_of(list[SeenFace]), codec_of(list[FrameScore])


class Part(NamedTuple):
    """What is kept of a step until the video has a record."""

    name: str
    value: bytes
    """JSON."""


def list_spans(choice: FrameChoice, frames: int, size: int) -> list[Span]:
    """Spans of nearly equal size.

    Args:
        choice: Of the video's frames.
        frames: How many it takes.
        size: Most frames of a span, without those that it shares with the one before.
    """
    count = -(-frames // size)
    ends = [i * frames // count for i in range(count + 1)]
    return [
        Span(choice.count, choice.every, number, start, stop, _OVERLAP)
        for number, (start, stop) in enumerate(pairwise(ends))
    ]


def join_spans(spans: Iterable[Rows]) -> Rows:
    """The faces of all frames once, their tracks numbered through.

    Args:
        spans: In order; each begins with the frames that it shares with the one before.
    """
    joined: Rows = []
    tracks = 0
    for rows in spans:
        last = joined[-1][0].frame if joined else -1
        known = _known(joined, rows[0][0].frame if rows else last + 1)
        # Of several shared frames the latest tells most of what follows.
        names = {
            seen.track: known[seen.frame, seen.box]
            for seen, _ in rows
            if (seen.frame, seen.box) in known
        }
        for seen, score in rows:
            if seen.frame > last:
                name = names.setdefault(seen.track, tracks)
                tracks = max(tracks, name + 1)
                joined.append((replace(seen, track=name), score))
    return joined


def _known(joined: Rows, first: int) -> dict[tuple[int, Any], int]:
    """Tracks by frame and box, from a frame on."""
    known = {}
    for seen, _ in reversed(joined):
        if seen.frame < first:
            break
        known[seen.frame, seen.box] = seen.track
    return known


def next_units(
    entry: Entry, parts: Mapping[str, bytes], choice: FrameChoice, size: int, reduce: str
) -> list[Unit]:
    """What is to be done of a file that has no record yet.

    Args:
        entry: The file.
        parts: What earlier units of it gave, by name.
        choice: Which frames are looked at.
        size: Most frames of a span.
        reduce: How frames are pooled.
    """
    if LONG not in parts:
        return [Unit(entry)]
    known = json.loads(parts[LONG])
    base = Unit(entry, known["sha256"])
    spans = list_spans(choice, known["frames"], size)
    if missing := [span for span in spans if part_name(span) not in parts]:
        return [replace(base, span=span) for span in missing]
    rows = join_spans(_unpack(parts[part_name(span)]) for span in spans)
    tracks = join_tracks(rows, entry.path) if rows else []
    shown = tuple(track.shown(reduce) for track in tracks)
    return [replace(base, tracks=tuple(tracks), shown=shown)]


def part_name(span: Span) -> str:
    """Under which the folder keeps what a span gives."""
    return f"span {span.number}"


def pack_long(sha256: str, frames: int) -> Part:
    """The part that says that a video is judged in spans.

    Args:
        sha256: Of the file.
        frames: How many are looked at.
    """
    return Part(LONG, json.dumps({"sha256": sha256, "frames": frames}).encode())


def pack_part(span: Span, seen: Sequence[SeenFace], scores: Sequence[FrameScore]) -> Part:
    """What a span gives, as JSON.

    Args:
        span: Of the video.
        seen: Faces in the order of their frames.
        scores: As many.
    """
    value = {"seen": _SEEN.encode(seen), "scores": _SCORES.encode(scores)}
    return Part(part_name(span), json.dumps(value).encode())


def _unpack(part: bytes) -> Rows:
    value = json.loads(part)
    return list(zip(_SEEN.decode(value["seen"]), _SCORES.decode(value["scores"]), strict=True))
