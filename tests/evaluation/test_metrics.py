"""Measures against values computed by hand, and against scikit-learn and SciPy."""

import numpy as np
import pytest
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from llava_forgery.evaluation.checks import OneClassError
from llava_forgery.evaluation.metrics import (
    accuracy,
    agreement,
    auc,
    average_precision,
    calibration_error,
    equal_error_rate,
    error_rates,
    region_scores,
    roc,
    tpr_at_fpr,
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


def test_equal_error_rate():
    # At 0.4 one of two real ones is an alarm, at 0.35 still one fake of two is found by 0.4: 1/2.
    assert equal_error_rate(LABELS, [0.1, 0.4, 0.35, 0.8]) == pytest.approx(0.5)
    assert equal_error_rate(LABELS, [0.1, 0.2, 0.8, 0.9]) == 0.0
    assert equal_error_rate(LABELS, [0.9, 0.8, 0.2, 0.1]) == 1.0
    # No threshold tells anything apart: the chord of the curve meets the diagonal in its middle.
    assert equal_error_rate([0, 0, 1], [0.5, 0.5, 0.5]) == 0.5


def test_tpr_at_fpr_takes_a_threshold_that_exists():
    labels = [0] * 10 + [1] * 4
    scores = [*np.arange(10) / 10, 0.95, 0.85, 0.75, 0.05]
    # Above all real ones lies one fake; with one alarm in ten, two; with two, three.
    assert tpr_at_fpr(labels, scores, 0.01) == 0.25
    assert tpr_at_fpr(labels, scores, 0.0999) == 0.25
    assert tpr_at_fpr(labels, scores, 0.1) == 0.5
    assert tpr_at_fpr(labels, scores, 0.2) == 0.75
    for fpr in (0, 1, 5):
        with pytest.raises(ValueError, match="between 0 and 1"):
            tpr_at_fpr(labels, scores, fpr)


def random_scores(seed):
    """Labels and scores with ties, of classes of different size."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(rng.integers(30, 400)) < rng.uniform(0.1, 0.9)).astype(int)
    labels[:2] = 0, 1
    scores = rng.normal(labels * rng.uniform(0, 2), 1).round(int(rng.integers(1, 4)))
    return labels, scores


@pytest.mark.parametrize("seed", range(20))
def test_ranking_equals_scikit_learn(seed):
    labels, scores = random_scores(seed)
    assert auc(labels, scores) == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-9)
    expected = sk.average_precision_score(labels, scores)
    assert average_precision(labels, scores) == pytest.approx(expected, abs=1e-9)
    fpr, tpr, _ = sk.roc_curve(labels, scores)
    crossing = brentq(lambda x: 1 - x - interp1d(fpr, tpr)(x), 0, 1, xtol=1e-13)
    assert equal_error_rate(labels, scores) == pytest.approx(crossing, abs=1e-9)
    for target in (0.01, 0.05):
        found = max(t for f, t in zip(fpr, tpr, strict=True) if f <= target)
        assert tpr_at_fpr(labels, scores, target) >= found - 1e-9
        # By counting, over all thresholds.
        best = 0.0
        for threshold in [*scores, np.inf]:
            called = scores >= threshold
            if called[labels == 0].mean() <= target:
                best = max(best, called[labels == 1].mean())
        assert tpr_at_fpr(labels, scores, target) == pytest.approx(best, abs=1e-9)
    curve = roc(labels, scores)
    assert sk.auc(curve.fpr, curve.tpr) == pytest.approx(auc(labels, scores), abs=1e-9)
    called = (scores >= 0.5).astype(int)
    assert accuracy(labels, called) == pytest.approx(sk.accuracy_score(labels, called), abs=1e-9)
    (true_real, alarms), (missed, found) = sk.confusion_matrix(labels, called)
    rates = (alarms / (alarms + true_real), missed / (missed + found))
    assert error_rates(labels, scores) == pytest.approx(rates, abs=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_calibration_error_equals_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    p_fake = np.concatenate([rng.random(200), np.linspace(0, 1, 16)])
    labels = (rng.random(216) < p_fake**2).astype(int)
    true, predicted = calibration_curve(labels, p_fake, n_bins=15)
    place = np.searchsorted(np.linspace(0, 1, 16)[1:-1], p_fake)
    weights = np.bincount(place, minlength=15)
    expected = np.average(np.abs(true - predicted), weights=weights[weights > 0])
    assert calibration_error(labels, p_fake) == pytest.approx(expected, abs=1e-9)


def test_calibration_error():
    # Ten images at 0.8 of which six are fake, and ten at 0.1 of which one is.
    labels = [1] * 6 + [0] * 4 + [1] + [0] * 9
    p_fake = [0.8] * 10 + [0.1] * 10
    assert calibration_error(labels, p_fake) == pytest.approx(0.1)
    assert calibration_error([0, 1], [0.0, 1.0]) == 0.0
    assert calibration_error([1, 0], [0.0, 1.0]) == 1.0
    with pytest.raises(ValueError, match=r"p_fake must lie in \[0, 1\]"):
        calibration_error([0, 1], [0.0, 1.2])
    with pytest.raises(ValueError, match="bins must be at least 1"):
        calibration_error([0, 1], [0.0, 1.0], bins=0)


def test_error_rates_of_one_class():
    assert error_rates([0, 0], [0.5, 0.1]) == (0.5, None)
    assert error_rates([1, 1], [0.5, 0.1]) == (None, 0.5)


def test_single_class_is_an_error_of_its_own():
    for measure in (auc, average_precision, equal_error_rate, roc):
        with pytest.raises(OneClassError, match="needs real and fake images, got only labels"):
            measure([0, 0], [0.1, 0.2])
    with pytest.raises(OneClassError, match="TPR at 5% FPR needs real and fake"):
        tpr_at_fpr([1, 1], [0.1, 0.2], 0.05)


@pytest.mark.parametrize("measure", [auc, average_precision, equal_error_rate, roc])
@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([1, 1], [0.1, 0.2], r"needs real and fake images, got only labels \[1.0\]"),
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
    assert agreement([0.35, 0.2], [0.4, 0.4], threshold=0.3) == 0.5
    with pytest.raises(ValueError, match=r"p_yes must lie in \[0, 1\], got 2 to 2"):
        agreement([0.5], [2])
