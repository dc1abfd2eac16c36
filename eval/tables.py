"""One table of the papers, from training to Markdown.

    python -m eval.tables table4 --config eval/configs/london_tiny.json --out tables-out

Tables: table1 to table6 and antifakeprompt; see eval/README.md. What is finished in the folder is
kept, so the same command resumes after an interruption.
"""

from pathlib import Path
from typing import Annotated

import typer

from eval.papers.table_config import read_tables_config
from eval.papers.tables import run_table
from llava_forgery.cli.app import run
from llava_forgery.cli.options import writable_folder


def main(
    table: Annotated[str, typer.Argument(help="table1 to table6, or antifakeprompt.")],
    config: Annotated[Path, typer.Option("--config", help="JSON with data, hosts and sizes.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="Folder for cells, models and the table.", callback=writable_folder
        ),
    ],
    seeds: Annotated[
        str | None, typer.Option(help="Such as 0,1,2; default: the configuration's.")
    ] = None,
) -> None:
    """Train or load what a table needs, judge, and write OUT/TABLE.csv and OUT/TABLE.md."""
    chosen = None
    if seeds is not None:
        try:
            chosen = [int(seed) for seed in seeds.split(",")]
        except ValueError as error:
            raise ValueError(f"--seeds must be numbers such as 0,1,2, got {seeds!r}") from error
    entries, gaps = run_table(table, read_tables_config(config, table), out, chosen)
    typer.echo((out / f"{table}.md").read_text(encoding="utf-8"))
    typer.echo(f"{len(entries)} figures, {len(gaps)} gaps; see {out / table}.md", err=True)


if __name__ == "__main__":
    run(lambda: typer.run(main))
