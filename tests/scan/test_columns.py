"""What passes between the processes of a scan comes back as it was, and is data alone."""

import json
from dataclasses import fields

import numpy as np
import pytest

from llava_forgery.faces.kinds import Kind
from llava_forgery.infer.predictor import FaceInput
from llava_forgery.infer.segments import FrameScore
from llava_forgery.infer.verdict import Verdict
from llava_forgery.infer.video import SeenFace, Track, VideoVerdict
from llava_forgery.scan.columns import codec_of, from_columns, to_columns
from llava_forgery.scan.long import Part
from llava_forgery.scan.results import Result
from llava_forgery.scan.schema import to_table
from llava_forgery.scan.sources import Entry
from llava_forgery.scan.units import Item, Span, Unit
from tests.scan.making import result

ENTRY = Entry("/a.mp4", 3, 9, "odd")
SEEN = SeenFace((0.1, 2.0, 3.0, 4.5), 7, 1, 20.0, 0.28, ("small",))
SCORE = FrameScore(7, 0.25, None, 0.28)


def assert_equal(one, other):
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    elif hasattr(one, "__dataclass_fields__"):
        for field in fields(one):
            assert_equal(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_equal(*pair)
    else:
        assert one == other


def test_units_items_and_results_come_back_as_they_were():
    units = [
        Unit(ENTRY),
        Unit(ENTRY, "00", Span(8, None, 2, 3, 6, 1)),
        Unit(ENTRY, "00", None, (Track((SEEN,), (SCORE,)),), (SEEN,)),
    ]
    assert_equal(from_columns(Unit, to_columns(Unit, units)), units)
    said = (0.5, 0.7, "Yes.", ("mouth",), None, np.eye(3, dtype=np.float32), (0.0, 0.0, 1.0, 1.0))
    film = VideoVerdict(*said, frame=7, seconds=0.28, track=1, frames=(SCORE,), truncated=True)
    item = Item(units[1], "00", None, Kind.VIDEO, False, 4)
    item.faces = [FaceInput(np.arange(12, dtype=np.uint8).reshape(2, 2, 3), (0.0, 1.0, 2.0, 3.0))]
    item.seen, item.scores, item.tracks = [SEEN], [SCORE], units[2].tracks
    item.verdicts, item.pictures, item.overlay = [Verdict(*said), film], [None, b"jpeg"], b"png"
    items = [item, Item(Unit(ENTRY), error="broken")]
    assert_equal(from_columns(Item, to_columns(Item, items)), items)
    results = [Result(ENTRY, "00", None, "video", Part("long", b"{}"), b"png")]
    assert_equal(from_columns(Result, to_columns(Result, results)), results)


def test_records_come_back_to_the_nanosecond():
    sent = [result("/a.jpg", 0.75, 0.25), result("/b.jpg", error="broken")]
    got = from_columns(Result, to_columns(Result, sent))
    tables = [to_table([one.record for one in some]) for some in (sent, got)]
    assert tables[0].equals(tables[1])
    assert tables[1]["modified"][0].value == 1_700_000_000_000_000_007


def test_other_annotations_have_no_column():
    assert codec_of(list[SeenFace]).decode(
        json.loads(json.dumps(codec_of(list[SeenFace]).encode([SEEN])))
    ) == [SEEN]
    with pytest.raises(TypeError, match="has no column"):
        codec_of(object)
