"""One direction of imports, no circle of files, and the page that shows them."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import make_tree  # noqa: E402

# What a folder or file of the package may import, beside itself.
BASE = {"constants", "call_state", "optional", "files", "weights", "rows", "images", "colours"}
BASE |= {"tables", "tensors", "pooling", "downloads", "hub", "noise", "progress", "clusters"}
MODEL = BASE | {"faces", "qa", "kfd", "fpl", "hosts"}
TRAINING = MODEL | {"simulate", "data", "train"}
ALL = TRAINING | {"convert", "infer", "evaluation"}
ARROWS = {
    "constants": set(),
    "call_state": set(),
    "noise": set(),
    "progress": {"noise"},
    "optional": {"constants", "noise"},
    "files": {"constants"},
    "weights": {"constants", "files"},
    "rows": {"constants", "files", "optional"},
    "clusters": {"optional"},
    "downloads": {"optional"},
    "hub": {"optional"},
    "colours": set(),
    "images": {"constants", "files", "colours", "optional"},
    "tables": set(),
    "tensors": set(),
    "pooling": set(),
    "faces": BASE,
    "simulate": BASE | {"faces"},
    "qa": BASE | {"faces"},
    "kfd": BASE,
    "fpl": BASE | {"kfd"},
    "hosts": MODEL,
    "convert": MODEL,
    "data": TRAINING - {"train"},
    "train": TRAINING,
    "infer": MODEL,
    "evaluation": ALL - {"convert"},
    "integrations": ALL,
    "serve": MODEL | {"infer"},
    "scan": MODEL | {"infer"},
    "cli": ALL | {"serve", "scan"},
    "run": MODEL,
}


def modules(root: Path) -> dict[str, Path]:
    """Dotted names of all files, a package by the name of its folder."""
    found = {}
    for path in sorted((root / "llava_forgery").rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[tuple[str, ast.AST | None]]:
    """Modules of the package that a file imports, each with the function that does it, if any."""

    def visit(node: ast.AST, function: ast.AST | None) -> Iterator[tuple[str, ast.AST | None]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ImportFrom) and child.module:
                for alias in child.names:
                    name = f"{child.module}.{alias.name}"
                    yield name if name in known else child.module, function
            elif isinstance(child, ast.Import):
                yield from ((alias.name, function) for alias in child.names)
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from visit(child, child if inside else function)

    tree = ast.parse(path.read_text(encoding="utf-8"))
    yield from ((name, inside) for name, inside in visit(tree, None) if name in known)


def faults(root: Path) -> list[str]:
    """Upward arrows, circles of files, and imports of the package inside functions."""
    known, graph, found = modules(root), {}, []
    for name, path in known.items():
        graph[name] = set()
        for target, function in imports(path, known):
            # What the root exports is imported when it is first used.
            if name == "llava_forgery" or target == "llava_forgery":
                continue
            graph[name].add(target)
            source, room = name.split(".")[1], target.split(".")[1]
            if source != room and room not in ARROWS.get(source, set()):
                found.append(f"arrow: {name} -> {target}")
            # A command loads what it needs when it is called: help stays fast.
            if function is not None and source not in ("cli", "run"):
                found.append(f"inside a function: {name} -> {target}")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append("circle: " + " -> ".join(error.args[1]))
    return found


def test_every_room_has_its_arrows():
    rooms = {name.split(".")[1] for name in modules(ROOT) if "." in name}
    assert rooms <= set(ARROWS)


def test_no_fault():
    assert faults(ROOT) == []


@pytest.mark.parametrize(
    ("fault", "files"),
    [
        ("circle", {"kfd/a.py": "kfd.b", "kfd/b.py": "kfd.a"}),
        ("arrow", {"infer/a.py": "train.b", "train/b.py": None}),
        ("inside a function", {"qa/a.py": "+qa.b", "qa/b.py": None}),
    ],
)
def test_planted(tmp_path, fault, files):
    for name, target in files.items():
        path = tmp_path / "llava_forgery" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = f"import llava_forgery.{target.lstrip('+')}\n" if target else ""
        if target and target.startswith("+"):
            text = "def function():\n    " + text
        path.write_text(text)
    (found,) = faults(tmp_path)
    assert found.startswith(fault + ": llava_forgery.")


def test_the_page_shows_the_tree():
    text = make_tree.PAGE.read_text(encoding="utf-8")
    assert text == make_tree.page(text), "run python scripts/make_tree.py"
