import json

import numpy as np
import pytest

from llava_forgery.evaluation.groups import attribute_tables, fpr_gap, group_table, read_attributes
from llava_forgery.evaluation.metrics import auc

LABELS = [0, 0, 1, 1, 0, 0, 1]
SCORES = [0.1, 0.6, 0.7, 0.4, 0.2, 0.3, 0.9]
GROUPS = ["a", "a", "a", "a", "b", "b", "b"]


def test_figures_of_each_group():
    a, b, everyone = group_table(LABELS, SCORES, GROUPS)
    assert (a.group, a.real, a.fake, a.auc, a.accuracy) == ("a", 2, 2, 0.75, 0.5)
    assert (a.fpr, a.fnr) == (0.5, 0.5)
    assert (b.group, b.auc, b.accuracy, b.fpr, b.fnr) == ("b", 1.0, 1.0, 0.0, 0.0)
    assert everyone.group is None
    assert everyone.auc == auc(LABELS, SCORES)
    assert everyone.fpr == 0.25
    json.dumps(a.to_dict(), allow_nan=False)


def test_a_small_group_has_a_wide_interval():
    few = group_table([0] * 4, [0.9, 0.1, 0.1, 0.1], ["a"] * 4)[0]
    many = group_table([0] * 400, [0.9, 0.1, 0.1, 0.1] * 100, ["a"] * 400)[0]
    widths = [high - low for low, high in (few.fpr_interval, many.fpr_interval)]
    assert few.fpr == many.fpr == 0.25
    # Wilson's interval of 1 in 4 (by hand: centre 0.3726, half width 0.3270).
    assert few.fpr_interval == pytest.approx((0.0456, 0.6994), abs=1e-3)
    assert widths[1] < widths[0] / 5


def test_groups_of_one_class_have_no_auc():
    real, fake, _ = group_table([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.9], ["r", "r", "f", "f"])
    assert (real.auc, real.fnr, real.fpr) == (None, None, 0.0)
    assert (fake.auc, fake.fpr, fake.fpr_interval) == (None, None, None)
    assert fake.fnr == 0.5
    assert fpr_gap([real, fake]) is None


def test_methods_are_set_against_all_real_images():
    labels, scores = [0, 0, 1, 1, 1, 1], [0.1, 0.5, 0.9, 0.8, 0.3, 0.2]
    methods = ["youtube", "actors", "swap", "swap", "reenact", "reenact"]
    table = group_table(labels, scores, methods, share_real=True)
    assert [row.group for row in table] == ["swap", "reenact", None]
    assert [row.auc for row in table[:2]] == [1.0, 0.5]
    assert [row.real for row in table] == [2, 2, 2]


def test_gap_between_groups():
    table = group_table(LABELS, SCORES, GROUPS)
    assert fpr_gap(table) == 0.5
    assert fpr_gap(group_table([0, 1], [0.9, 0.1], ["a", "a"])) is None


def test_groups_are_checked():
    with pytest.raises(ValueError, match="lengths differ"):
        group_table([0, 1], [0.1, 0.2], ["a"])
    with pytest.raises(ValueError, match="finite"):
        group_table([0, 1], [0.1, np.nan], ["a", "a"])


def test_attributes_of_people_size_and_compression(tmp_path):
    path = tmp_path / "people.csv"
    path.write_text("identity,sex,age\na,f,20\nb,m,\n")
    attributes = read_attributes(path)
    assert attributes == {"sex": {"a": "f", "b": "m"}, "age": {"a": "20", "b": "unknown"}}
    records = [
        {"identity": who, "label": label, "face_size": size}
        for who, label, size in [("a", 0, 100.0), ("a", 1, 128.0), ("b", 0, 600.0), ("c", 1, 90.0)]
    ]
    scores = {"kfd": (np.array([0.1, 0.9, 0.7, 0.8]), 0.5)}
    tables = attribute_tables(records, scores, attributes)
    # Nothing is known of compression, so it tells nobody apart.
    assert set(tables) == {"sex", "age", "face size"}
    sexes = {row["group"]: row for row in tables["sex"]["kfd"]}
    assert set(sexes) == {"f", "m", "unknown", None}
    assert (sexes["f"]["auc"], sexes["f"]["fpr"], sexes["m"]["fpr"]) == (1.0, 0.0, 1.0)
    assert [row["group"] for row in tables["face size"]["kfd"]] == [
        "under 128 pixels", "under 256 pixels", "512 pixels and more", None
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"), [("identity\na\n", "without any"), ("identity,sex\na,f\na,m\n", "again")]
)
def test_attributes_that_say_nothing_or_two_things(tmp_path, text, message):
    (tmp_path / "people.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_attributes(tmp_path / "people.csv")
