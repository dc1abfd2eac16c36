"""LoRA alone on stage 2's conversations: the row of LVLM-DFD's table 4 without FPL."""

from os import PathLike
from pathlib import Path

import datasets

from llava_forgery.hosts.plain import PlainHost
from llava_forgery.train.stage2 import EncodedConversations, StackedCollator, Stage2
from llava_forgery.train.trainer import ForgeryTrainer, run_training, training_arguments


class PlainStage2(Stage2):
    """Stage 2's loss on a host without FPL."""

    vlm: PlainHost

    def load_checkpoint(self, directory: Path) -> None:
        self.vlm.load_lora(directory)


def train_plain_lora(
    plain: PlainHost,
    conversations: datasets.Dataset,
    output_dir: str | PathLike,
    *,
    steps: int = 120,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    seed: int = 0,
    save_steps: int | None = 50,
    max_length: int = 2048,
    resume: bool = False,
) -> PlainHost:
    """Train the LoRA of a host without FPL and write it to ``output_dir``.

    Args:
        plain: With LoRA attached.
        conversations: From ``build_conversations``.
        output_dir: Receives LoRA; ``output_dir`` with ``-training`` behind its name receives
            ``checkpoint-*`` and ``log.json``, as ``train_adapter`` has it.
        steps: Optimiser steps.
        batch_size: Conversations for each step.
        learning_rate: Highest value of a warmed-up cosine.
        seed: Of order and dropout.
        save_steps: Steps between checkpoints; None saves none.
        max_length: Most tokens of a sample.
        resume: Continue from the last checkpoint.

    Returns:
        The host, in eval mode.

    Raises:
        ValueError: No LoRA is attached.
    """
    if not plain.has_lora:
        raise ValueError("a bare host has nothing to train: make it with PlainHost(lora=...)")
    output_dir = Path(output_dir)
    arguments = training_arguments(
        output_dir.with_name(output_dir.name + "-training"),
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=0.0,
        seed=seed,
        save_steps=save_steps,
        workers=0,
    )
    trainer = ForgeryTrainer(
        model=PlainStage2(plain),
        args=arguments,
        train_dataset=EncodedConversations(conversations, plain, max_length),
        data_collator=StackedCollator(plain.processor.tokenizer.pad_token_id),
    )
    run_training(trainer, resume)
    plain.eval()
    plain.save_pretrained(output_dir)
    return plain
