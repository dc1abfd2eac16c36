"""Command of the group ``eval`` that measures on real forgeries instead of simulated ones."""

from pathlib import Path
from typing import Annotated

import typer

from llava_forgery.cli.app import evaluation
from llava_forgery.cli.evaluate import AnyModel
from llava_forgery.cli.options import AllowDownload, Backend, BaseModel, Device, Out, Uncited


@evaluation.command("real")
def real(
    model: AnyModel,
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            help="Folder with SET/real/VIDEO_FRAME.png, SET/fake_METHOD/VIDEO_FRAME.png and "
            "identities.csv.",
        ),
    ],
    out: Out,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Score from which a picture is called fake; default: the detector's threshold.",
        ),
    ] = None,
    pool: Annotated[
        str, typer.Option(help="How frames of a video are pooled: mean, median, max or top_k.")
    ] = "mean",
    batch_size: Annotated[int, typer.Option(min=1, help="Crops judged at once.")] = 16,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="NAME=OUT",
            help="Output of this command for another model on the same DATA, to compare both by a "
            "paired bootstrap over people; repeatable.",
        ),
    ] = None,
    sets: Annotated[
        str | None,
        typer.Option(help="Sets whose mean AUC is compared, separated by commas; default: all."),
    ] = None,
    plot: Annotated[
        bool, typer.Option("--plot", help="Also draw histograms.png, the scores by set.")
    ] = False,
    uncited: Uncited = False,
    base_model: BaseModel = None,
    backend: Backend = "auto",
    device: Device = None,
    allow_download: AllowDownload = False,
) -> None:
    """Measure a model on face crops of real and forged videos, by set and method.

    Prints a table; OUT receives it with the records of all crops and the figures as JSON. An
    interrupted run resumes when it is repeated.
    """
    from llava_forgery.evaluation.figures import save_figure
    from llava_forgery.evaluation.paired import compare_real
    from llava_forgery.evaluation.real import evaluate_real, real_figure, real_table
    from llava_forgery.evaluation.records import RECORDS
    from llava_forgery.evaluation.scorers import load_scorer
    from llava_forgery.files import read_json_lines
    from llava_forgery.optional import require
    from llava_forgery.pooling import check_reduction

    check_reduction(pool)
    others = {}
    for entry in against or ():
        name, mark, folder = entry.partition("=")
        if not (name and mark and folder):
            raise ValueError(f"--against takes NAME=OUT, got {entry!r}")
        others[name] = read_json_lines(Path(folder) / RECORDS)
    if plot:
        require("matplotlib", extra="eval", feature="--plot")
    scorer = load_scorer(
        model, base_model, backend, device=device, allow_download=allow_download, uncited=uncited
    )
    chosen = scorer.thresholds.fake if threshold is None else threshold
    metrics = evaluate_real(scorer, data, out, threshold=chosen, batch_size=batch_size, reduce=pool)
    if plot:
        note = f"Scores of {model} on the crops of {data}"
        save_figure(real_figure(metrics), out / "histograms.png", note)
    typer.echo(real_table(metrics), nl=False)
    if others:
        typer.echo(compare_real(out, others, sets, pool), nl=False)
