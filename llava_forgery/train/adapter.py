"""Train a forgery adapter: stage 2 as a function and for the command line.

llava-forgery train adapter --base-model HOST --kfd KFD --data CONVERSATIONS --out ADAPTER
"""

from os import PathLike
from pathlib import Path

import datasets

from llava_forgery.files import check_output_folder
from llava_forgery.hosts.adapter import ENTRIES
from llava_forgery.hosts.base import ForgeryModel
from llava_forgery.hosts.baseline import BaselineVLM
from llava_forgery.hosts.llava import checkpoint as llava_checkpoint
from llava_forgery.hosts.llava.names import in_llava_layout
from llava_forgery.hosts.llava.vlm import LlavaForgeryVLM
from llava_forgery.hosts.lora import LORA_WEIGHTS
from llava_forgery.hosts.names import CONFIG
from llava_forgery.noise import quiet
from llava_forgery.simulate.pairs import FacePairs
from llava_forgery.train.dialogues import DialogueSource
from llava_forgery.train.run_record import check_training_folder, training_folder
from llava_forgery.train.stage2 import Stage2, batches_of_a_kind, run_stage2, training_samples
from llava_forgery.train.trainer import training_arguments
from llava_forgery.train.warmup import WarmUp


@quiet()
def train_adapter(
    vlm: ForgeryModel | BaselineVLM,
    conversations: datasets.Dataset | DialogueSource,
    output_dir: str | PathLike,
    *,
    general: DialogueSource | None = None,
    general_ratio: float = 0.5,
    val_conversations: datasets.Dataset | DialogueSource | None = None,
    eval_steps: int = 50,
    steps: int = 120,
    fpl_warmup_steps: int = 0,
    fpl_warmup_pairs: FacePairs | None = None,
    batch_size: int = 8,
    accumulate: int = 1,
    learning_rate: float = 1e-3,
    fpl_learning_rate: float | None = None,
    projector_learning_rate: float | None = None,
    weight_decay: float = 0.0,
    seed: int = 0,
    save_steps: int | None = 50,
    max_length: int = 2048,
    workers: int = 0,
    resume: bool = False,
    report_to: str = "none",
    gradient_checkpointing: bool = False,
    deepspeed: str | PathLike | None = None,
) -> ForgeryModel | BaselineVLM:
    """Train the forgery adapter, or the LoRA of a host without FPL, and write it to ``output_dir``.

    Args:
        vlm: Model from ``attach_forgery`` or ``attach_llava``, or a ``BaselineVLM`` with LoRA; its
            trainable parameters are trained.
        conversations: Conversations from ``build_conversations`` or
            :func:`~llava_forgery.train.dialogues.open_source`.
        output_dir: Receives the adapter; a folder of this name with the suffix ``-training``
            receives ``checkpoint-*``, ``log.json`` and ``training_run.json``. If they hold the same
            training, finished, nothing is trained.
        general: General instruction data, whose batches alternate with those of the conversations.
        general_ratio: Share of the general data, in [0, 1).
        val_conversations: Conversations about people who are not trained on. With them the loss is
            measured during training, and the state of the lowest loss is written instead of the
            last one; ``validation.json`` next to the checkpoints lists all losses.
        eval_steps: Number of steps between two such measurements.
        steps: Number of optimiser steps.
        fpl_warmup_steps: Number of preceding steps of the FPL's warm start
            (:mod:`llava_forgery.train.warmup`); 0 disables it. It is skipped when resuming.
        fpl_warmup_pairs: Pairs whose forged images the warm start also learns from.
        batch_size: Number of conversations per pass and process.
        accumulate: Number of passes whose gradients are accumulated for one step.
        learning_rate: Peak of a cosine schedule with warm-up.
        fpl_learning_rate: Peak learning rate of the FPL; by default a tenth of ``learning_rate``
            after a warm start, which the host's first gradients would otherwise undo, else the
            same.
        projector_learning_rate: Peak learning rate of the host's own projector, if it is trained;
            by default ``learning_rate``.
        weight_decay: Weight decay of AdamW.
        seed: Seed of order and dropout.
        save_steps: Number of steps between checkpoints; None saves none.
        max_length: Maximum number of tokens of a sample.
        workers: Number of processes that render and tokenise, and make ``fpl_warmup_pairs``.
        resume: Whether to resume from the last checkpoint.
        report_to: ``none``, ``tensorboard`` or ``wandb``.
        gradient_checkpointing: Whether to recompute the host's layers in the backward pass to save
            memory.
        deepspeed: DeepSpeed's JSON file, for training with several processes.

    Returns:
        The host with the trained skill, in eval mode. Under ZeRO-3 its weights remain partitioned
        among the processes: load the adapter to use it.

    Raises:
        ValueError: Nothing is trainable; the folder holds another training, an interrupted one
            without ``resume``, or something other than an adapter; general data are used under
            ZeRO-3 on a host of transformers; or ``val_conversations`` are used under ZeRO-3 or are
            about people who are trained on.
    """
    if not vlm.trainable_names():
        raise ValueError("the model has nothing to train: attach LoRA or the forgery skill first")
    output_dir = Path(output_dir)
    result, entries = adapter_layout(backend_of(vlm))
    check_output_folder(output_dir, result, entries=entries)
    arguments = training_arguments(
        training_folder(output_dir),
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
        save_steps=save_steps,
        workers=workers,
        report_to=report_to,
        deepspeed=deepspeed,
        gradient_accumulation_steps=accumulate,
        gradient_checkpointing=gradient_checkpointing,
        eval_strategy="no" if val_conversations is None else "steps",
        eval_steps=eval_steps,
        per_device_eval_batch_size=batch_size,
    )
    zero = getattr(arguments, "hf_deepspeed_config", None)
    shared_out = zero is not None and zero.is_zero3()
    if general is not None and shared_out and not isinstance(vlm, LlavaForgeryVLM):
        # Processes with batches of different kinds gather weights in different orders.
        raise ValueError(
            "general data cannot be mixed in under ZeRO-3 on hosts of transformers; use "
            "scripts/zero2.json"
        )
    if fpl_learning_rate is None and fpl_warmup_steps:
        fpl_learning_rate = learning_rate / 10
    samples = training_samples(
        vlm, conversations, general, general_ratio, max_length=max_length, seed=seed
    )
    run_stage2(
        Stage2(vlm, fpl_learning_rate, projector_learning_rate),
        samples,
        arguments,
        output_dir,
        command="train adapter",
        result=result,
        order=batches_of_a_kind,
        settings={"max_length": max_length},
        resume=resume,
        warm_up=WarmUp(fpl_warmup_steps, seed, fpl_warmup_pairs, workers)
        if fpl_warmup_steps
        else None,
        validation=None
        if val_conversations is None
        else training_samples(vlm, val_conversations, max_length=max_length),
    )
    return vlm


def check_adapter_folder(directory: str | PathLike, backend: str = "auto") -> None:
    """Refuse a folder that holds something other than an adapter, before anything is loaded.

    Args:
        directory: Output folder.
        backend: Backend of the adapter; "auto" for any.

    Raises:
        ValueError: It holds something else, or a training without a record.
    """
    directory = Path(directory)
    if backend == "auto":
        backend = "llava" if in_llava_layout(directory) else "transformers"
    result, entries = adapter_layout(backend)
    check_output_folder(directory, result, entries=entries)
    check_training_folder(training_folder(directory), directory / result)


def adapter_layout(backend: str) -> tuple[str, tuple[str, ...] | None]:
    """The file that identifies an adapter's folder, and all files that it may hold.

    Args:
        backend: "transformers", "llava", or "lora" of a host with LoRA only.
    """
    return {
        "transformers": (CONFIG, ENTRIES),
        "llava": (llava_checkpoint.CONFIG, llava_checkpoint.ENTRIES),
        "lora": (LORA_WEIGHTS, None),
    }[backend]


def backend_of(vlm: ForgeryModel | BaselineVLM) -> str:
    """The layout in which a model is saved, for :func:`adapter_layout`."""
    if isinstance(vlm, BaselineVLM):
        return "lora"
    return "llava" if isinstance(vlm, LlavaForgeryVLM) else "transformers"
