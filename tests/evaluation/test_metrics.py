"""Measures against values computed by hand."""

import numpy as np
import pytest

from llava_forgery.evaluation.metrics import (
    accuracy,
    agreement,
    auc,
    average_precision,
    mask_dice,
    mask_iou,
    region_scores,
    video_level,
)

LABELS = [0, 0, 1, 1]


def test_auc():
    # Of four pairs (real, fake), three are in order: 0.1 < 0.35, 0.1 < 0.8, 0.4 < 0.8.
    assert auc(LABELS, [0.1, 0.4, 0.35, 0.8]) == 0.75
    assert auc(LABELS, [0.5, 0.5, 0.5, 0.5]) == 0.5
    assert auc(LABELS, [0.9, 0.8, 0.2, 0.1]) == 0.0


def test_average_precision():
    # The fakes are first and third: (1/1 + 2/3) / 2.
    assert average_precision(LABELS, [0.1, 0.4, 0.35, 0.8]) == pytest.approx(5 / 6)


@pytest.mark.parametrize("measure", [auc, average_precision])
@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([1, 1], [0.1, 0.2], r"needs real and fake images, got labels \[1.0\] alone"),
        ([0, 1], [0.1, np.nan], "scores must be finite, got nan at position 1"),
        ([0, 1], [0.1, np.inf], "scores must be finite"),
        ([0, 1], [0.1, 0.2, 0.3], "lengths differ: {'labels': 2, 'scores': 3}"),
        ([0, 2], [0.1, 0.2], "labels must be 0"),
        ([], [], r"with N > 0, got \(0,\)"),
        ([[0, 1]], [[0.1, 0.2]], r"must be of shape \(N,\)"),
    ],
)
def test_ranking_is_checked(measure, labels, scores, message):
    with pytest.raises(ValueError, match=message):
        measure(labels, scores)


def test_accuracy_counts_unparsed_as_wrong():
    assert accuracy([0, 0, 1, 1], [0, None, 1, -1]) == 0.5
    assert accuracy([1, 1], np.array([1, 1])) == 1.0
    assert accuracy([0, 1], [None, None]) == 0.0


@pytest.mark.parametrize(
    ("predictions", "message"),
    [([0], "lengths differ"), ([0, 2], r"must be 0, 1, -1 or None, got \[0, 2\]")],
)
def test_accuracy_is_checked(predictions, message):
    with pytest.raises(ValueError, match=message):
        accuracy([0, 1], predictions)


def mask(*rows):
    return np.array(rows, dtype=bool)


def test_mask_overlap():
    predicted = np.stack([mask([1, 1], [0, 0]), mask([1, 0], [0, 0]), mask([0, 0], [0, 0])])
    true = np.stack([mask([1, 0], [1, 0]), mask([1, 0], [0, 0]), mask([0, 0], [0, 1])])
    # 1 of 3 pixels, all, none.
    assert mask_iou(predicted, true) == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert mask_dice(predicted, true) == pytest.approx((1 / 2 + 1 + 0) / 3)


def test_two_empty_masks_agree():
    empty = np.zeros((2, 3, 3), dtype=bool)
    assert mask_iou(empty, empty) == 1.0
    assert mask_dice(empty, empty) == 1.0


@pytest.mark.parametrize("measure", [mask_iou, mask_dice])
@pytest.mark.parametrize(
    ("predicted", "true", "message"),
    [
        (np.zeros((1, 2, 2)), np.zeros((1, 2, 2), bool), "predicted must be .* threshold"),
        (np.zeros((2, 2), bool), np.zeros((2, 2), bool), r"must be \(N, H, W\)"),
        (np.zeros((0, 2, 2), bool), np.zeros((0, 2, 2), bool), "N > 0"),
        (np.zeros((1, 2, 2), bool), np.zeros((1, 2, 3), bool), "differ in shape"),
    ],
)
def test_masks_are_checked(measure, predicted, true, message):
    with pytest.raises(ValueError, match=message):
        measure(predicted, true)


def test_region_scores():
    scores = region_scores(
        [("eyes", "nose"), (), ("face",)], [("nose", "mouth"), ("chin",), ("face",)]
    )
    # 2 hits, 3 named, 4 forged.
    assert scores == pytest.approx((2 / 3, 2 / 4, 4 / 7))
    assert scores.f1 == pytest.approx(4 / 7)
    assert region_scores([(), ()], [("nose",), ("chin",)]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("predicted", "true", "message"),
    [
        ([()], [()], "image 0 has no forged region"),
        ([()], [("nose",), ("chin",)], "lengths differ"),
        ([], [], "are empty"),
        ("nose", "nose", "got a string"),
    ],
)
def test_regions_are_checked(predicted, true, message):
    with pytest.raises(ValueError, match=message):
        region_scores(predicted, true)


def test_agreement():
    assert agreement([0.2, 0.5, 0.9, 0.9], [0.4, 0.7, 0.1, 0.6]) == 0.75
    assert agreement([0.2], [0.4], threshold=0.3) == 0.0
    with pytest.raises(ValueError, match=r"p_yes must lie in \[0, 1\], got 2 to 2"):
        agreement([0.5], [2])


def test_video_level():
    scores = [0.2, 0.9, 0.4, 0.5]
    videos = ["b", "a", "b", "a"]
    mean = video_level(scores, videos, [0, 1, 0, 1])
    np.testing.assert_allclose(mean.scores, [0.3, 0.7])
    assert mean.labels.tolist() == [0, 1]
    assert mean.video_ids == ("b", "a")
    highest = video_level(scores, videos, [0, 1, 0, 1], reduce="max")
    np.testing.assert_allclose(highest.scores, [0.4, 0.9])
    assert auc(mean.labels, mean.scores) == 1.0


@pytest.mark.parametrize(
    ("videos", "labels", "reduce", "message"),
    [
        (["a", "a"], [0, 1], "mean", "the frames of video 'a' differ in label"),
        (["a"], [0, 1], "mean", "lengths differ"),
        (["a", "b"], [0, 1], "sum", "reduce must be one of mean, median, max"),
    ],
)
def test_video_level_is_checked(videos, labels, reduce, message):
    with pytest.raises(ValueError, match=message):
        video_level([0.1, 0.2], videos, labels, reduce=reduce)
