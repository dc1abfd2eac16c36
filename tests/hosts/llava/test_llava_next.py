"""The skill on LLaVA-NeXT's ``llava``: a checkout where there is one, and a stand-in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llava_forgery.hosts.llava import compat as llava_compat
from tests import tiny_llava

ROOT = Path(__file__).parents[3]
STAND_IN = ROOT / "tests/stand_ins/llava_next"


# One process can import one llava only, and a fresh one takes a while to import everything.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stand-in", "checkout"])
def test_the_skill_on_llava_next(kind, tmp_path):
    folder = STAND_IN if kind == "stand-in" else os.environ.get("LLAVA_NEXT")
    if folder is None:
        pytest.skip("set LLAVA_NEXT to a checkout of LLaVA-VL/LLaVA-NeXT")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{folder}:{ROOT}"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.hosts.llava.llava_next_run", str(tmp_path)],
        capture_output=True, text=True, check=False, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["bare"]
    assert result["template"]
    assert any("find_pruneable_heads_and_indices" in change for change in result["changes"])
    assert any("rope_scaling" in change for change in result["changes"])
    assert any("size as a dictionary" in change for change in result["changes"])
    assert result["again"] == []
    assert result["one_by_one"] < 1e-4
    one, two, without = result["changes_by_sample"]
    assert min(one, two) > 10 * result["one_by_one"]
    assert without == 0
    assert result["answer"] == [1, 3]
    assert result["loaded"] < 1e-5
    assert result["merged"] < 1e-4
    # In float16 through LLaVA-NeXT's own loader, which leaves the tower in float32.
    assert result["half"] < 0.5
    assert "CLIPImageProcessor" in result["processor"]
    apart, control = result["shared"]
    assert apart < 1e-4
    assert control > 1e-2
    learnt, moved = result["trained"]
    assert learnt > 0
    assert moved == 0


def test_the_other_llava_needs_nothing():
    tiny_llava.require_llava()
    assert not llava_compat.is_next()
    with pytest.raises(ImportError, match="PYTHONPATH"):
        llava_compat.patch_llava_next()


def test_pruneable_heads():
    heads, columns = llava_compat._find_pruneable_heads_and_indices([1, 2], 3, 2, {1})
    assert heads == {2}
    # Heads 0, 2 and 3 are left; the second of them goes.
    assert torch.equal(columns, torch.tensor([0, 1, 4, 5]))
