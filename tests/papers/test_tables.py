"""Tables from records, and table 4's rows really run on the smallest models."""

import csv
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from eval.papers.cells import ImageRecord
from eval.papers.recipes import AUC, RECIPES, ModelSpec, Recipe, Row
from eval.papers.table_config import config_from_dict
from eval.papers.table_files import PAPER, write_table
from eval.papers.table_models import TableModels
from eval.papers.tables import MissingResult, TableEntry, measure_row, run_table
from llava_forgery.evaluation.checks import OneClassError
from llava_forgery.evaluation.metrics import auc
from llava_forgery.faces.records import save_faces
from llava_forgery.files import read_json
from tests import tiny

SCRIPT = Path(__file__).parents[2] / "eval/tables.py"
PLAIN = {"training_sets": {"FF++": "a"}, "tests": {"CDF2": {"faces": "b"}}, "resamples": 50}


def records(seed=0, count=40, p_yes=True):
    """Two images of each of ten people's videos, two videos each."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        label = i % 4 // 2
        value = float(np.clip(0.4 + 0.2 * label + rng.normal(0, 0.15), 0, 1))
        found.append(
            ImageRecord(
                label=label,
                score=None if p_yes else value,
                p_yes=value if p_yes else None,
                identity=f"person {i // 4}",
                video_id=f"video {i // 2}",
            )
        )
    return found


MARKDOWN = """\
# Table X: an example

About it.

All figures in percent, at video level. The interval (95 %) is of the mean over seeds and draws \
the test set's people; the deviation is over seeds.

| row | test set | output | figure | seed 0 | seed 2 | mean | std | 95 % interval | images | \
people | paper (FaceForensics++ etc., not comparable) | note |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| ours | London | P(yes) | AUC | 80.00 | 90.00 | 85.00 | 7.07 | 61.25 to 97.50 | 80 | 20 | \
FF++ 97.11, CDF2 89.90 |  |
| CLIP | London | score | AUC | 51.50 | – | 51.50 | – | 40.00 to 60.00 | 80 | 20 | – \
| random weights |

## Not run

| row | test sets | reason | paper (FaceForensics++ etc., not comparable) |
| --- | --- | --- | --- |
| ours | FF++, CDF2 | no such set | AUC: FF++ 97.11, CDF2 89.90; AP: FF++ 96.97 |
"""


def test_markdown_is_exactly_this(tmp_path):
    recipe = Recipe("tablex", "Table X: an example", (AUC,), ("FF++", "CDF2"), list, "About it.")
    paper = {"FF++": 97.11, "CDF2": 89.9}
    ours = TableEntry(
        "ours", "London", "P(yes)", AUC, {0: 80.0, 2: 90.0}, 61.25, 97.5, 80, 20, paper
    )  # fmt: skip
    clip = TableEntry(
        "CLIP", "London", "score", AUC, {0: 51.5}, 40.0, 60.0, 80, 20, note="random weights"
    )
    gap = MissingResult(
        "ours", ("FF++", "CDF2"), "no such set", {"AUC": paper, "AP": {"FF++": 96.97}}
    )
    config = config_from_dict(PLAIN)
    write_table(recipe, [ours, clip], [gap], (0, 2), tmp_path, config)
    record = read_json(tmp_path / "tablex.json")
    assert record["config"]["training_sets"] == PLAIN["training_sets"]
    assert [entry["values"] for entry in record["entries"]] == [{"0": 80.0, "2": 90.0}, {"0": 51.5}]
    assert (tmp_path / "tablex.md").read_text() == MARKDOWN
    rows = list(csv.DictReader((tmp_path / "tablex.csv").open()))
    assert [row["status"] for row in rows] == ["run", "run", "not run", "not run"]
    assert (rows[0]["seed 2"], rows[0]["std"], rows[1]["seed 2"]) == ("90.00", "7.07", "")
    assert rows[2]["mean"] == ""
    assert rows[2][PAPER] == "AUC 97.11; AP 96.97"


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_writes_its_table_from_records(name, tmp_path):
    config = config_from_dict({**PLAIN, "hosts": {"small": "h"}, "image_counts": [100]})
    recipe, entries = RECIPES[name], []
    for row in recipe.rows(config):
        if row.model is not None:
            cells = {0: records(0), 1: records(1)}
            entries += measure_row(recipe, row, "CDF2", cells, config)
    write_table(recipe, entries, [], (0, 1), tmp_path, config)
    text = (tmp_path / f"{name}.md").read_text()
    assert recipe.title in text
    for row in recipe.rows(config):
        if row.model is not None:
            for figure in recipe.figures:
                lines = [x for x in text.splitlines() if x.startswith(f"| {row.name} | CDF2")]
                assert sum(f"| {figure} |" in line for line in lines) == 1
                printed = row.paper.get(figure, {}).get("CDF2")
                if printed is not None:
                    assert any(f"| CDF2 {printed:.2f} |" in line for line in lines)


def test_figures_are_of_videos_and_seeds():
    config = config_from_dict(PLAIN)
    cells = {3: records(0), 5: records(1)}
    row = Row("ours", ModelSpec("detector"))
    (entry,) = measure_row(RECIPES["table3"], row, "London", cells, config)
    expected = []
    for found in cells.values():
        scores = np.array([r.output for r in found]).reshape(-1, 2).mean(axis=1)
        expected.append(100 * auc([r.label for r in found[::2]], scores))
    assert list(entry.values) == [3, 5]
    assert list(entry.values.values()) == pytest.approx(expected)
    assert entry.mean == pytest.approx(np.mean(expected))
    assert entry.deviation == pytest.approx(abs(expected[0] - expected[1]) / np.sqrt(2))
    assert entry.low <= entry.mean <= entry.high
    assert (entry.images, entry.people) == (40, 10)


def test_seeds_must_have_judged_the_same_images():
    config = config_from_dict(PLAIN)
    row = Row("ours", ModelSpec("detector"))
    with pytest.raises(ValueError, match="seed 1 judged other images"):
        measure_row(RECIPES["table3"], row, "x", {0: records(), 1: records()[:-2]}, config)
    real = [r for r in records() if r.label == 0]
    with pytest.raises(OneClassError):
        measure_row(RECIPES["table3"], row, "x", {0: real}, config)
    (entry,) = measure_row(RECIPES["antifakeprompt"], row, "COCO", {0: real}, config)
    assert entry.figure == "accuracy"


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """Prepared faces, a host on disk and the values of a configuration."""
    folder = tmp_path_factory.mktemp("tables")
    crops = [tiny.face(i, "train" if i < 4 else "test") for i in range(6)]
    save_faces(crops, folder / "faces", {})
    host, processor = tiny.llava()
    host.save_pretrained(folder / "host")
    processor.save_pretrained(folder / "host")
    return {
        "training_sets": {"drawn": str(folder / "faces")},
        "tests": {"drawn": {"faces": str(folder / "faces"), "pairs": 4}},
        "hosts": {"tiny": str(folder / "host")},
        "detector": {"config": tiny.kfd_config().to_dict(), "steps": 1, "batch_size": 2},
        "adapter": {
            "pairs": 2, "steps": 2, "fpl_warmup_steps": 2, "batch_size": 2, "lora_r": 2,
            "learning_rate": 0.02, "follow_ups": 0.0,
        },
        "workers": 0,
        "save_steps": None,
        "resamples": 20,
    }  # fmt: skip


@pytest.fixture(scope="module")
def table4(setup, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, run_table("table4", config_from_dict(setup), out)


def test_table_4_runs_its_cells(table4):
    out, (entries, gaps) = table4
    assert [entry.row for entry in entries[::2]] == [
        "neither: bare host, zero-shot, score in the prompt",
        "LoRA alone",
        "FPL alone",
        "FPL + LoRA",
        "KFD alone, no language model",
    ]
    assert [entry.output for entry in entries[::2]] == ["P(yes)"] * 4 + ["score"]
    assert all(entry.images == 8 and entry.people == 2 for entry in entries)
    assert {gap.tests for gap in gaps} == {("FF++", "CDF2", "DFDC")}
    text = (out / "table4.md").read_text()
    assert "FF++ 97.11, CDF2 89.90, DFDC 68.77" in text
    parts = sorted(path.name.split("-")[0] for path in (out / "models").iterdir())
    assert parts == ["adapter", "adapter", "conversations", "detector", "lora"]


def test_rows_differ_by_fpl_and_lora(setup, table4):
    """The same forgeries and the same detector, but other answers in each row."""
    out, _ = table4
    models = TableModels(config_from_dict(setup), out)
    image = [tiny.picture(3)]
    specs = [ModelSpec(kind, lora=lora) for kind in ("host", "adapter") for lora in (False, True)]
    found = [models.scorer(spec, 0)(image) for spec in specs]
    assert len({round(values["p_yes"][0], 7) for values in found}) == 4
    assert len({round(values["kfd"][0], 6) for values in found}) == 1


def test_second_run_reads_what_is_there(setup, table4, monkeypatch):
    out, first = table4

    def refuse(self, spec, seed):
        raise AssertionError("a finished cell was made again")

    monkeypatch.setattr(TableModels, "scorer", refuse)
    assert run_table("table4", config_from_dict(setup), out) == first
    changed = {**setup, "adapter": {**setup["adapter"], "steps": 3}}
    with pytest.raises(AssertionError, match="made again"):
        run_table("table4", config_from_dict(changed), out)


def test_missing_data_are_not_run_with_the_reason(setup, tmp_path):
    config = config_from_dict({**setup, "hosts": {}, "tests": {"FF++": {"faces": "nowhere"}}})
    entries, gaps = run_table("table2", config, tmp_path)
    assert entries == []
    reasons = {gap.row: gap.reason for gap in gaps if "FF++" in gap.tests}
    assert "nowhere" in reasons["CLIP, linear probe"]
    text = (tmp_path / "table2.md").read_text()
    assert "Nothing was run." in text
    assert "no recipe here" in text

    unsplit = {"drawn": {**setup["tests"]["drawn"], "split": "val"}}
    entries, gaps = run_table("table1", config_from_dict({**setup, "tests": unsplit}), tmp_path)
    assert entries == []
    assert any("no face of the split 'val'" in gap.reason for gap in gaps)
    assert not (tmp_path / "models").exists()

    config = config_from_dict({**setup, "hosts": {}, "image_counts": [99]})
    _, gaps = run_table("table3", config, tmp_path)
    reasons = {gap.reason for gap in gaps if gap.row.startswith("99") and "drawn" in gap.tests}
    assert reasons == {
        "99 training images wanted, 'drawn' has 4",
        "hosts of the configuration is empty",
    }


def test_command_writes_and_names_mistakes(tmp_path, monkeypatch, capsys):
    """Records alone, so that nothing is trained."""
    (tmp_path / "records.jsonl").write_text('{"set": "SD2", "label": 1, "p_fake": 0.9}\n')
    values = {
        "training_sets": {"none": str(tmp_path / "none")},
        "tests": {"SD2": {"fake": str(tmp_path)}},
        "records": {"pseudo-word": {"0": str(tmp_path / "records.jsonl")}},
    }
    (tmp_path / "config.json").write_text(json.dumps(values))

    def run(*arguments):
        command = ["tables.py", *arguments, "--config", str(tmp_path / "config.json")]
        monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path / "out")])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return stopped.value.code, capsys.readouterr()

    code, said = run("antifakeprompt", "--seeds", "1,x")
    assert code == 2
    assert said.err.endswith("error: --seeds must be numbers such as 0,1,2, got '1,x'\n")
    code, said = run("antifakeprompt")
    assert not code
    assert said.out.strip() == (tmp_path / "out/antifakeprompt.md").read_text().strip()
    assert "| 100.00 |" in said.out


def test_rows_that_something_else_judged(setup, tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(
        '{"path": "1.png", "set": "SD2", "label": 1, "p_fake": 0.9}\n'
        '{"path": "2.png", "set": "SD2", "label": 1, "p_fake": 0.4}\n'
    )
    config = config_from_dict(
        {
            **setup,
            "training_sets": {"drawn": str(tmp_path / "none")},
            "hosts": {},
            "tests": {"SD2": {"fake": str(tmp_path)}, "COCO": {"real": str(tmp_path)}},
            "records": {"pseudo-word": {"7": str(path)}},
        }
    )
    (entry,), gaps = run_table("antifakeprompt", config, tmp_path / "out")
    assert (entry.row, entry.values, entry.paper) == (
        "pseudo-word (AntifakePrompt)",
        {7: 50.0},
        {"SD2": 98.33},
    )
    assert any("has no records of the set 'COCO'" in gap.reason for gap in gaps)


def test_mistakes(setup, tmp_path):
    config = config_from_dict(setup)
    with pytest.raises(ValueError, match="unknown table 'table9'; expected one of table1"):
        run_table("table9", config, tmp_path)
    with pytest.raises(ValueError, match=r"seeds must be .* got \[1, 1\]"):
        run_table("table4", config, tmp_path, seeds=[1, 1])
