"""Differences of two models on the same videos."""

import numpy as np
import pytest

from llava_forgery.evaluation.paired import comparison_table, paired_difference


def _records(noise, seed=0):
    rng = np.random.default_rng(seed)
    records = []
    for name in ("one", "two"):
        for person in range(12):
            for label in (0, 1):
                for frame in range(2):
                    records.append(
                        {
                            "path": f"{name}/{label}/{person}_{frame}",
                            "set": name,
                            "method": "swap" if label else None,
                            "video": str(person),
                            "identities": [f"p{person}"],
                            "label": label,
                            "score": float(np.clip(0.5 + 0.2 * (label - 0.5)
                                                   + noise * rng.normal(), 0, 1)),
                        }
                    )  # fmt: skip
    return records


def test_the_better_one_is_told_from_the_worse_one():
    found = paired_difference(_records(0.05), _records(0.6, 1), ("one", "two"), resamples=200)
    assert found.difference == pytest.approx(found.first - found.second)
    assert found.low > 0
    table = comparison_table({"noisy": found}, ("one", "two"))
    assert "| noisy | " in table
    assert f"{found.difference:+.3f} [{found.low:+.3f}" in table


def test_a_model_differs_from_itself_by_nothing():
    records = _records(0.3)
    found = paired_difference(records, records, ("one",), resamples=50)
    assert (found.difference, found.low, found.high) == (0, 0, 0)


def test_other_crops_are_refused():
    records = _records(0.3)
    with pytest.raises(ValueError, match="different crops"):
        paired_difference(records, records[1:], ("one",))
