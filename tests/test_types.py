"""The modules of the public names are checked by mypy."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import llava_forgery

ROOT = Path(__file__).parents[1]
# Hosts whose attributes torch's Module.__getattr__ gives as "Tensor | Module".
UNCHECKED = {
    "llava_forgery.hosts.llava.model",
    "llava_forgery.hosts.llava.register",
    "llava_forgery.hosts.transformers.model",
    "llava_forgery.infer.predictor",
    "llava_forgery.infer.video",
}


def test_the_checked_modules_are_those_of_the_public_names():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    assert set(settings["modules"]) == set(llava_forgery._PUBLIC.values()) - UNCHECKED


@pytest.mark.slow
def test_types():
    command = [sys.executable, "-m", "mypy", f"--cache-dir={os.devnull}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
