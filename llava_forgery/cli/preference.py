"""Commands of the preference stage, and of what it is for: dialogues without contradictions."""

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
        int | None, typer.Option(help="Pairs at most; default: one for each conversation.")
    ] = None,
    beta: Annotated[
        float, typer.Option(help="How strongly the adapter is held to what it was.")
    ] = 0.1,
    sft_weight: Annotated[
        float, typer.Option(help="Share of the right answers' cross-entropy in the loss.")
    ] = 0.0,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 100,
    batch_size: Annotated[int, typer.Option(help="Pairs for each step.")] = 8,
    accumulate: Annotated[int, typer.Option(help="Passes whose gradients make one step.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-4,
    fpl_learning_rate: Annotated[
        float | None, typer.Option(help="The FPL's; default: --learning-rate.")
    ] = None,
    max_length: Annotated[int, typer.Option(help="Most tokens of prompt and answer.")] = 2048,
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 50,
    workers: Annotated[int, typer.Option(help="Processes that render and tokenise.")] = 0,
    gradient_checkpointing: Annotated[
        bool, typer.Option(help="Compute the host's layers twice to keep less in memory.")
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

    Pairs of a right and a contradicting answer are made from what is known of the images of --data.
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
    split: Annotated[str, typer.Option(help="Whose faces: train, val or test.")] = "test",
    pairs: Annotated[
        int, typer.Option(help="Forged faces, and as many pristine ones: a dialogue about each.")
    ] = 50,
    batch_size: Annotated[int, typer.Option(help="Dialogues held at once.")] = 16,
    base_model: BaseModel = None,
    backend: Backend = "auto",
    device: Device = None,
    allow_download: AllowDownload = False,
    seed: Seed = 2,
) -> None:
    """Count dialogues whose answers contradict each other: verdict, place, untouched parts.

    Prints the figures; OUT receives them and what was said. An interrupted run resumes when it is
    repeated.
    """
    import json

    from llava_forgery.evaluation.dialogues import evaluate_dialogues as run
    from llava_forgery.simulate.pairs import CENTRED, FacePairs, load_real_faces

    rows = load_real_faces(faces, split)
    predictor = load_predictor(model, base_model, backend, device, None, allow_download)
    source = FacePairs(rows, pairs, size=predictor.size, seed=seed, framing=CENTRED, role="test")
    # About each pair two dialogues are held.
    typer.echo(
        json.dumps(run(predictor, source, out, batch_size=max(1, batch_size // 2)), indent=2)
    )
