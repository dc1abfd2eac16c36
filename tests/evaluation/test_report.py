import json

import numpy as np
import pytest

from llava_forgery.constants import FAKE, REAL
from llava_forgery.evaluation.metrics import auc, calibration_error, equal_error_rate, tpr_at_fpr
from llava_forgery.evaluation.report import agreement_report, answer_report, detection_report
from llava_forgery.evaluation.video import video_level
from llava_forgery.kfd.calibration import Thresholds


def frames(seed=0, videos=24, each=5):
    rng = np.random.default_rng(seed)
    truth = np.arange(videos) % 2
    level = rng.uniform(0.2, 0.5, videos) + 0.3 * truth
    ids = np.repeat([f"set{v % 2}/clip{v}" for v in range(videos)], each)
    scores = (np.repeat(level, each) + rng.normal(0, 0.1, videos * each)).clip(0, 1)
    return np.repeat(truth, each), scores, ids.tolist()


def test_figures_are_those_of_the_measures():
    labels, scores, ids = frames()
    report = detection_report(labels, scores, ids, reduce="max", resamples=0)
    frame, video = report["frame"], report["video"]
    assert (frame["count"], video["count"], video["fake"]) == (120, 24, 12)
    assert frame["auc"] == auc(labels, scores)
    assert frame["eer"] == equal_error_rate(labels, scores)
    assert frame["tpr_at_fpr_5"] == tpr_at_fpr(labels, scores, 0.05)
    assert frame["ece"] == calibration_error(labels, scores)
    pooled = video_level(scores, ids, labels, "max")
    assert video["auc"] == auc(pooled.labels, pooled.scores)
    assert video["tpr_at_fpr_1"] == tpr_at_fpr(pooled.labels, pooled.scores, 0.01)
    assert "intervals" not in frame


def test_intervals_hold_the_figures_and_frames_are_drawn_by_video():
    labels, scores, ids = frames()
    report = detection_report(labels, scores, ids, resamples=100)
    for level in report.values():
        for name, (low, high) in level["intervals"].items():
            assert low <= level[name] <= high, name
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    alone = detection_report(labels, scores, resamples=100)
    assert alone["video"] is None
    low, high = alone["frame"]["intervals"]["auc"]
    by_video = report["frame"]["intervals"]["auc"]
    assert high - low < by_video[1] - by_video[0]


def test_deepfakebench_groups_by_folder():
    labels, scores = [1, 1, 0, 0], [0.9, 0.1, 0.3, 0.2]
    paths = ["DF/a_b/0.png", "NT/a_b/0.png", "real/a/0.png", "real/b/0.png"]
    report = detection_report(labels, scores, paths, grouping="deepfakebench", resamples=5)
    assert report["video"]["count"] == 3
    assert report["video"]["auc"] == 1.0


def test_scores_that_are_no_probabilities():
    with pytest.raises(ValueError, match=r"scores must lie in \[0, 1\]"):
        detection_report([0, 1], [-3, 4])
    report = detection_report([0, 1], [-3, 4], are_probabilities=False, resamples=0)
    assert "ece" not in report["frame"]


@pytest.mark.parametrize(("label", "fpr", "fnr"), [(REAL, 0.75, None), (FAKE, None, 0.25)])
def test_one_class_has_its_error_rate_alone(label, fpr, fnr):
    report = detection_report([label] * 4, [0.1, 0.6, 0.7, 0.8], list("aabc"), reduce="max")
    frame, video = report["frame"], report["video"]
    assert (frame["fpr"], frame["fnr"]) == (fpr, fnr)
    assert frame["accuracy"] == (0.25 if label == REAL else 0.75)
    assert {frame[name] for name in ("auc", "ap", "eer", "tpr_at_fpr_1")} == {None}
    assert set(frame["intervals"].values()) == {None}
    assert video["count"] == 3
    assert (video["fpr"], video["fnr"]) == ((1, None) if label == REAL else (None, 0))
    json.dumps(report, allow_nan=False)


def test_answers_that_say_nothing_are_wrong_and_counted():
    answers = ["Yes, at the nose and mouth.", "I cannot tell.", "No.", "Yes."]
    report = answer_report([1, 1, 0, 0], answers)
    assert report == {"count": 4, "accuracy": 0.5, "unparsed": 1}


def test_regions_are_scored_over_the_fakes():
    answers = ["Yes, at the nose and mouth.", "Fake, at the chin.", "No."]
    report = answer_report([1, 1, 0], answers, [("nose",), ("eyes", "chin"), ()])
    # Of three named, two are right; of three forged, two are named.
    assert report["region_precision"] == pytest.approx(2 / 3)
    assert report["region_recall"] == pytest.approx(2 / 3)
    assert report["region_f1"] == pytest.approx(2 / 3)


def test_answers_are_checked():
    with pytest.raises(ValueError, match="single text"):
        answer_report([1], "Yes.")
    with pytest.raises(ValueError, match="lengths differ"):
        answer_report([1, 0], ["Yes."])
    with pytest.raises(ValueError, match="image 0 has no forged region"):
        answer_report([1], ["Yes."], [()])


def test_agreement_is_counted_apart_where_the_score_is_certain():
    thresholds = Thresholds(0.6, 0.4, 0.8)
    found = agreement_report([0.1, 0.5, 0.7, 0.9], [0.2, 0.9, 0.9, 0.3], thresholds)
    assert found == {"agreement": 0.5, "agreement_if_certain": 0.5, "uncertain": 0.5}
    assert agreement_report([0.5], [0.9], thresholds)["agreement_if_certain"] is None
