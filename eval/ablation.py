"""The ablation of the default detector: one record for each training, and their table.

    python -m eval.ablation add NAME --metrics EVAL/metrics.json --recipe RECIPE.json --steps 1200
    python -m eval.ablation table

``add`` keeps what ``llava-forgery eval real`` measured, with how it was trained, as
``eval/records/ablation/NAME.json``; ``table`` prints the rows as Markdown, in the order of names.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from llava_forgery.files import read_json, write_json

RECORDS = Path(__file__).parent / "records/ablation"
SETS = ("ff_c23", "ff_c40", "dfd", "talk")
METHODS = ("Face2Face", "NeuralTextures")
# Sets within the detector's scope; talking heads are mostly generated as a whole.
MEAN_OF = SETS[:3]
_KEPT = ("set", "method", "real_videos", "fake_videos", "video_auc", "video_auc_interval",
         "frame_auc", "tpr_at_1_fpr", "fpr", "fnr")  # fmt: skip

app = typer.Typer(add_completion=False)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Name of the record.")],
    metrics: Annotated[Path, typer.Option(help="metrics.json of `eval real`.")],
    steps: Annotated[int, typer.Option(help="Steps of the training.")],
    people: Annotated[str, typer.Option(help="People it was trained on.")],
    change: Annotated[str, typer.Option(help="Short description of the row.")],
    recipe: Annotated[Path | None, typer.Option(help="Recipe; the defaults without it.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    records: Annotated[Path, typer.Option(help="Folder of the records.")] = RECORDS,
) -> None:
    """Record the figures of a training."""
    measured = read_json(metrics)
    rows = [{key: row[key] for key in _KEPT} for row in measured["rows"] if row["score"] == "kfd"]
    record = {
        "change": change,
        "steps": steps,
        "seed": seed,
        "people": people,
        "recipe": {} if recipe is None else read_json(recipe),
        "threshold": measured["threshold"],
        "rows": rows,
    }
    write_json(records / f"{name}.json", record)


@app.command()
def table(
    records: Annotated[Path, typer.Option(help="Folder of the records.")] = RECORDS,
) -> None:
    """Print the table."""
    typer.echo(
        ablation_table({path.stem: read_json(path) for path in sorted(records.glob("*.json"))})
    )


def ablation_table(records: dict[str, dict[str, Any]]) -> str:
    """Records by name as a Markdown table: video AUC, and the real frames' FPR, for each set."""
    titles = ["training", "steps", "seed", *(f"{name}: AUC, FPR" for name in SETS)]
    titles += [f"ff_c23 {name}" for name in METHODS] + [f"mean AUC of {', '.join(MEAN_OF)}"]
    lines = [_line(titles), _line(["---"] * len(titles))]
    for record in records.values():
        rows = {(row["set"], row["method"]): row for row in record["rows"]}
        whole = [rows[name, "all"] for name in SETS]
        cells = [record["change"], str(record["steps"]), str(record["seed"])]
        cells += [f"{row['video_auc']:.3f}, {100 * row['fpr']:.0f} %" for row in whole]
        cells += [f"{rows['ff_c23', name]['video_auc']:.3f}" for name in METHODS]
        mean = sum(rows[name, "all"]["video_auc"] for name in MEAN_OF) / len(MEAN_OF)
        lines.append(_line([*cells, f"{mean:.3f}"]))
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    app()
