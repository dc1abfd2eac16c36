"""setup.py, and what pages and files say of it."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement

from llava_forgery.cli.doctor import NEEDED_BY

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def setup() -> dict[str, Any]:
    """The arguments of setup.py, which an installed package's metadata may be older than."""
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **options: found.update(options))
        runpy.run_path(str(ROOT / "setup.py"))
    return found


def names(requirements: list[str]) -> list[str]:
    return [Requirement(line).name for line in requirements]


def test_the_table_of_extras_is_that_of_setup(setup):
    page = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (none|`\w+`) \| (.+?) \| (.+) \|$", page, re.MULTILINE)
    wanted = {"": setup["install_requires"], **setup["extras_require"]}
    assert [extra.strip("`").replace("none", "") for extra, _, _ in rows] == list(wanted)
    for (_, purpose, packages), (extra, requirements) in zip(rows, wanted.items(), strict=True):
        assert purpose.replace("`", "") == NEEDED_BY[extra]
        assert packages.split(", ") == list(dict.fromkeys(names(requirements))), extra


def test_readme_names_extras_that_exist(setup):
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for extras in re.findall(r"(?:llava-forgery|whl|\.)\[([\w,]+)\]'", page.read_text()):
            assert set(extras.split(",")) <= set(setup["extras_require"]), page.name


def test_constraints_are_within_the_bounds(setup):
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = dict(line.split("==") for line in text.splitlines() if not line.startswith("#"))
    for requirements in (setup["install_requires"], *setup["extras_require"].values()):
        for need in map(Requirement, requirements):
            assert need.specifier.contains(pinned[need.name.lower()]), need
