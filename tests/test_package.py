"""What the package promises as a whole: light import, one direction of imports, a true README."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import llava_forgery

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "llava_forgery"

# A package may import from itself and from those named here (DESIGN: one data direction).
BASE = {"constants", "optional", "files", "rows", "weights"}
DATA = BASE | {"faces", "simulate", "qa"}
MODEL = BASE | {"kfd", "fpl", "hosts"}
USE = DATA | MODEL | {"train", "infer", "evaluation"}
UPSTREAM = {
    "constants": set(),
    "optional": {"constants"},
    "files": {"constants"},
    "rows": set(),
    "weights": {"constants", "files"},
    "faces": BASE,
    "simulate": BASE | {"faces"},
    "qa": BASE | {"faces", "simulate"},
    "kfd": BASE,
    "fpl": BASE | {"kfd"},
    "hosts": BASE | {"kfd", "fpl"},
    "train": USE,
    "infer": USE,
    "evaluation": USE,
    "lmms": USE,
    "lmms_model": set(),
    "cli": USE,
}

PUBLIC = {
    "KFDConfig", "KnowledgeGuidedForgeryDetector", "KFDOutput", "FPLConfig",
    "ForgeryPromptLearner", "ForgerySimulator", "attach_forgery", "ForgeryPredictor", "Verdict",
}  # fmt: skip


def _imports(path: Path) -> set[str]:
    """First names under llava_forgery that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module]
            if node.module == "llava_forgery":
                modules = [f"llava_forgery.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        names |= {m.split(".")[1] for m in modules if m.startswith("llava_forgery.")}
    return names


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_run_upstream_only(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part == "__init__":
        return
    allowed = UPSTREAM[part] | {part}
    assert _imports(path) <= allowed


def test_public_names():
    assert set(llava_forgery.__all__) == PUBLIC | {"__version__"}
    for name in PUBLIC:
        assert getattr(llava_forgery, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = llava_forgery.nothing


def test_import_is_light():
    code = (
        "import sys, llava_forgery, llava_forgery.cli;"
        "print([m for m in ('torch', 'transformers', 'cv2', 'datasets') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "[]", result.stderr


def test_readme_tree_is_true():
    """Every file and folder in the README's tree exists, and every module stands in it."""
    readme = (ROOT / "README.md").read_text()
    tree = re.search(r"```text\n(llava-forgery/\n.*?)```", readme, re.S)[1]
    stack, named = [], set()
    for line in tree.splitlines()[1:]:
        indent = len(line) - len(line.lstrip())
        for name in line.split("#")[0].split():
            del stack[indent // 2 - 1 :]
            path = Path(*stack, name)
            named.add(str(path))
            assert (ROOT / path).exists(), path
            if name.endswith("/"):
                stack.append(name)
    for path in PACKAGE.rglob("*.py"):
        if path.name != "__init__.py":
            assert str(path.relative_to(ROOT)) in named, path
