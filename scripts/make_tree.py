"""Write the annotated tree of docs/architecture.md from the first line of each module.

python scripts/make_tree.py
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/architecture.md"
COLUMN = 34


def summary(path: Path) -> str:
    """The first line of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n", 1)[0].rstrip(".")


def lines(folder: Path, depth: int = 0) -> Iterator[str]:
    """Files first, then folders, as Python packages are read."""
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.name == "__init__.py" or (path.suffix != ".py" and not list(path.glob("*.py"))):
            continue
        entry = path / "__init__.py" if path.is_dir() else path
        name = "  " * depth + path.name + ("/" if path.is_dir() else "")
        yield f"{name:<{COLUMN}}{summary(entry)}".rstrip()
        if path.is_dir():
            yield from lines(path, depth + 1)


def page(text: str) -> str:
    """The page with its tree regenerated."""
    tree = "\n".join(
        line
        for name in ("llava_forgery", "eval/papers", "scripts")
        for line in (f"{name}/", *lines(ROOT / name, 1))
    )
    head, found, _ = re.split(r"(## The tree\n.*?```text\n)", text, maxsplit=1, flags=re.S)
    return f"{head}{found}{tree}\n```\n"


def main() -> None:
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
