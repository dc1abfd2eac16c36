"""Figures of real and forged videos, by set and method, with intervals over people."""

import json

import numpy as np
import pytest
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from llava_forgery.cli import app
from llava_forgery.evaluation.metrics import auc
from llava_forgery.evaluation.real import (
    evaluate_real,
    identity_interval,
    read_real_frames,
    real_figure,
    real_table,
    summarise_real,
)
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from tests import tiny

# Set, kind, video, people, brightness of the frames.
VIDEOS = [
    ("c23", "real", "1", "a", (10, 60)),
    ("c23", "real", "2", "b", (100, 110)),
    ("c23", "fake_swap", "1_2", "a b", (200, 220)),
    ("c23", "fake_swap", "2_1", "b a", (40, 50)),
    ("c23", "fake_warp", "1_2", "a b", (250, 240)),
    ("talk", "real", "x", "c", (30,)),
]


class Bright:
    """Scores a face by its mean brightness."""

    names, size, model = ("kfd", "p_yes"), 32, nn.Identity()

    def __call__(self, images):
        values = [float(image.mean() / 255) for image in images]
        return {"kfd": values, "p_yes": [1 - value for value in values]}


@pytest.fixture
def folder(tmp_path):
    rows = ["set,kind,video,identities"]
    for group, kind, video, people, levels in VIDEOS:
        (tmp_path / group / kind).mkdir(parents=True, exist_ok=True)
        rows.append(f"{group},{kind},{video},{people}")
        for frame, level in enumerate(levels):
            picture = Image.new("RGB", (40, 40), (level,) * 3)
            picture.save(tmp_path / group / kind / f"{video}_{frame:03}.png")
    (tmp_path / "identities.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_frames_are_found(folder):
    frames = read_real_frames(folder)
    assert len(frames) == 11
    swap = next(f for f in frames if f.path == "c23/fake_swap/1_2_000.png")
    assert (swap.label, swap.method, swap.video, swap.identities) == (1, "swap", "1_2", ("a", "b"))
    warp = next(f for f in frames if f.method == "warp")
    assert warp.video == swap.video
    assert warp.video_id != swap.video_id
    assert {f.label for f in frames if f.method is None} == {0}


def test_figures_by_hand(folder, tmp_path):
    metrics = evaluate_real(Bright(), folder, tmp_path / "out", resamples=50)
    rows = {(r["score"], r["set"], r["method"]): r for r in metrics["rows"]}
    swap = rows["kfd", "c23", "swap"]
    # Videos: real 35 and 105, fake 210 and 45, of 255.
    assert swap["video_auc"] == 0.75
    assert (swap["real_videos"], swap["fake_videos"], swap["frames"]) == (2, 2, 8)
    assert (swap["fpr"], swap["fnr"]) == (0.0, 0.5)
    assert swap["frame_auc"] == auc([0, 0, 0, 0, 1, 1, 1, 1], [10, 60, 100, 110, 200, 220, 40, 50])
    assert swap["tpr_at_1_fpr"] == 0.5
    assert rows["kfd", "c23", "all"]["fake_videos"] == 3
    assert rows["p_yes", "c23", "warp"]["video_auc"] == 0
    # A set without fakes has its false-positive rate alone.
    talk = rows["kfd", "talk", "all"]
    assert (talk["video_auc"], talk["fnr"], talk["fpr"]) == (None, None, 0.0)
    histogram = rows["kfd", "c23", "all"]["histogram"]
    assert (sum(histogram["real"]), sum(histogram["fake"])) == (4, 6)
    assert metrics["mean_video_auc"]["kfd"] == rows["kfd", "c23", "all"]["video_auc"]
    records = (tmp_path / "out/records.jsonl").read_text().splitlines()
    summary = summarise_real([json.loads(r) for r in records], resamples=50)
    assert metrics == {**summary, "people_in_training": 0}
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == metrics
    table = (tmp_path / "out/table.md").read_text()
    assert table == real_table(metrics)
    assert "| detector | c23 | swap | 2 / 2 | 0.750" in table
    assert "| detector | talk | all | 1 / 0 | - | - | - | 0.5 | 0.000 | - |" in table


def test_the_threshold_is_the_one_given(folder, tmp_path):
    metrics = evaluate_real(Bright(), folder, tmp_path / "out", threshold=0.2, resamples=10)
    row = next(r for r in metrics["rows"] if (r["score"], r["method"]) == ("kfd", "swap"))
    assert (row["fpr"], row["fnr"]) == (0.75, 0.5)


def test_interval_draws_people():
    labels, scores = [0, 0, 0, 1, 1], [0.1, 0.2, 0.3, 0.25, 0.9]
    people = [("a",), ("b",), ("c",), ("a", "b"), ("c", "a")]
    interval = identity_interval(labels, scores, people, resamples=200, seed=1)
    assert interval.value == auc(labels, scores)
    assert interval.low <= interval.value <= interval.high
    assert interval.units == 3
    assert interval.redrawn > 0
    assert interval == identity_interval(labels, scores, people, resamples=200, seed=1)


def test_interval_of_a_swap_needs_both_people():
    """Only resamples that draw a and b hold the forgery; each holds a real video then."""
    interval = identity_interval(
        [0, 0, 1], [0.2, 0.8, 0.5], [("a",), ("b",), ("a", "b")], resamples=20
    )
    # Two draws of two people: both are drawn once.
    assert (interval.low, interval.high) == (0.5, 0.5)


def test_too_few_people_for_an_interval():
    """Wherever the fake's second person is drawn twice, or not at all, the real one is missing."""
    with pytest.raises(ValueError, match="too few people"):
        identity_interval([0, 1], [0.1, 0.9], [("a",), ("b", "c", "d", "e", "f", "g", "h")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "identities.csv").unlink(), "identities.csv is missing"),
        (lambda f: (f / "c23/fake_swap").rename(f / "c23/swap"), "neither 'real' nor fake_METHOD"),
        (lambda f: (f / "c23/fake_swap").rename(f / "c23/fake_"), "neither 'real' nor fake_METHOD"),
        (lambda f: (f / "c23/fake_swap").rename(f / "c23/fake_new"), "no row for c23,fake_new,1_2"),
        (lambda f: (f / "c23/real/clip.mp4").write_bytes(b""), "prepare"),
        (lambda f: (f / "c23/real/1_000.png").write_bytes(b"no"), "1_000.png"),
        (
            lambda f: (f / "identities.csv").write_text("set,video\n"),
            "line 1: expected the columns set,kind,video,identities, got 'set,video'",
        ),
    ],
)
def test_faults_are_named(folder, tmp_path, change, message):
    change(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate_real(Bright(), folder, tmp_path / "out")


def test_scores_outside_of_the_range_are_refused(folder, tmp_path):
    class Broken(Bright):
        def __call__(self, images):
            return {name: [float("nan")] * len(images) for name in self.names}

    with pytest.raises(ValueError, match="kfd must be finite"):
        evaluate_real(Broken(), folder, tmp_path / "out")


def test_command(folder, tmp_path):
    detector = KnowledgeGuidedForgeryDetector.from_config(tiny.kfd_config(), 0).eval()
    detector.save_pretrained(tmp_path / "kfd")
    arguments = ["--model", tmp_path / "kfd", "--data", folder, "--out", tmp_path / "out", "--plot"]
    result = CliRunner().invoke(app, ["eval", "real", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    assert "| detector | c23 | warp |" in result.output
    with Image.open(tmp_path / "out/histograms.png") as picture:
        assert picture.width > 400


def test_figure_has_a_panel_for_each_set(folder, tmp_path):
    metrics = evaluate_real(Bright(), folder, tmp_path / "out", resamples=10)
    titles = [axes.get_title() for axes in real_figure(metrics).axes]
    expected = ["c23, detector", "talk, detector", "c23, P(yes)", "talk, P(yes)"]
    assert titles == expected
    assert np.isclose(real_figure(metrics).axes[0].get_xlim(), (0, 1), atol=0.1).all()
