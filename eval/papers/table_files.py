"""A table as CSV, as Markdown, and as the record that the documentation's tables are made of."""

import csv
import io
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from eval.papers.recipes import Recipe
from llava_forgery.files import write_json, write_text

if TYPE_CHECKING:
    from eval.papers.table_config import TablesConfig
    from eval.papers.tables import MissingResult, TableEntry

PAPER = "paper (FaceForensics++ etc., not comparable)"
NONE = "–"


def write_table(
    recipe: Recipe,
    entries: Sequence["TableEntry"],
    gaps: Sequence["MissingResult"],
    seeds: Sequence[int],
    directory: str | PathLike,
    config: "TablesConfig",
) -> None:
    """Write ``NAME.csv``, ``NAME.md`` and, for ``eval/records/tables``, ``NAME.json``.

    Args:
        recipe: Gives name, title and note.
        entries: What was measured.
        gaps: What did not run.
        seeds: Of the columns.
        directory: Files there are replaced.
        config: What was run.
    """
    directory = Path(directory)
    # Rows that something else judged may have seeds of their own.
    seeds = sorted({*seeds, *(seed for entry in entries for seed in entry.values)})
    write_text(directory / f"{recipe.name}.csv", table_csv(entries, gaps, seeds))
    write_text(directory / f"{recipe.name}.md", table_markdown(recipe, entries, gaps, seeds))
    record = {
        "command": f"python -m eval.tables {recipe.name}",
        "commit": current_commit(),
        "seeds": seeds,
        "config": asdict(config),
        "entries": [asdict(entry) for entry in entries],
        "missing": [asdict(gap) for gap in gaps],
    }
    write_json(directory / f"{recipe.name}.json", record)


def current_commit() -> str:
    """The commit of this checkout, with ``-dirty`` behind it where files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    command += ["--exclude=*", "--abbrev=40"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def table_csv(
    entries: Sequence["TableEntry"], gaps: Sequence["MissingResult"], seeds: Sequence[int]
) -> str:
    """A line for each figure; those that did not run have a reason and no values."""
    names = ["row", "test", "output", "figure", "status", *(f"seed {seed}" for seed in seeds)]
    names += ["mean", "std", "low", "high", "images", "people", PAPER, "note"]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for entry in entries:
        writer.writerow(
            {
                "row": entry.row,
                "test": entry.test,
                "output": entry.output,
                "figure": entry.figure,
                "status": "run",
                **{f"seed {s}": f"{v:.2f}" for s, v in entry.values.items()},
                "mean": f"{entry.mean:.2f}",
                "std": "" if entry.deviation is None else f"{entry.deviation:.2f}",
                "low": f"{entry.low:.2f}",
                "high": f"{entry.high:.2f}",
                "images": entry.images,
                "people": entry.people,
                PAPER: _numbers(entry.paper),
                "note": entry.note,
            }
        )
    for gap in gaps:
        for test in gap.tests:
            printed = [
                f"{figure} {numbers[test]:.2f}"
                for figure, numbers in gap.paper.items()
                if test in numbers
            ]
            writer.writerow(
                {
                    "row": gap.row,
                    "test": test,
                    "status": "not run",
                    PAPER: "; ".join(printed),
                    "note": gap.reason,
                }
            )
    return text.getvalue()


def table_markdown(
    recipe: Recipe,
    entries: Sequence["TableEntry"],
    gaps: Sequence["MissingResult"],
    seeds: Sequence[int],
) -> str:
    """The table for people."""
    lines = [f"# {recipe.title}", ""]
    if recipe.note:
        lines += [recipe.note, ""]
    lines += [
        "All figures in percent, at video level. The interval (95 %) is of the mean over seeds and "
        "draws the test set's people; the deviation is over seeds.",
        "",
    ]
    lines += [*entry_lines(entries, seeds), ""] if entries else ["Nothing was run.", ""]
    if gaps:
        lines += ["## Not run", ""]
        rows = [
            [gap.row, ", ".join(gap.tests), gap.reason, _figures(gap.paper) or NONE] for gap in gaps
        ]
        lines += [*_table(["row", "test sets", "reason", PAPER], rows), ""]
    return "\n".join(lines)


def entry_lines(entries: Sequence["TableEntry"], seeds: Sequence[int]) -> list[str]:
    """The lines of the Markdown table of what was measured."""
    notes = any(entry.note for entry in entries)
    head = ["row", "test set", "output", "figure", *(f"seed {s}" for s in seeds), "mean"]
    head += ["std", "95 % interval", "images", "people", PAPER, *(["note"] if notes else [])]
    rows = []
    for entry in entries:
        values = [f"{entry.values[s]:.2f}" if s in entry.values else NONE for s in seeds]
        spread = NONE if entry.deviation is None else f"{entry.deviation:.2f}"
        row = [entry.row, entry.test, entry.output, entry.figure, *values, f"{entry.mean:.2f}"]
        row += [spread, f"{entry.low:.2f} to {entry.high:.2f}", str(entry.images)]
        row += [str(entry.people), _numbers(entry.paper) or NONE]
        rows.append([*row, entry.note] if notes else row)
    return _table(head, rows)


def overview_lines(entries: Sequence["TableEntry"], figure: str) -> list[str]:
    """The lines of a Markdown table of one figure: a line for each row, a column for each test
    with how many images and people it has."""
    tests = {entry.test: f"{entry.test} ({entry.images}, {entry.people})" for entry in entries}
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for entry in entries:
        if entry.figure == figure:
            spread = "" if entry.deviation is None else f" ± {entry.deviation:.1f}"
            cell = f"{entry.mean:.1f}{spread} [{entry.low:.0f}, {entry.high:.0f}]"
            rows.setdefault((entry.row, entry.output), {})[entry.test] = cell
    lines = [[*name, *(cells.get(test, NONE) for test in tests)] for name, cells in rows.items()]
    return _table(["row", "output", *tests.values()], lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    # A bar in a name would begin a cell.
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return ["| " + " | ".join(line) + " |" for line in cells]


def _numbers(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{test} {value:.2f}" for test, value in numbers.items())


def _figures(paper: Mapping[str, Mapping[str, float]]) -> str:
    return "; ".join(f"{figure}: {_numbers(n)}" for figure, n in paper.items() if n)
