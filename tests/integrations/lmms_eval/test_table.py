"""The table of several models: its rows, and what makes them comparable."""

import json

import pytest

from eval.lmms_table import NOTE, Row, make_table, parse_row, read_result


def test_rows_are_named():
    row = parse_row("the skill=llava_forgery:adapter=/a/b,device=cpu")
    assert row == Row("the skill", "llava_forgery", "adapter=/a/b,device=cpu")
    for text in ("llava:pretrained=a", "=llava:a", "a=llava", "../a=llava:b"):
        with pytest.raises(ValueError, match="NAME=MODEL:MODEL_ARGS"):
            parse_row(text)


def test_results_of_several_ranks_are_joined(tmp_path):
    for rank, pictures in enumerate((["b", "a"], ["b"])):
        note = {"fpl_calls": 2, "pictures": pictures}
        (tmp_path / f"{NOTE}.{rank}").write_text(json.dumps(note))
    with pytest.raises(FileNotFoundError, match="no results"):
        read_result(tmp_path)
    (tmp_path / "host").mkdir()
    values = {"alias": "t", "auc,none": 0.75, "auc_stderr,none": 0.1, "unparsed,none": 3}
    (tmp_path / "host/1_results.json").write_text(json.dumps({"results": {"t": values}}))
    assert read_result(tmp_path) == {
        "fpl_calls": 4,
        "pictures": ["a", "b"],
        "figures": {"t: auc": 0.75, "t: unparsed": 3},
    }


def test_a_column_for_each_row_and_no_comparison_of_different_pictures():
    rows = [Row("bare", "llava_hf", ""), Row("skill", "llava_forgery", "")]
    results = [
        {"fpl_calls": 0, "pictures": ["a"], "figures": {"t: auc": 0.5}},
        {"fpl_calls": 7, "pictures": ["a"], "figures": {"t: auc": 0.75, "t: kfd_auc": 1.0}},
    ]
    assert make_table(rows, results).splitlines() == [
        "|  | bare | skill |",
        "| --- | --- | --- |",
        "| model | llava_hf | llava_forgery |",
        "| skill used (FPL calls) | no (0) | yes (7) |",
        "| pictures | 1 | 1 |",
        "| t: auc | 0.5000 | 0.7500 |",
        "| t: kfd_auc |  | 1.0000 |",
    ]
    results[1]["pictures"] = ["b"]
    with pytest.raises(ValueError, match="skill saw other pictures than bare"):
        make_table(rows, results)
