"""The modules of the public names are checked by mypy."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import llava_forgery

ROOT = Path(__file__).parents[1]
# Its classes are made at run time, one for each host's processor.
UNCHECKED = {"llava_forgery.hosts.transformers.exported_processor"}


def test_the_modules_of_all_public_names_are_checked():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    assert set(settings["modules"]) >= set(llava_forgery._PUBLIC.values()) - UNCHECKED


@pytest.mark.slow
def test_types():
    command = [sys.executable, "-m", "mypy", f"--cache-dir={os.devnull}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
