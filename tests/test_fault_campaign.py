import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_nothing_goes_wrong_without_a_word(tmp_path):
    pytest.importorskip("dlib")
    command = [sys.executable, str(ROOT / "scripts/fault_campaign.py"), "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    last = result.stdout.strip().splitlines()[-1]
    told = re.fullmatch(r"(\d+) inputs, (\d+) outcomes: 0 silently wrong, 0 refused .*", last)
    assert told is not None, result.stdout + result.stderr[-2000:]
    assert result.returncode == 0
    assert int(told[1]) >= 100
