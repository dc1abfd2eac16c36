"""The ablation's records and their table."""

import json

from typer.testing import CliRunner

from eval.ablation import METHODS, RECORDS, SETS, ablation_table, app
from llava_forgery.files import read_json


def _metrics(auc):
    row = {"score": "kfd", "real_videos": 4, "fake_videos": 4, "video_auc_interval": None,
           "frame_auc": auc, "tpr_at_1_fpr": 0.1, "fpr": 0.125, "fnr": 0.5,
           "histogram": {}}  # fmt: skip
    rows = [{**row, "set": name, "method": "all", "video_auc": auc} for name in SETS]
    rows += [{**row, "set": "ff_c23", "method": name, "video_auc": 0.25} for name in METHODS]
    return {"threshold": 0.5, "rows": [*rows, {**rows[0], "score": "p_yes"}]}


def test_a_measurement_becomes_a_record_and_a_row(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(_metrics(0.75)))
    (tmp_path / "recipe.json").write_text('{"average": 0.99}')
    result = CliRunner().invoke(app, [
        "add", "a", "--metrics", str(tmp_path / "metrics.json"), "--steps", "300",
        "--people", "six", "--change", "averaged", "--recipe", str(tmp_path / "recipe.json"),
        "--records", str(tmp_path / "records"),
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    record = read_json(tmp_path / "records/a.json")
    assert record["recipe"] == {"average": 0.99}
    assert len(record["rows"]) == len(SETS) + len(METHODS)
    table = CliRunner().invoke(app, ["table", "--records", str(tmp_path / "records")]).output
    assert "| averaged | 300 | 0 | 0.750, 12 % |" in table
    assert table.rstrip().endswith("| 0.250 | 0.250 | 0.750 |")


def test_the_page_has_the_table_of_the_stored_records():
    records = {path.stem: read_json(path) for path in sorted(RECORDS.glob("*.json"))}
    page = (RECORDS.parents[1] / "README.md").read_text(encoding="utf-8")
    assert ablation_table(records) in page
