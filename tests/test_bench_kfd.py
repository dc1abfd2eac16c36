"""The bench runs; what it measures at tiny sizes says nothing."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "bench_kfd.py"


@pytest.mark.slow
def test_bench_prints_a_line_for_each_variant():
    result = subprocess.run(
        [sys.executable, SCRIPT, "--tiny", "--batches", "1", "--rounds", "1", "--warm-up", "0",
         "--threads", "1", "--hidden-size", "64", "--dtypes", "float32", "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = [
        line for line in result.stdout.splitlines() if re.match(r"(heads|fpl|trunk|text), ", line)
    ]
    names = [row[:28].strip() for row in rows]
    heads = [
        f"{part}, {name}" for part in ("heads", "fpl") for name in ("official", "paper", "lite")
    ]
    assert names == [*heads, "trunk, ours", "text, ours, once"]
    # Of another run, and said so; batch 1 in float32 on a CPU alone.
    assert [row.split()[-1] for row in rows[::3]] == ["398", "422", "3181"]
