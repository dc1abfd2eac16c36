"""Where the scores of a face along a video change for good."""

import numpy as np
import pytest

from llava_forgery.cli.predict import _lines
from llava_forgery.infer.batch import FileVerdicts
from llava_forgery.infer.segments import FrameScore, find_changes, split_scores
from llava_forgery.infer.verdict import Verdict
from llava_forgery.infer.video import SeenFace, Track


def noisy(*parts, deviation=0.05, seed=0):
    """Scores around the levels of parts (level, frames)."""
    rng = np.random.default_rng(seed)
    levels = np.repeat([level for level, _ in parts], [frames for _, frames in parts])
    return (levels + rng.normal(0, deviation, len(levels))).clip(0, 1)


@pytest.mark.parametrize("seed", range(5))
def test_a_splice_is_found_where_it_is(seed):
    assert find_changes(noisy((0.1, 16), (0.9, 16), seed=seed)) == [16]
    assert find_changes(noisy((0.1, 10), (0.9, 8), (0.2, 14), seed=seed)) == [10, 18]
    # Every frame of a longer video.
    assert find_changes(noisy((0.2, 300), (0.8, 200), deviation=0.1, seed=seed)) == [300]


@pytest.mark.parametrize("seed", range(5))
def test_noise_and_single_frames_are_no_change(seed):
    assert find_changes(noisy((0.4, 32), deviation=0.15, seed=seed)) == []
    scores = noisy((0.1, 32), seed=seed)
    scores[[4, 17, 18]] = 0.95
    assert find_changes(scores) == []
    # A drift over the whole video ends less than 0.3 higher than it began.
    assert find_changes(noisy((0.3, 16), (0.45, 16), seed=seed)) == []


def test_few_frames_tell_nothing():
    assert find_changes([]) == []
    assert find_changes([0.1, 0.1, 0.9, 0.9, 0.9]) == []
    assert find_changes([0.1] * 3 + [0.9] * 3) == [3]


def track(scores):
    frames = tuple(FrameScore(10 * i, score, None, 0.4 * i) for i, score in enumerate(scores))
    faces = tuple(SeenFace((0, 0, 9, 9), f.frame, 0, 81.0, f.seconds) for f in frames)
    return Track(faces, frames)


def test_the_output_names_the_segments():
    found = track([0.1] * 4 + [0.9] * 4)
    first, second = split_scores(found.scores)
    assert (first.first, first.last, first.start, first.end) == (0, 30, 0.0, pytest.approx(1.2))
    assert (second.first, second.last, second.score) == (40, 70, pytest.approx(0.9))
    shown = Verdict(0.1, None, None, (), None, np.zeros((4, 4), np.float32), (0, 0, 9, 9))
    verdict = found.verdict(shown, "mean")
    assert verdict.score == pytest.approx(0.5)
    assert verdict.segments == (first, second)
    assert [segment["first"] for segment in verdict.to_dict()["segments"]] == [0, 40]
    assert "change for good along the video" in verdict.warnings[0]
    lines = _lines(FileVerdicts("a.mp4", faces=[verdict]))
    assert lines[-2].strip() == "frames 0 to 30 (0.0 to 1.2 s): real  score 0.100"
    assert lines[-1].strip() == "frames 40 to 70 (1.6 to 2.8 s): fake  score 0.900"


def test_a_track_that_does_not_change_has_none():
    shown = Verdict(0.1, None, None, (), None, np.zeros((4, 4), np.float32), (0, 0, 9, 9))
    verdict = track([0.1] * 8).verdict(shown, "mean")
    assert (verdict.segments, verdict.warnings) == ((), ())
    assert verdict.to_dict()["segments"] == []
