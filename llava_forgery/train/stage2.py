"""Stage 2: train the FPL, and LoRA where wanted, on the host; the detector stays frozen.

    llava-forgery train adapter --host HOST --kfd KFD --data CONVERSATIONS --out ADAPTER

Source: LVLM-DFD, section 3.2 and equation 5.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, Sampler

from llava_forgery.constants import IGNORE_INDEX
from llava_forgery.data.build_qa import conversation_of
from llava_forgery.faces.records import image_pixels
from llava_forgery.files import check_output_folder
from llava_forgery.hosts.adapter import CONFIG, ENTRIES
from llava_forgery.hosts.baseline import BaselineVLM
from llava_forgery.hosts.fingerprint import host_fingerprint
from llava_forgery.hosts.lora import LORA_WEIGHTS
from llava_forgery.hosts.transformers.model import ForgeryVLM
from llava_forgery.hosts.transformers.prompts import collate, encode
from llava_forgery.kfd.checkpoint import detector_digest
from llava_forgery.noise import quiet
from llava_forgery.rows import embedded, rows_digest
from llava_forgery.simulate.pairs import FacePairs
from llava_forgery.tensors import from_bytes
from llava_forgery.train.deepspeed import exclude_from_deepspeed
from llava_forgery.train.run_record import (
    describe_adapter_weights,
    describe_host,
    describe_lora,
    describe_tokens,
    open_run,
    training_folder,
)
from llava_forgery.train.samplers import LengthSampler
from llava_forgery.train.trainer import (
    ForgeryTrainer,
    Trainable,
    run_training,
    training_arguments,
)
from llava_forgery.train.warmup import warm_up_fpl


class Stage2(Trainable):
    """The host with the skill, or with LoRA alone, as the Trainer wants it."""

    def __init__(
        self, vlm: ForgeryVLM | BaselineVLM, fpl_learning_rate: float | None = None
    ) -> None:
        super().__init__()
        self.vlm, self.fpl_learning_rate = vlm, fpl_learning_rate

    def forward(self, labels: torch.Tensor, **inputs: Any) -> dict[str, torch.Tensor]:
        """Cross-entropy on the answers' tokens (equation 5), the mean over them.

        Args:
            labels: (B, T), -100 where nothing is supervised.
            inputs: What the model takes.
        """
        logits, labels = self.vlm.labelled_logits(labels, **inputs)
        loss = F.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE_INDEX
        )
        return {"loss": loss}

    def saved_parameters(self) -> list[torch.nn.Parameter]:
        return [p for p in self.vlm.parameters() if p.requires_grad]

    def save_checkpoint(self, directory: Path) -> None:
        self.vlm.save_pretrained(directory)

    def learning_rates(self) -> dict[nn.Parameter, float]:
        if self.fpl_learning_rate is None:
            return {}
        return dict.fromkeys(self.vlm.fpl.parameters(), self.fpl_learning_rate)

    def load_checkpoint(self, directory: Path) -> None:
        self.vlm.load_weights(directory)


class EncodedConversations(Dataset):
    """Rows of conversations as the host's inputs.

    Args:
        rows: From ``build_conversations``.
        vlm: Gives the processor, the number of placeholders and whether a detector looks.
        max_length: Most tokens of a sample; a longer one is an error.
    """

    def __init__(
        self, rows: datasets.Dataset, vlm: ForgeryVLM | BaselineVLM, max_length: int
    ) -> None:
        self.rows = embedded(rows, "the conversations")
        self.processor, self.n_forgery = vlm.processor, vlm.n_forgery
        self.takes_forgery_images = vlm.takes_forgery_images
        self.max_length = max_length

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self) -> list[int]:
        """Characters of each conversation: enough to tell long ones from short ones."""
        return [sum(len(m["text"]) for m in messages) for messages in self.rows["messages"]]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.rows[index]
        image = Image.fromarray(image_pixels(row["image"], "RGB"))
        sample = encode(
            conversation_of(row),
            self.processor,
            images=[image],
            n_forgery_tokens=self.n_forgery,
            max_length=self.max_length,
        )
        if bool((sample["labels"] == IGNORE_INDEX).all()):
            raise ValueError(f"sample {index} has no token to learn from: all labels are masked")
        if not self.takes_forgery_images:
            return sample
        return {**sample, "forgery_images": from_bytes(image)}


class Stage2Trainer(ForgeryTrainer):
    """Draws batches of similar lengths: on the demo's conversations a quarter was padding."""

    def _get_train_sampler(self, train_dataset: EncodedConversations | None = None) -> Sampler[int]:
        rows = self.train_dataset if train_dataset is None else train_dataset
        return LengthSampler(rows.lengths(), self.args.per_device_train_batch_size, self.args.seed)


class StackedCollator:
    """Pads the texts and stacks the images: the host's, and the detector's where it has its own."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        samples = [dict(sample) for sample in samples]
        images = [sample.pop("forgery_images") for sample in samples if "forgery_images" in sample]
        batch = collate(samples, pad_id=self.pad_id, padding_side="right")
        return {**batch, "forgery_images": torch.stack(images)} if images else batch


@quiet()
def train_adapter(
    vlm: ForgeryVLM | BaselineVLM,
    conversations: datasets.Dataset,
    output_dir: str | PathLike,
    *,
    steps: int = 120,
    fpl_warmup_steps: int = 0,
    align_more: FacePairs | None = None,
    batch_size: int = 8,
    accumulate: int = 1,
    learning_rate: float = 1e-3,
    fpl_learning_rate: float | None = None,
    weight_decay: float = 0.0,
    seed: int = 0,
    save_steps: int | None = 50,
    max_length: int = 2048,
    workers: int = 0,
    resume: bool = False,
    report_to: str = "none",
    gradient_checkpointing: bool = False,
    deepspeed: str | PathLike | None = None,
) -> ForgeryVLM | BaselineVLM:
    """Train the forgery adapter, or the LoRA of a host without FPL, and write it to ``output_dir``.

    Args:
        vlm: From ``attach_forgery``, or a ``BaselineVLM`` with LoRA; what is trainable is trained.
        conversations: From ``build_conversations``.
        output_dir: Receives the adapter; ``output_dir`` with ``-training`` behind its name
            receives ``checkpoint-*``, ``log.json`` and ``training_run.json``. Where they hold this
            very training, finished, nothing is trained.
        steps: Optimiser steps.
        fpl_warmup_steps: Steps of the FPL's warm start (:mod:`llava_forgery.train.warmup`) before
            them; 0 leaves it out, and so does resuming.
        align_more: Pairs whose forged images the warm start learns from as well.
        batch_size: Conversations for each pass and process.
        accumulate: Passes whose gradients make one step.
        learning_rate: Highest value of a warmed-up cosine.
        fpl_learning_rate: The FPL's; by default a tenth of ``learning_rate`` after a warm start,
            whose words the host's first gradients would undo, else the same.
        weight_decay: AdamW's.
        seed: Of order and dropout.
        save_steps: Steps between checkpoints; None saves none.
        max_length: Most tokens of a sample.
        workers: Processes that render and tokenise, and that make ``align_more``.
        resume: Continue from the last checkpoint.
        report_to: ``none``, ``tensorboard`` or ``wandb``.
        gradient_checkpointing: Compute the host's layers twice to keep less of them in memory.
        deepspeed: DeepSpeed's JSON file, where several processes train.

    Returns:
        The host with the trained skill, in eval mode. Under ZeRO-3 its weights remain shared out
        among the processes: load the adapter to use it.

    Raises:
        ValueError: Nothing is trainable; or there lies another training, or an interrupted one and
            ``resume`` is off, or something else than an adapter.
    """
    if not vlm.trainable_names():
        raise ValueError("the model has nothing to train: attach LoRA or the forgery skill first")
    output_dir = Path(output_dir)
    plain = isinstance(vlm, BaselineVLM)
    if plain:
        check_output_folder(output_dir, LORA_WEIGHTS)
    else:
        check_output_folder(output_dir, CONFIG, entries=ENTRIES)
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
    )
    if fpl_learning_rate is None and fpl_warmup_steps:
        fpl_learning_rate = learning_rate / 10
    samples = EncodedConversations(conversations, vlm, max_length)
    settings = {
        **_describe(vlm),
        "fpl_learning_rate": fpl_learning_rate,
        "warm_start": {
            "steps": fpl_warmup_steps,
            "more": align_more.describe() if fpl_warmup_steps and align_more is not None else None,
        },
        "max_length": max_length,
        "data": rows_digest(conversations),
        "tokens": describe_tokens(samples[0]),
    }
    result = output_dir / (LORA_WEIGHTS if plain else CONFIG)
    run = open_run(arguments, "train adapter", settings, result, resume)
    if run.finished:
        vlm.load_weights(output_dir)
        return vlm.eval()
    if fpl_warmup_steps and run.checkpoint is None:
        # Every process does the same: it takes seconds, and needs no exchange.
        warm_up_fpl(
            vlm, conversations, steps=fpl_warmup_steps, seed=seed, more=align_more, workers=workers
        )
    if gradient_checkpointing:
        vlm.host.gradient_checkpointing_enable()
    hidden = exclude_from_deepspeed(vlm, "kfd", arguments.device) if deepspeed else nullcontext()
    with hidden:
        trainer = Stage2Trainer(
            model=Stage2(vlm, fpl_learning_rate),
            args=arguments,
            train_dataset=samples,
            data_collator=StackedCollator(vlm.processor.tokenizer.pad_token_id),
        )
        run_training(trainer, run)
        vlm.eval()
        trainer.save_model(output_dir)
        run.finish()
    return vlm


def _describe(vlm: ForgeryVLM | BaselineVLM) -> dict[str, Any]:
    """Host, detector and what is trained, for the record."""
    bare = vlm.host.get_base_model() if vlm.has_lora else vlm.host
    described = {"lora": describe_lora(vlm.host), "weights": describe_adapter_weights(vlm)}
    if isinstance(vlm, BaselineVLM):
        return {"host": describe_host(bare, host_fingerprint(bare)), **described}
    return {
        "host": describe_host(bare, vlm.fingerprint),
        "detector": detector_digest(vlm.kfd),
        "fpl": vlm.fpl.config.to_dict(),
        **described,
    }
