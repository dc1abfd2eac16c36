"""Commands of the preference stage and of its aim, dialogues without contradictions."""

from pathlib import Path
from typing import Annotated

import typer

from llava_forgery.cli.app import evaluation, load_predictor, train
from llava_forgery.cli.options import (
    AllowDownload,
    Backend,
    BaseModel,
    DeepSpeed,
    Device,
    Dtype,
    Faces,
    Model,
    Out,
    Quantization,
    ReportTo,
    Resume,
    Seed,
)


@train.command("preference")
def train_preference(
    model: Model,
    data: Annotated[Path, typer.Option("--data", help="Folder written by build-qa.")],
    out: Out,
    pairs: Annotated[
        int | None, typer.Option(help="Maximum number of pairs; default: one per conversation.")
    ] = None,
    beta: Annotated[
        float, typer.Option(help="How strongly the adapter is kept near its start.")
    ] = 0.1,
    sft_weight: Annotated[
        float, typer.Option(help="Weight of the chosen answers' cross-entropy.")
    ] = 0.0,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 100,
    batch_size: Annotated[int, typer.Option(help="Pairs per step.")] = 8,
    accumulate: Annotated[int, typer.Option(help="Gradient accumulation: passes per step.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-4,
    fpl_learning_rate: Annotated[
        float | None, typer.Option(help="Peak for the FPL; default: --learning-rate.")
    ] = None,
    max_length: Annotated[int, typer.Option(help="Maximum tokens of prompt and answer.")] = 2048,
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 50,
    workers: Annotated[int, typer.Option(help="Processes that render and tokenise.")] = 0,
    gradient_checkpointing: Annotated[
        bool, typer.Option(help="Recompute the host's layers to save memory.")
    ] = False,
    base_model: BaseModel = None,
    backend: Backend = "auto",
    device: Device = None,
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    allow_download: AllowDownload = False,
    seed: Seed = 0,
    resume: Resume = False,
    report_to: ReportTo = "none",
    deepspeed: DeepSpeed = None,
) -> None:
    """Train an adapter further so that its answers do not contradict each other (DPO).

    Pairs of a true and a contradicting answer are made from the labels and regions of --data.
    """
    from llava_forgery.rows import load_rows
    from llava_forgery.train.adapter import check_adapter_folder
    from llava_forgery.train.dpo import load_trainable
    from llava_forgery.train.dpo import train_preference as run

    check_adapter_folder(out)
    rows = load_rows(data)
    vlm = load_trainable(
        model,
        base_model,
        backend,
        device=device,
        dtype=dtype,
        quantization=quantization,
        allow_download=allow_download,
    )
    run(
        vlm,
        rows,
        out,
        pairs=pairs,
        beta=beta,
        sft_weight=sft_weight,
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        fpl_learning_rate=fpl_learning_rate,
        max_length=max_length,
        save_steps=save_steps,
        workers=workers,
        gradient_checkpointing=gradient_checkpointing,
        seed=seed,
        resume=resume,
        report_to=report_to,
        deepspeed=deepspeed,
    )


@evaluation.command("dialogues")
def evaluate_dialogues(
    model: Model,
    faces: Faces,
    out: Out,
    split: Annotated[str, typer.Option(help="Split of the faces: train, val or test.")] = "test",
    pairs: Annotated[
        int, typer.Option(help="Number of forged and of pristine faces; a dialogue about each.")
    ] = 50,
    batch_size: Annotated[int, typer.Option(help="Dialogues held at once.")] = 16,
    base_model: BaseModel = None,
    backend: Backend = "auto",
    device: Device = None,
    allow_download: AllowDownload = False,
    seed: Seed = 2,
) -> None:
    """Count dialogues whose answers contradict each other: verdict, place, untouched parts.

    Prints the figures; OUT receives them and the dialogues. An interrupted run resumes when it is
    repeated.
    """
    import json

    from llava_forgery.evaluation.dialogues import evaluate_dialogues as run
    from llava_forgery.simulate.pairs import CENTRED, FacePairs, load_real_faces

    rows = load_real_faces(faces, split)
    predictor = load_predictor(model, base_model, backend, device, None, allow_download)
    source = FacePairs(rows, pairs, size=predictor.size, seed=seed, framing=CENTRED, role="test")
    # Two dialogues per pair.
    typer.echo(
        json.dumps(run(predictor, source, out, batch_size=max(1, batch_size // 2)), indent=2)
    )
