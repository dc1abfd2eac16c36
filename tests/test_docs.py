"""The documentation's site is whole."""

import ast
import json
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


def test_messages_on_the_page_of_errors_are_those_of_the_code():
    """Each part in quotation marks stands in a string of the package, or of what it needs."""
    texts = []
    for path in (ROOT / "llava_forgery").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "\0" for p in node.values)
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith('| "')]
    quoted = [part for row in rows for part in re.findall(r'"([^"]+)"', row)]
    assert len(quoted) > 15
    for message in quoted:
        pieces = [piece.strip() for piece in message.split("...") if piece.strip()]
        assert any(all(piece in text for piece in pieces) for text in texts), message


def test_commands_that_messages_name_exist():
    commands = set(json.loads((ROOT / "tests/public.json").read_text(encoding="utf-8"))["options"])
    for path in (ROOT / "llava_forgery").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            text = "".join(str(p.value) for p in parts if isinstance(p, ast.Constant))
            for first, second in re.findall(
                r"(?:`|: )llava-forgery ([a-z-]+)(?: ([a-z-]+))?", text
            ):
                assert {first, f"{first} {second}"} & commands, f"{path}: {first} {second}"
