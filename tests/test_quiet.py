"""Progress bars and notices: on terminals, and not under --quiet. Completion by the shell."""

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from llava_forgery.cli import app
from llava_forgery.cli.app import Commands, notice
from llava_forgery.progress import progress

COMMAND = Path(sys.executable).with_name("llava-forgery")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def tool():
    commands = Commands()

    @commands.command()
    def work(count: int = 2) -> None:
        """Do what commands do."""
        for _ in progress(range(count), "work", "step", file=Terminal()):
            pass
        notice("done")
        logging.getLogger("llava_forgery.x").warning("careful")
        typer.echo(str(count))

    return commands


def _shown(commands: list[typer.Typer], *options: str):
    return CliRunner().invoke(commands, list(options))


def test_quiet_leaves_results_and_warnings(tool, caplog):
    loud, quiet = _shown(tool, "--count", "3"), _shown(tool, "--count", "3", "--quiet")
    assert (loud.stdout, loud.stderr) == ("3\n", "done\n")
    assert (quiet.stdout, quiet.stderr) == ("3\n", "")
    assert caplog.messages == ["careful", "careful"]
    # It ends with the command.
    assert _shown(tool).stderr == "done\n"


@pytest.mark.parametrize("quiet", ["", "1"])
def test_bars_are_drawn_on_terminals_if_wanted(monkeypatch, quiet):
    monkeypatch.setenv("TQDM_DISABLE", quiet)
    for file, drawn in ((Terminal(), not quiet), (io.StringIO(), False)):
        assert list(progress(range(3), "work", "step", file=file)) == [0, 1, 2]
        assert ("work: 100%" in file.getvalue()) == drawn
        assert ("3/3" in file.getvalue()) == drawn


def test_every_command_can_be_quiet():
    def walk(command):
        for child in getattr(command, "commands", {}).values():
            yield from walk(child)
        if not hasattr(command, "commands"):
            yield command

    commands = list(walk(typer.main.get_command(app)))
    assert len(commands) > 20
    assert all("--quiet" in [o for p in c.params for o in p.opts] for c in commands)


def _run(*arguments: str, **environment: str) -> str:
    result = subprocess.run([COMMAND, *arguments], capture_output=True, text=True,
                            env={**os.environ, **environment})  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_shell_completes_commands_and_options():
    asked = {"_LLAVA_FORGERY_COMPLETE": "complete_bash", "COMP_CWORD": "2"}
    assert _run(COMP_WORDS="llava-forgery train de", **asked).split() == ["detector"]
    assert "--overlay" in _run(COMP_WORDS="llava-forgery detect --ov", **asked)


def test_no_colours_elsewhere_than_on_a_terminal():
    kept = dict.fromkeys(("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS"), "")
    assert "\x1b" not in _run("detect", "--help", **kept)
