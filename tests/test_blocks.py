"""Blocks of README and docs: each is run on the samples, or says why not."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

from llava_forgery.cli.app import app
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.infer.default import default_model
from tests import tiny

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN, NOT_RUN = "<!-- run -->", re.compile(r"<!-- not run: \S.{9,} -->")


class Block(NamedTuple):
    """A fenced block of commands."""

    line: int
    language: str
    body: str
    mark: str
    """The last line before it that is not empty."""


def blocks(page: Path) -> Iterator[Block]:
    """Blocks of shell and Python."""
    lines = [line.rstrip() for line in page.read_text(encoding="utf-8").splitlines()]
    mark, i = "", 0
    while i < len(lines):
        fence = re.fullmatch(r"```(\w*)(?:\{.*\}.*)?", lines[i])
        if fence:
            end = lines.index("```", i + 1)
            if fence[1] in ("bash", "sh", "shell", "console", "python"):
                yield Block(i + 1, fence[1], "\n".join(lines[i + 1 : end]), mark)
            i = end
        elif lines[i].strip():
            mark = lines[i].strip()
        i += 1


def test_every_block_is_run_or_says_why_not():
    for page in PAGES:
        for block in blocks(page):
            assert block.mark == RUN or NOT_RUN.fullmatch(block.mark), (
                f"{page.relative_to(ROOT)}:{block.line} is neither run nor marked; write {RUN} or "
                "<!-- not run: REASON --> above it"
            )


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A folder in which the pages' names are: photographs, faces, and models of tiny sizes."""
    folder = tmp_path_factory.mktemp("stage")
    photographs = sorted((ROOT / "samples").glob("*.jpg"))
    for name, most in (("photos", 2), ("PHOTOS", 24)):
        (folder / name).mkdir()
        for photograph in photographs[:most]:
            shutil.copy(photograph, folder / name)
    shutil.copy(photographs[0], folder / "photo.jpg")
    Image.fromarray(tiny.picture()).save(folder / "face.png")
    arguments = ["data", "prepare", folder / "PHOTOS", "--out", folder / "FACES"]
    options = ["--identity-pattern", r"^(\d+)_", "--test-share", "0.5"]
    result = CliRunner().invoke(app, [*map(str, arguments), *options])
    assert result.exit_code == 0, result.output
    shutil.copytree(default_model() / "kfd", folder / "KFD")
    for part in tiny.llava():
        part.save_pretrained(folder / "HOST")
    host = AutoModelForImageTextToText.from_pretrained(folder / "HOST")
    attach_forgery(host, tiny.llava()[1], tiny.kfd(), lora=LoraSettings(r=2)).save_pretrained(
        folder / "ADAPTER"
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_run(page, stage, tmp_path):
    """In a folder that has the samples and what the pages name, one after another."""
    wanted = [block for block in blocks(page) if block.mark == RUN]
    if not wanted:
        pytest.skip("no block of this page is run: each says why")
    shutil.copytree(stage, tmp_path, dirs_exist_ok=True)
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, "MPLBACKEND": "agg"}
    for block in wanted:
        command = ["bash", "-euo", "pipefail", "-c", block.body]
        if block.language == "python":
            command = [sys.executable, "-c", block.body]
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert result.returncode == 0, f"{page.name}:{block.line}\n{result.stderr[-3000:]}"
