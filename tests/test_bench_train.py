"""The bench runs; what it measures at tiny sizes says nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "bench_train.py"


@pytest.mark.slow
def test_bench_prints_its_table():
    result = subprocess.run(
        [sys.executable, SCRIPT, "--tiny", "--layers", "1", "--rounds", "1", "--threads", "1"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    names = ["plain LoRA", "skill, own encoder", "skill, the host's tower"]
    rows = [line for line in result.stdout.splitlines() if line.startswith(tuple(names))]
    assert len(rows) == 3
    assert rows[0].split()[-1] == "1.000"
