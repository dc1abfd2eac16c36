"""Several models of lmms-eval on the same pictures: one table, which says who used the skill.

bash eval/run_lmms_eval.sh DATA OUT --row NAME=MODEL:MODEL_ARGS --row ... [lmms-eval's options]

Each row is a run of its own in OUT/NAME, with lmms-eval's MODEL as it is. OUT/table.md and
OUT/table.json are written from their results; a row whose pictures are not those of the first one
is an error, since its figures could not be compared.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from llava_forgery.cli.app import run
from llava_forgery.files import read_json, write_json, write_text

SCRIPT = Path(__file__).with_name("run_lmms_eval.sh")
NOTE = "skill.json"
"""Of a row, by ``eval/lmms_counted.py``."""


class Row(NamedTuple):
    """A model of the table."""

    name: str
    """Of its column and its folder."""
    model: str
    """lmms-eval's name."""
    arguments: str
    """lmms-eval's ``--model_args``."""


def parse_row(text: str) -> Row:
    """``NAME=MODEL:MODEL_ARGS``.

    Raises:
        ValueError: It has another form, or the name is no folder's.
    """
    name, equals, rest = text.partition("=")
    model, colon, arguments = rest.partition(":")
    if not (name and equals and model and colon) or Path(name).name != name:
        raise ValueError(f"--row takes NAME=MODEL:MODEL_ARGS, NAME without a slash; got {text!r}")
    return Row(name, model, arguments)


def read_result(folder: Path) -> dict[str, Any]:
    """What a row's folder says: ``fpl_calls``, ``pictures`` and ``figures`` by task and metric.

    Raises:
        FileNotFoundError: lmms-eval wrote no results there, or no note.
    """
    results, notes = sorted(folder.rglob("*_results.json")), sorted(folder.glob(f"{NOTE}*"))
    if not results or not notes:
        raise FileNotFoundError(f"{folder} holds no results of lmms-eval; its output says why")
    found = [read_json(note) for note in notes]
    figures = {
        f"{task}: {metric.removesuffix(',none')}": value
        for task, values in read_json(results[-1])["results"].items()
        for metric, value in values.items()
        if isinstance(value, int | float) and metric.endswith(",none") and "_stderr" not in metric
    }
    return {
        "fpl_calls": sum(note["fpl_calls"] for note in found),
        "pictures": sorted({picture for note in found for picture in note["pictures"]}),
        "figures": figures,
    }


def make_table(rows: list[Row], results: list[dict[str, Any]]) -> str:
    """The table, a column for each row of the comparison.

    Raises:
        ValueError: Two models saw different pictures.
    """
    for row, result in zip(rows, results, strict=True):
        if result["pictures"] != results[0]["pictures"]:
            raise ValueError(
                f"{row.name} saw other pictures than {rows[0].name}: "
                f"{len(result['pictures'])} and {len(results[0]['pictures'])}, not all alike; "
                "their figures cannot be compared"
            )
    lines = [
        ["", *(row.name for row in rows)],
        ["---"] * (1 + len(rows)),
        ["model", *(row.model for row in rows)],
        ["skill used (FPL calls)", *(_used(result["fpl_calls"]) for result in results)],
        ["pictures", *(str(len(result["pictures"])) for result in results)],
    ]
    for name in dict.fromkeys(name for result in results for name in result["figures"]):
        lines.append([name, *(_number(result["figures"].get(name)) for result in results)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="As run_lmms_eval.sh takes it.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    row: Annotated[list[str], typer.Option("--row", help="NAME=MODEL:MODEL_ARGS; repeatable.")],
) -> None:
    """Run each row, then write the table."""
    rows = [parse_row(text) for text in row]
    if len({one.name for one in rows}) < len(rows):
        raise ValueError("two rows have the same name")
    for one in rows:
        folder = out / one.name
        folder.mkdir(parents=True, exist_ok=True)
        for old in (*folder.glob(f"{NOTE}*"), *folder.rglob("*_results.json")):
            old.unlink()
        command = ["bash", str(SCRIPT), str(data), str(folder), "--model", one.model]
        command += ["--model_args", one.arguments, *context.args]
        environment = {**os.environ, "SKILL_NOTE": str((folder / NOTE).resolve())}
        environment.setdefault("PYTHON", sys.executable)
        if subprocess.run(command, env=environment, check=False).returncode:
            raise ValueError(f"the row {one.name!r} failed; what is printed above says why")
    results = [read_result(out / one.name) for one in rows]
    table = make_table(rows, results)
    write_json(
        out / "table.json",
        [
            {**one._asdict(), **result, "pictures": len(result["pictures"])}
            for one, result in zip(rows, results, strict=True)
        ],
    )
    write_text(out / "table.md", table)
    typer.echo(table, nl=False)


def _used(calls: int) -> str:
    return f"yes ({calls})" if calls else "no (0)"


def _number(value: float | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.4f}"


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(main)
    run(app)
