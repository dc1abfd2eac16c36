"""One table of the papers, from training to Markdown.

    python -m eval.tables table4 --config eval/configs/london_tiny.json --out tables-out

Tables: table1 to table6 and antifakeprompt; see eval/README.md. What is finished in the folder is
kept, so the same command goes on after an interruption.
"""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from transformers.utils.logging import disable_progress_bar

from eval.papers.table_config import read_tables_config
from eval.papers.tables import run_table


def main(
    table: Annotated[str, typer.Argument(help="table1 to table6, or antifakeprompt.")],
    config: Annotated[Path, typer.Option("--config", help="JSON with data, hosts and sizes.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for cells, models and the table.")],
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
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    for noisy in ("httpx", "open_clip", "datasets", "transformers"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    disable_progress_bar()
    try:
        typer.run(main)
    except (ValueError, FileNotFoundError, ImportError) as problem:
        typer.echo(f"error: {problem}", err=True)
        sys.exit(2)
