"""The documentation's site is whole."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import llava_forgery

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_every_public_name_is_in_the_reference():
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\.\. auto\w+:: llava_forgery\.(\w+)$", page, re.MULTILINE))
    assert named == set(llava_forgery.__all__) - {"__version__"}


def test_every_page_is_in_the_table_of_contents():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    assert pages <= set(index.splitlines())


@pytest.mark.slow
def test_site_is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    result = subprocess.run([*command, DOCS, tmp_path], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "api.html").is_file()
