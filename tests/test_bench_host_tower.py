"""The bench runs; what it measures at tiny sizes says nothing."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "bench_host_tower.py"


@pytest.mark.slow
def test_bench_prints_its_table():
    result = subprocess.run(
        [sys.executable, SCRIPT, "--tiny", "--layers", "1", "--rounds", "1", "--threads", "1"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if re.search(r"\d+\.\d$|\d\.\d{3}$", line)]
    assert rows[0].startswith("bare host")
    assert " 1.000 " in rows[0]
    assert len(rows) == 7
