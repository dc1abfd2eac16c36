"""Records on disk: kept, redone, refused."""

import json

import pytest

from eval.papers.cells import (
    CELLS,
    ImageRecord,
    read_other_records,
    read_records,
    run_cell,
    settings_key,
)


def record(**changes):
    values = {"label": 1, "score": 0.7, "p_yes": None, "identity": "a", "video_id": "a/1"}
    return ImageRecord(**{**values, **changes})


class Judge:
    def __init__(self, records):
        self.records, self.calls = records, 0

    def __call__(self):
        self.calls += 1
        yield from self.records


def test_a_finished_cell_is_not_recomputed(tmp_path):
    judge = Judge([record(), record(label=0, p_yes=0.25, regions=("nose", "mouth"))])
    settings = {"model": {"steps": 3}, "seed": 0}
    first = run_cell(tmp_path, settings, judge)
    assert run_cell(tmp_path, settings, judge) == first == judge.records
    assert judge.calls == 1


def test_changed_settings_give_another_cell(tmp_path):
    judge = Judge([record()])
    run_cell(tmp_path, {"steps": 3}, judge)
    run_cell(tmp_path, {"steps": 4}, judge)
    assert judge.calls == 2
    assert len(list((tmp_path / CELLS).iterdir())) == 2


def test_an_interrupted_or_half_written_cell_is_redone(tmp_path):
    settings = {"steps": 3}

    def interrupted():
        yield record()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cell(tmp_path, settings, interrupted)
    assert not list(tmp_path.rglob("*.jsonl"))
    half = tmp_path / CELLS / settings_key(settings)
    half.mkdir(parents=True)
    (half / "records.jsonl").write_text('{"label": 1')
    judge = Judge([record()])
    assert run_cell(tmp_path, settings, judge) == [record()]
    assert judge.calls == 1
    assert sorted(path.name for path in half.iterdir()) == ["records.jsonl", "settings.json"]
    assert [path.name for path in (tmp_path / CELLS).iterdir()] == [half.name]


def test_key_follows_values_not_their_order():
    assert settings_key({"a": 1, "b": [1, 2]}) == settings_key({"b": [1, 2], "a": 1})
    assert settings_key({"a": 1}) != settings_key({"a": 2})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": 2}, "label must be 0 .* got 2"),
        ({"score": 1.5}, r"score must lie in \[0, 1\] or be None, got 1.5"),
        ({"score": float("nan")}, "got nan"),
        ({"score": None}, "needs a score or p_yes"),
        ({"identity": ""}, "identity must be"),
    ],
)
def test_bad_records(changes, message):
    with pytest.raises(ValueError, match=message):
        record(**changes)


def test_output_is_what_the_language_model_says():
    assert record().output == 0.7
    assert record(p_yes=0.1).output == 0.1


def test_damaged_lines_are_named(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"label": 1, "score": 0.5}\n')
    with pytest.raises(ValueError, match=r"records.jsonl, line 1: .*identity"):
        read_records(path)


def test_records_of_other_commands(tmp_path):
    path = tmp_path / "records.jsonl"
    rows = [
        {"path": "x/1.png", "set": "SD2", "label": 1, "p_fake": 0.9, "prediction": 1},
        {"path": "x/2.png", "set": "COCO", "label": 0, "p_fake": 0.2, "prediction": 0},
        {"source": "3.png", "label": 0, "score": 0.3, "p_yes": 0.4, "identity": "b"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    fake, unnamed = read_other_records(path, "SD2")
    assert (fake.p_yes, fake.identity, fake.label) == (0.9, "x/1.png", 1)
    assert (unnamed.p_yes, unnamed.score, unnamed.identity) == (0.4, 0.3, "b")
    path.write_text('{"label": 1}')
    with pytest.raises(ValueError, match="line 1 is no record"):
        read_other_records(path, "SD2")
    with pytest.raises(FileNotFoundError, match="no file of records"):
        read_other_records(tmp_path / "none.jsonl", "SD2")
