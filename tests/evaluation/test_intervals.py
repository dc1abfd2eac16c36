"""Bootstrap intervals, against SciPy's and in their behaviour."""

import numpy as np
import pytest
from scipy import stats

from llava_forgery.evaluation.intervals import bootstrap, bootstrap_interval, roc_band
from llava_forgery.evaluation.metrics import auc, region_scores, tpr_at_fpr


def scored(count=60, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    return labels, rng.normal(labels, 1)


def test_equals_scipy_where_nothing_is_redrawn():
    labels, scores = scored()
    ours = bootstrap_interval(auc, labels, scores, resamples=300, seed=3)
    theirs = stats.bootstrap(
        (labels, scores),
        auc,
        paired=True,
        vectorized=False,
        n_resamples=300,
        method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval
    assert ours.redrawn == 0
    assert ours.low == pytest.approx(theirs.low, abs=1e-9)
    assert ours.high == pytest.approx(theirs.high, abs=1e-9)
    assert ours.value == auc(labels, scores)
    assert ours.units == 60


def test_seed_decides():
    data = scored()
    first, again = (bootstrap_interval(auc, *data, resamples=50, seed=1) for _ in range(2))
    assert first == again
    assert first != bootstrap_interval(auc, *data, resamples=50, seed=2)


def test_groups_are_drawn_whole():
    """Copies of an image bring nothing new: the interval is that of the single images."""
    labels, scores = scored(40)
    alone = bootstrap_interval(auc, labels, scores, resamples=200)
    videos = np.repeat(np.arange(40), 10)
    copied = [np.repeat(values, 10) for values in (labels, scores)]
    grouped = bootstrap_interval(auc, *copied, groups=videos, resamples=200)
    assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high), abs=1e-9)
    assert grouped.units == 40
    naive = bootstrap_interval(auc, *copied, resamples=200)
    assert naive.high - naive.low < 0.6 * (grouped.high - grouped.low)


def test_resamples_of_one_class_are_redrawn_and_counted():
    labels, scores = np.array([0, 0, 0, 1]), np.array([0.1, 0.2, 0.6, 0.5])
    interval = bootstrap_interval(auc, labels, scores, resamples=400)
    # A resample misses the one fake in (3/4)^4 = 0.32 of the cases and all real ones in 0.004.
    share = interval.redrawn / (interval.redrawn + 400)
    assert share == pytest.approx(0.32, abs=0.06)
    assert interval.resamples == 400
    values, redrawn = bootstrap(auc, labels, scores, resamples=400)
    assert (len(values), redrawn) == (400, interval.redrawn)
    with pytest.raises(ValueError, match="needs real and fake"):
        bootstrap_interval(auc, [0, 0], [0.1, 0.2])


def test_too_few_units_are_an_error_and_no_endless_loop():
    def never(labels):
        return auc(np.zeros(len(labels)), np.zeros(len(labels)))

    with pytest.raises(ValueError, match="too few units of one class"):
        bootstrap(never, np.array([0, 1]), resamples=5)


def test_other_mistakes_pass_through():
    with pytest.raises(ValueError, match="fpr must lie"):
        bootstrap_interval(lambda y, s: tpr_at_fpr(y, s, 2), *scored())
    with pytest.raises(ValueError, match="lengths differ"):
        bootstrap_interval(auc, [0, 1], [0.1])
    with pytest.raises(ValueError, match="'groups': 1"):
        bootstrap(auc, [0, 1], [0.1, 0.2], groups=["a"])
    with pytest.raises(ValueError, match="confidence must lie"):
        bootstrap_interval(auc, *scored(), confidence=95)
    with pytest.raises(ValueError, match="resamples must be"):
        bootstrap(auc, *scored(), resamples=0)


def test_sequences_are_resampled_too():
    predicted = [("nose",), ("eyes",), (), ("mouth",)]
    true = [("nose",), ("nose",), ("chin",), ("mouth",)]
    interval = bootstrap_interval(lambda p, t: region_scores(p, t).f1, predicted, true)
    assert interval.low < interval.value < interval.high
    assert str(interval).startswith("0.571 [")


def test_coverage():
    """Of many data sets' 80 % intervals, about 80 % hold the true AUC."""
    true = stats.norm.cdf(1 / np.sqrt(2))
    held = 0
    for seed in range(60):
        interval = bootstrap_interval(auc, *scored(80, seed), resamples=80, confidence=0.8)
        held += interval.low <= true <= interval.high
    assert 38 <= held <= 57


def test_roc_band_holds_the_curve_and_narrows_with_the_data():
    grid = np.linspace(0, 1, 21)
    low, high = roc_band(*scored(60), grid, resamples=100)
    assert (low <= high).all()
    assert (np.diff(low) >= 0).all()
    assert (low[-1], high[-1]) == (1, 1)
    narrow = np.subtract(*roc_band(*scored(2000), grid, resamples=100)[::-1])
    assert narrow.mean() < 0.5 * (high - low).mean()
