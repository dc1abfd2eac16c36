"""A long video in spans is judged as if it were read in one piece."""

from dataclasses import replace

import pytest

from llava_forgery.faces.video import FrameChoice
from llava_forgery.infer.predictor import FaceFinder
from llava_forgery.infer.segments import FrameScore
from llava_forgery.infer.video import SeenFace
from llava_forgery.scan.collector import Collector
from llava_forgery.scan.folder import open_folder
from llava_forgery.scan.judge import Judge, JudgeSettings
from llava_forgery.scan.long import list_spans, next_units, pack_long, pack_part
from llava_forgery.scan.reader import Reader, ReadSettings
from llava_forgery.scan.registry import Registry
from llava_forgery.scan.results import to_result
from llava_forgery.scan.sources import list_entries
from llava_forgery.scan.units import Unit
from tests import tiny
from tests.faces.media import RedSquare, picture, video
from tests.scan.making import PROVENANCE, save_model

CHOICE = FrameChoice(None, 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Faces that come, go for less and for more than a track lasts, and cross the spans' ends."""
    path = tmp_path_factory.mktemp("clips") / "long.mp4"
    frames = []
    for i in range(48):
        squares = [(4 + i, 10, 24)] if not 11 <= i < 14 and i != 31 else []
        squares += [(100, 30 + i // 2, 30)] if i < 15 or i > 30 else []
        squares += [(60, 60, 20)] if 19 <= i < 22 else []
        frames.append(picture(*squares))
    video(path, frames, crf=8)
    return path


def judged(model, entry, span, answers, out):
    """Its record, and how many steps it took."""
    registry = Registry()
    reader = Reader(FaceFinder(tiny.SIZE, RedSquare()), ReadSettings(CHOICE, span=span), registry)
    settings = JudgeSettings(batch_size=8)
    judges = {
        "none": [Judge(model.predictor("none"), settings)],
        "flagged": [Judge(model.predictor("none"), settings, is_last=False),
                    Judge(model.predictor(), settings, flagged_only=True)],
        "all": [Judge(model.predictor(), settings)],
    }[answers]  # fmt: skip
    steps = 0
    with open_folder(out, {}) as folder, Collector(folder) as collector:
        while not folder.has(entry.path):
            parts = folder.parts(entry)
            units = next_units(entry, parts, CHOICE, span, "mean")
            for unit in units:
                items = reader([unit])
                for judge in judges:
                    items = judge(items)
                collector.add([to_result(items[0], PROVENANCE)])
            collector.flush()
            steps += len(units)
        assert folder.parts(entry) == {}
        return next(folder.read(folder.shards()[0].name, [entry.path])), steps


@pytest.mark.parametrize(
    "answers", ["flagged", *(pytest.param(a, marks=pytest.mark.slow) for a in ("none", "all"))]
)
def test_spans_are_joined_as_one_reading_would(model, clip, tmp_path, answers):
    (entry,) = list_entries([str(clip)])
    whole, once = judged(model, entry, 48, answers, tmp_path / "whole")
    spans, steps = judged(model, entry, 13, answers, tmp_path / "spans")
    assert once == 1
    # It is found to be long, rated in four spans, and described.
    assert steps == 1 + 4 + 1
    assert (spans["error"], spans["sha256"]) == (None, whole["sha256"])
    assert len(whole["faces"]) == 4
    for one, other in zip(spans["faces"], whole["faces"], strict=True):
        assert one["track"] == other["track"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert (one["p_yes"] is None) == (answers == "none")
        assert one["p_yes"] == pytest.approx(other["p_yes"], abs=1e-4)
        for frame, wanted in zip(one["frames"], other["frames"], strict=True):
            assert frame == pytest.approx(wanted, abs=1e-4)
        # Which frame is shown may differ where two are as close to the pooled score.
        gaps = {f["frame"]: abs(f["score"] - other["score"]) for f in other["frames"]}
        assert gaps[one["frame"]] == pytest.approx(min(gaps.values()), abs=1e-6)


def test_a_long_video_without_faces_is_an_error(model, tmp_path):
    video(tmp_path / "empty.mp4", [picture((0, 0, 0))] * 12)
    (entry,) = list_entries([str(tmp_path / "empty.mp4")])
    record, steps = judged(model, entry, 5, "flagged", tmp_path / "out")
    assert "no face was found in the frames of" in record["error"]
    assert steps == 1 + 3 + 1


def test_spans_have_every_frame_once_and_some_again():
    spans = list_spans(CHOICE, 100, 30)
    assert [(span.start, span.stop) for span in spans] == [(0, 25), (25, 50), (50, 75), (75, 100)]
    assert spans[1].numbers(100) == list(range(19, 50))
    even = list_spans(FrameChoice(10), 10, 5)
    assert even[1].numbers(1000) == FrameChoice(10).numbers(1000)


def test_what_is_wrong_with_a_square_comes_through_its_span(clip):
    (entry,) = list_entries([str(clip)])
    (span,) = list_spans(CHOICE, 48, 100)
    seen = [SeenFace((0.0, 0.0, 9.0, 9.0), 3, 0, 81.0, 0.1, ("small",))]
    parts = [pack_long("00", 48), pack_part(span, seen, [FrameScore(3, 0.5, None, 0.1)])]
    (unit,) = next_units(entry, dict(parts), CHOICE, 100, "mean")
    assert unit.shown == tuple(seen)
    assert unit.tracks[0].faces == tuple(seen)


def test_parts_of_a_file_that_changed_count_for_nothing(tmp_path, clip):
    (entry,) = list_entries([str(clip)])
    with open_folder(tmp_path, {}) as folder:
        folder.add_part(entry, "long", b"{}")
        assert folder.parts(entry) == {"long": b"{}"}
        assert folder.parts(entry._replace(modified=1)) == {}
    with pytest.raises(ValueError, match="span must be 1 or more"):
        ReadSettings(span=0)
    assert replace(Unit(entry), sha256="a").path == entry.path
