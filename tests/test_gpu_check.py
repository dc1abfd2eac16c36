"""The GPU's measurements: parts that fail or hang stop no other, and all of them run."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def check(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPTS / "gpu_check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _script(tmp_path, body):
    path = tmp_path / "part.py"
    path.write_text(
        "import json, sys, time\nfrom pathlib import Path\n"
        "figures = Path(sys.argv[1]) / f'{sys.argv[-1]}.jsonl'\n"
        "row = {'what': 'w', 'value': 1.0, 'unit': 's', 'goal': 'under 2', 'met': True}\n"
        "figures.write_text(json.dumps(row) + '\\n')\n" + body
    )
    return str(path)


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ("", "done"),
        ("raise SystemExit('out of memory')", "failed, see host.log"),
        ("time.sleep(600)", "stopped after 1 s"),
    ],
)
def test_figures_are_kept_whatever_becomes_of_a_part(check, tmp_path, monkeypatch, body, outcome):
    monkeypatch.setattr(check, "__file__", _script(tmp_path, body))
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", str(tmp_path)])
    seconds = 1 if "sleep" in body else 60
    part = check.run_alone("host", tmp_path, seconds)
    assert part["outcome"] == outcome
    assert [row["value"] for row in part["figures"]] == [1.0]
    results = {"machine": {"device": "gpu", "torch": "2"}, "rehearsal": False}
    shown = check.table({**results, "parts": {"host": part}})
    assert "| host | w | 1 s | under 2, met |" in shown
    assert f"| host | {outcome}" in shown


def test_without_budget_a_part_is_not_begun(check, tmp_path):
    assert check.run_alone("host", tmp_path, 0.5)["outcome"].startswith("not begun")


@pytest.mark.slow
def test_rehearsal(tmp_path):
    """All parts on the CPU, each to its end."""
    command = [sys.executable, SCRIPTS / "gpu_check.py", "--rehearse", "--out", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "gpu_check.json").read_text())
    logs = {path.stem: path.read_text()[-2000:] for path in tmp_path.glob("*.log")}
    for name, part in written["parts"].items():
        assert part["outcome"] == "done", logs[name]
        assert part["figures"], name
    assert set(written["parts"]) == {
        "equality", "host", "steps", "simulator", "detector", "detect", "serve", "quantised"
    }  # fmt: skip
    # On the CPU itself both sides are the same computation.
    equal = [row for row in written["parts"]["equality"]["figures"] if row["goal"]]
    assert all(row["met"] for row in equal)
    # Other goals are a GPU's; that every face has an answer is one on any machine.
    served = [row for row in written["parts"]["serve"]["figures"] if row["goal"]]
    assert served
    assert all(row["met"] for row in served)
    assert "A rehearsal at tiny sizes" in result.stdout
