"""SIGKILL at any file that a training writes: resumed, it ends as if nothing had happened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_forgery.train.run_record import RECORD
from tests import tiny_llava
from tests.train import killed

ROOT = Path(__file__).parents[2]
# LLaVA's loader goes by such a name.
NAME = "x-llava-lora"


@pytest.fixture(scope="module")
def killed_runs(tmp_path_factory, one_thread):
    """Outputs of uninterrupted trainings and of killed ones, by kind."""
    tiny_llava.require_llava()
    folder = tmp_path_factory.mktemp("killed")
    killed.prepare(folder)
    runs, cases = {}, []
    for kind in killed.KINDS:
        whole, calls = folder / f"{kind}-whole" / NAME, []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(killed.files, "apply_umask", calls.append)
            killed.train(kind, folder, whole)
        # In the first and in the second checkpoint, the result, and the record that it is finished.
        points = {len(calls) // 3, 2 * len(calls) // 3, len(calls) - 1, len(calls)}
        cut = [(folder / f"{kind}-{point}" / NAME, point) for point in sorted(points)]
        cases += [[kind, str(out), point] for out, point in cut]
        runs[kind] = whole, [out for out, _ in cut]
    (folder / "cases.json").write_text(json.dumps(cases))
    process = subprocess.run(
        [sys.executable, "-m", "tests.train.killed", folder, folder / "cases.json"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=1200,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-4000:]
    return folder, runs


def _weights(out):
    return {path.relative_to(out): load_file(path) for path in out.rglob("*.safetensors")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", killed.KINDS)
def test_a_killed_training_is_resumed_and_leaves_nothing(killed_runs, kind):
    folder, runs = killed_runs
    whole, cut = runs[kind]
    expected = _weights(whole)
    for out in cut:
        killed.train(kind, folder, out, resume=True)
        assert not list(out.parent.rglob(".*")), out
        found = _weights(out)
        assert set(found) == set(expected)
        for name, tensors in expected.items():
            assert all(torch.equal(found[name][key], tensor) for key, tensor in tensors.items())
        names = {path.relative_to(whole.parent) for path in whole.parent.rglob("*")}
        assert {path.relative_to(out.parent) for path in out.parent.rglob("*")} == names
        (record,) = out.parent.rglob(RECORD)
        assert json.loads(record.read_text())["finished"]
