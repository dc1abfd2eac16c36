"""What users hold on to: the signatures of public names and every command's options.

python -m tests.test_public        # writes both snapshots anew
"""

import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

import llava_forgery
from llava_forgery.cli import app

SNAPSHOT = Path(__file__).parent / "public.json"


def signatures() -> dict[str, str]:
    """Each public name's signature, and those of a class's public methods."""
    found = {}
    for name in llava_forgery.__all__:
        value = getattr(llava_forgery, name)
        if not callable(value):
            continue
        found[name] = str(inspect.signature(value))
        if inspect.isclass(value):
            for method, function in vars(value).items():
                function = getattr(function, "__func__", function)
                if not method.startswith("_") and inspect.isfunction(function):
                    found[f"{name}.{method}"] = str(inspect.signature(function))
    return found


def options() -> dict[str, list[str]]:
    """Every command's arguments and options, as they are typed, with what --help says of them."""

    def walk(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
        if hasattr(command, "commands"):
            for name, child in sorted(command.commands.items()):
                yield from walk(child, (*path, name))
        else:
            said = [f"{' '.join(p.opts)}: {getattr(p, 'help', '')}" for p in command.params]
            yield " ".join(path), [command.help or "", *said]

    return dict(walk(typer.main.get_command(app), ()))


def snapshot() -> dict[str, object]:
    return {"signatures": signatures(), "options": options()}


@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="the snapshot is as Python 3.11 and the newest typer say it"
)
@pytest.mark.parametrize("kind", ["signatures", "options"])
def test_snapshot(kind):
    wanted = json.loads(SNAPSHOT.read_text(encoding="utf-8"))[kind]
    assert snapshot()[kind] == wanted, "meant? then run python -m tests.test_public"


if __name__ == "__main__":
    text = json.dumps(snapshot(), indent=1, ensure_ascii=False)
    SNAPSHOT.write_text(text + "\n", encoding="utf-8")
