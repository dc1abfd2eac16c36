"""What the package promises as a whole: public names and a light import."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import llava_forgery

ROOT = Path(__file__).parent.parent

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def test_public_names():
    for name, module in llava_forgery._PUBLIC.items():
        value = getattr(llava_forgery, name)
        assert (value.__module__, value.__name__) == (module, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = llava_forgery.nothing


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "llava_forgery/__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert {node.names[0].name: node.module for node in block.body} == llava_forgery._PUBLIC


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_the_docs_import_is_public(page):
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "llava_forgery":
                assert node.module == "llava_forgery", ast.unparse(node)
                assert {alias.name for alias in node.names} <= set(llava_forgery.__all__)


def test_import_is_light():
    code = (
        "import sys, llava_forgery, llava_forgery.cli;"
        "print([m for m in ('torch', 'transformers', 'cv2', 'datasets') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "[]", result.stderr


def test_a_prediction_loads_what_it_needs():
    """No training, simulation or evaluation, and at most 45 files."""
    code = (
        "import sys\n"
        "from llava_forgery import ForgeryPredictor\n"
        "for name, module in list(sys.modules.items()):\n"
        "    if name.startswith('llava_forgery.') and '__init__' not in module.__file__:\n"
        "        print(name)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    loaded = result.stdout.split()
    rooms = {name.split(".")[1] for name in loaded}
    assert "infer" in rooms, result.stderr
    assert not rooms & {"train", "data", "evaluation", "simulate", "convert", "cli"}
    assert len(loaded) <= 45, sorted(loaded)
