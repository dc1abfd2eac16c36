"""Overlap of masks and pixel AUC, by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, jaccard_score, roc_auc_score

from llava_forgery.evaluation.checks import OneClassError
from llava_forgery.evaluation.masks import mask_dice, mask_iou, pixel_auc


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


@pytest.mark.parametrize("seed", range(5))
def test_masks_equal_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    true = rng.random((4, 9, 7)) < 0.4
    maps = (true * 0.3 + rng.random(true.shape)).round(2)
    predicted = maps > 0.6
    flat = [(t.ravel(), p.ravel()) for t, p in zip(true, predicted, strict=True)]
    iou, dice = (np.mean([score(*pair) for pair in flat]) for score in (jaccard_score, f1_score))
    assert mask_iou(predicted, true) == pytest.approx(iou, abs=1e-9)
    assert mask_dice(predicted, true) == pytest.approx(dice, abs=1e-9)
    expected = roc_auc_score(true.ravel(), maps.ravel())
    assert pixel_auc(maps, true) == pytest.approx(expected, abs=1e-9)


def test_pixel_auc():
    true = np.stack([mask([1, 1], [0, 0]), mask([0, 0], [0, 0])])
    # Forged 0.9 and 0.2; of the six others 0.2 ties with one and 0.3 lies above it.
    maps = np.array([[[0.9, 0.2], [0.2, 0.1]], [[0.1, 0.0], [0.3, 0.1]]])
    assert pixel_auc(maps, true) == pytest.approx((6 + 4.5) / 12)


@pytest.mark.parametrize(
    ("maps", "true", "error", "message"),
    [
        (np.zeros((1, 2, 2)), np.zeros((1, 2, 2), bool), OneClassError, "only untouched ones"),
        (np.zeros((1, 2, 2)), np.ones((1, 2, 2), bool), OneClassError, "only forged ones"),
        (np.full((1, 2, 2), np.nan), np.ones((1, 2, 2), bool), ValueError, "must be finite"),
        (np.zeros((1, 2, 3)), np.ones((1, 2, 2), bool), ValueError, "differ in shape"),
        (np.zeros((1, 2, 2), bool), np.ones((1, 2, 2), bool), ValueError, "maps must be .* floats"),
        (np.zeros((1, 2, 2)), np.ones((1, 2, 2)), ValueError, "true must be .* threshold"),
    ],
)
def test_pixel_auc_is_checked(maps, true, error, message):
    with pytest.raises(error, match=message):
        pixel_auc(maps, true)
