"""The preference stage: DPO on pairs of answers that need no annotators.

    llava-forgery train preference --model ADAPTER --data QA --out NEW

It trains the FPL and the LoRA of an adapter further, so that answers fit the image and each other
(:mod:`llava_forgery.qa.preference`). The reference is the adapter as it was given: its
log-likelihoods of all answers are computed once, before the first step.

Why not trl's ``DPOTrainer``: of an adapter, its reference is a copy of the LoRA alone, and the FPL
would move with the policy; it computes log-likelihoods from the head's weights inside a forward of
its own, which models of the ``llava`` package do not have; its collator writes no placeholders, and
it computes no references ahead where there are images. Loss, names and conventions are trl's, and a
test compares the two: log-likelihoods are sums over an answer's tokens and the token that ends it,
a batch holds the chosen answers and then the rejected ones, and there is no dropout.

Source: Rafailov et al., Direct Preference Optimization (arXiv:2305.18290), equation 7.
"""

import logging
from os import PathLike
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import reduce
from torch import nn

from llava_forgery.constants import IGNORE_INDEX
from llava_forgery.hosts.auto import AutoForgeryModel
from llava_forgery.hosts.base import ForgeryModel
from llava_forgery.hosts.likelihood import label_log_likelihoods
from llava_forgery.hosts.llava.checkpoint import holds_model
from llava_forgery.hosts.llava.names import in_llava_layout
from llava_forgery.hosts.names import is_exported
from llava_forgery.hosts.quantized import is_quantized
from llava_forgery.hub import local_folder
from llava_forgery.noise import quiet
from llava_forgery.progress import progress
from llava_forgery.tensors import to_device
from llava_forgery.train.adapter import adapter_layout, backend_of, check_adapter_folder
from llava_forgery.train.preference_samples import PreferenceCollator, PreferenceSamples
from llava_forgery.train.run_record import TrainingRun, training_folder
from llava_forgery.train.stage2 import Stage2, batches_of_a_kind, run_stage2
from llava_forgery.train.trainer import training_arguments
from llava_forgery.weights import load_tensors, save_tensors

logger = logging.getLogger(__name__)

REFERENCE = "reference.safetensors"
"""In the training's folder: ``log_likelihoods`` (N, 2) of the chosen and the rejected answers."""


def dpo_loss(policy: torch.Tensor, reference: torch.Tensor, beta: float) -> dict[str, torch.Tensor]:
    """DPO's sigmoid loss, and what trl logs beside it.

    Args:
        policy: (2B,) log-likelihoods of B chosen answers, then of the rejected ones.
        reference: (2B,) the same of the reference.
        beta: How strongly the policy is held to the reference.

    Returns:
        Means (): ``loss``, ``rewards/chosen``, ``rewards/rejected``, ``rewards/margins`` and
        ``rewards/accuracies``.
    """
    chosen, rejected = (beta * (policy - reference)).chunk(2)
    margins = chosen - rejected
    return {
        "loss": -F.logsigmoid(margins).mean(),
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/margins": margins.mean(),
        "rewards/accuracies": (margins > 0).float().mean(),
    }


class PreferenceStage(Stage2):
    """An adapter, as the Trainer wants it for DPO.

    Args:
        vlm: Of either backend.
        beta: As for :func:`dpo_loss`.
        sft_weight: Share of the chosen answers' cross-entropy (trl's loss ``sft``) that is added;
            DPO alone may lower the likelihood of both answers.
        fpl_learning_rate: The FPL's highest learning rate; None takes the common one.
    """

    def __init__(
        self,
        vlm: ForgeryModel,
        beta: float = 0.1,
        sft_weight: float = 0.0,
        fpl_learning_rate: float | None = None,
    ) -> None:
        super().__init__(vlm, fpl_learning_rate)
        self.beta, self.sft_weight = beta, sft_weight

    def train(self, mode: bool = True) -> "PreferenceStage":
        """Without dropout, and with the statistics that the reference was measured with."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.Dropout | nn.BatchNorm2d):
                module.eval()
        return self

    def token_log_likelihoods(
        self, labels: torch.Tensor, forgery_images: torch.Tensor | None = None, **inputs: Any
    ) -> torch.Tensor:
        """(2B, K) of the labelled tokens, 0 elsewhere; K counts from the first label on.

        Args:
            labels: (2B, T), -100 but for the answers, the chosen ones first.
            forgery_images: (B, 3, S, S) in [0, 1]; None where the detector sees what the host sees.
            inputs: What the model takes of the 2B sequences.
        """
        if forgery_images is not None:
            # In its own precision, as in use: mixed precision is for the host.
            with torch.autocast(forgery_images.device.type, enabled=False):
                detection = self.vlm.detect(forgery_images)
            inputs["detection"] = detection.select([*range(len(forgery_images))] * 2)
        return label_log_likelihoods(self.vlm, labels, **inputs)[0]

    def forward(
        self, labels: torch.Tensor, reference: torch.Tensor, **inputs: Any
    ) -> dict[str, torch.Tensor]:
        """The loss and :func:`dpo_loss`'s further terms.

        Args:
            labels: As for :meth:`token_log_likelihoods`, as are the inputs.
            reference: (2B,) log-likelihoods of the reference.
            inputs: Likewise.
        """
        found = self.token_log_likelihoods(labels, **inputs)
        terms = dpo_loss(found.sum(dim=1), reference.to(found), self.beta)
        if self.sft_weight:
            chosen, asked = found.chunk(2)[0], labels.chunk(2)[0] != IGNORE_INDEX
            terms["sft"] = -chosen.sum() / asked.sum()
            terms["loss"] = terms["loss"] + self.sft_weight * terms["sft"]
        return terms


@torch.no_grad()
def reference_log_likelihoods(
    stage: PreferenceStage, samples: PreferenceSamples, batch_size: int, device: torch.device
) -> torch.Tensor:
    """(N, 2) log-likelihoods of the chosen and the rejected answers; processes share the work.

    Args:
        stage: With the reference's weights, on ``device``.
        samples: The pairs.
        batch_size: Pairs for each pass.
        device: Of the inputs.
    """
    stage.eval()
    state = PartialState()
    collate = PreferenceCollator(stage.vlm.prompts.collate)
    found = torch.zeros(len(samples), 2, device=device)
    starts = range(state.process_index * batch_size, len(samples), state.num_processes * batch_size)
    for start in progress(starts, "reference", "batch"):
        places = range(start, min(start + batch_size, len(samples)))
        batch = to_device(collate([samples[place] for place in places]), device)
        batch.pop("reference", None)
        sums = stage.token_log_likelihoods(**batch).sum(dim=1)
        found[list(places)] = sums.float().view(2, -1).T
    return reduce(found, "sum").cpu()


def load_trainable(
    directory: str | PathLike,
    base_model: str | None = None,
    backend: str = "auto",
    **options: Any,
) -> ForgeryModel:
    """Load an adapter to train it further: FPL, LoRA and, where it was trained, the projector.

    Args:
        directory: The adapter's, in either layout.
        base_model: As for :meth:`AutoForgeryModel.from_pretrained`, as are the options and errors.
        backend: Likewise.
        options: Likewise.

    Raises:
        ValueError: It is a whole model, whose LoRA is part of the host's weights.
    """
    directory = local_folder(directory)
    in_llava = in_llava_layout(directory)
    if is_exported(directory) or (in_llava and holds_model(directory)):
        raise ValueError(
            f"{directory} is a whole model, whose LoRA cannot be told from the host any more; give "
            "the adapter that it was merged from"
        )
    if not in_llava:
        # Else it would be applied without parameters to train.
        options["trainable"] = True
    vlm = AutoForgeryModel.from_pretrained(directory, base_model, backend, **options)
    trained = [*vlm.fpl.parameters()]
    trained += [p for name, p in vlm.host.named_parameters() if ".lora_" in name]
    for parameter in trained:
        # An update is far smaller than what half precision tells apart.
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    vlm.fpl.float()
    if vlm.projector is not None:
        vlm.projector.unfreeze()
    return vlm


@quiet()
def train_preference(
    vlm: ForgeryModel,
    rows: datasets.Dataset,
    output_dir: str | PathLike,
    *,
    pairs: int | None = None,
    beta: float = 0.1,
    sft_weight: float = 0.0,
    steps: int = 100,
    batch_size: int = 8,
    accumulate: int = 1,
    learning_rate: float = 1e-4,
    fpl_learning_rate: float | None = None,
    seed: int = 0,
    save_steps: int | None = 50,
    max_length: int = 2048,
    workers: int = 0,
    resume: bool = False,
    report_to: str = "none",
    gradient_checkpointing: bool = False,
    deepspeed: str | PathLike | None = None,
) -> ForgeryModel:
    """Train an adapter further by DPO, and write it to ``output_dir``.

    Args:
        vlm: From :func:`load_trainable`; its present weights are the reference.
        rows: From ``build_conversations``.
        output_dir: As for :func:`~llava_forgery.train.adapter.train_adapter`.
        pairs: At most so many, drawn from all; None makes one of each conversation.
        beta: How strongly the policy is held to the reference.
        sft_weight: Share of the chosen answers' cross-entropy in the loss.
        steps: Optimiser steps.
        batch_size: Pairs for each pass and process.
        accumulate: Passes whose gradients make one step.
        learning_rate: Highest value of a warmed-up cosine.
        fpl_learning_rate: The FPL's; by default ``learning_rate``.
        seed: Of pairs and order.
        save_steps: Steps between checkpoints; None saves none.
        max_length: Most tokens of a prompt with its answer.
        workers: Processes that render and tokenise.
        resume: Continue from the last checkpoint.
        report_to: ``none``, ``tensorboard`` or ``wandb``.
        gradient_checkpointing: Compute the host's layers twice to keep less of them in memory.
        deepspeed: DeepSpeed's JSON file. The reference is measured before its engine is there, with
            the whole model on each device.

    Returns:
        The trained model, in eval mode.

    Raises:
        ValueError: ``beta`` is not positive, ``sft_weight`` negative, or as for ``train_adapter``.
    """
    if not beta > 0 or sft_weight < 0:
        raise ValueError(
            f"beta must be positive and sft_weight not negative, got {beta} and {sft_weight}"
        )
    if not vlm.trainable_names():
        raise ValueError("the model has nothing to train; load the adapter with load_trainable")
    output_dir = Path(output_dir)
    backend = backend_of(vlm)
    check_adapter_folder(output_dir, backend)
    samples = PreferenceSamples(
        rows,
        prompts=vlm.prompts,
        max_length=max_length,
        size=vlm.kfd.config.encoder.image_size if vlm.takes_forgery_images else None,
        thresholds=vlm.kfd.thresholds,
        most=pairs,
        seed=seed,
    )
    arguments = training_arguments(
        training_folder(output_dir),
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=0.0,
        seed=seed,
        save_steps=save_steps,
        workers=workers,
        report_to=report_to,
        gradient_accumulation_steps=accumulate,
        gradient_checkpointing=gradient_checkpointing,
        deepspeed=deepspeed,
    )
    stage = PreferenceStage(vlm, beta, sft_weight, fpl_learning_rate)

    def prepare(run: TrainingRun) -> None:
        kept = run.folder / REFERENCE
        expected = {"log_likelihoods": torch.empty(len(samples), 2)}
        if run.checkpoint is not None and kept.is_file():
            samples.reference = load_tensors(kept, expected)["log_likelihoods"]
            return
        if not is_quantized(stage.bare):
            vlm.to(arguments.device)
        samples.reference = reference_log_likelihoods(stage, samples, batch_size, vlm.device)
        if run.writes:
            save_tensors(kept, {"log_likelihoods": samples.reference})

    run_stage2(
        stage,
        samples,
        arguments,
        output_dir,
        command="train preference",
        result=adapter_layout(backend)[0],
        order=batches_of_a_kind,
        settings={"max_length": max_length, "beta": beta, "sft_weight": sft_weight},
        resume=resume,
        collator=PreferenceCollator(vlm.prompts.collate),
        prepare=prepare,
    )
    return vlm
