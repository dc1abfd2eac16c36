"""The HF evaluate modules, loaded by path as a user loads them, against the functions."""

from pathlib import Path

import evaluate
import numpy as np
import pytest

from llava_forgery.evaluation.masks import mask_dice, mask_iou, pixel_auc
from llava_forgery.evaluation.report import answer_report, detection_report

MODULES = Path(__file__).parents[2] / "eval" / "metrics"


@pytest.fixture
def load(tmp_path):
    def load(name, *config):
        path = str(MODULES / name)
        return evaluate.load(path, *config, cache_dir=str(tmp_path), experiment_id="test")

    return load


def test_detection(load):
    labels = np.arange(30) % 2
    scores = np.random.default_rng(0).random(30) * 0.5 + labels * 0.3
    metric = load("forgery_detection")
    found = metric.compute(predictions=scores, references=labels, resamples=20, seed=1)
    assert found == detection_report(labels, scores, resamples=20, seed=1)
    for start in (0, 15):
        metric.add_batch(predictions=scores[start : start + 15],
                         references=labels[start : start + 15])  # fmt: skip
    assert metric.compute(resamples=20, seed=1) == found
    # Of one class there is nothing to rank.
    fakes = metric.compute(predictions=[0.1, 0.7], references=[1, 1], resamples=0)
    assert fakes == detection_report([1, 1], [0.1, 0.7], resamples=0)
    assert fakes["frame"]["auc"] is None


def test_detection_of_videos(load):
    labels, scores = [1, 1, 1, 0, 0], [0.9, 0.2, 0.3, 0.4, 0.1]
    videos = ["a", "a", "b", "c", "c"]
    options = {"reduce": "max", "resamples": 0}
    metric = load("forgery_detection", "video")
    found = metric.compute(predictions=scores, references=labels, video_ids=videos, **options)
    assert found == detection_report(labels, scores, videos, **options)
    assert found["video"]["auc"] == 0.5
    with pytest.raises(ValueError, match="video_ids"):
        metric.compute(predictions=scores, references=labels)
    with pytest.raises(ValueError, match="expected a config of default, video"):
        load("forgery_detection", "frame")


def test_localisation(load):
    rng = np.random.default_rng(0)
    true = rng.random((3, 8, 6)) < 0.3
    maps = (0.4 * true + 0.6 * rng.random(true.shape)).astype(np.float32)
    metric = load("forgery_localisation")
    found = metric.compute(predictions=maps, references=true.astype(int), threshold=0.4)
    assert found["mask_iou"] == mask_iou(maps >= 0.4, true)
    assert found["mask_dice"] == mask_dice(maps >= 0.4, true)
    assert found["pixel_auc"] == pixel_auc(maps, true)
    with pytest.raises(ValueError, match="masks of 0 and 1"):
        metric.compute(predictions=maps, references=maps)
    with pytest.raises(ValueError, match="of one size"):
        metric.compute(predictions=[maps[0], maps[1, :4]], references=true[:2].astype(int))


def test_region_naming(load):
    answers = ["Yes, at the nose and mouth.", "No.", "I cannot tell.", "no, it is pristine"]
    regions = [["nose"], ["eyes"], [], []]
    found = load("region_naming").compute(predictions=answers, references=regions)
    assert found == answer_report([1, 1, 0, 0], answers, regions)
    assert (found["accuracy"], found["unparsed"]) == (0.5, 1)
    assert found["region_precision"] == 0.5
