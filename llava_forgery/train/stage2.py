"""Stage 2: train the FPL, and optionally LoRA, on the host; the detector stays frozen.

It is the same on either backend, whose differences are behind :mod:`llava_forgery.hosts.base`.
:mod:`llava_forgery.train.adapter` and :mod:`llava_forgery.train.llava_train` are its entry points.

Source: LVLM-DFD, section 3.2 and equation 5.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, TrainingArguments

from llava_forgery.constants import IGNORE_INDEX
from llava_forgery.faces.identities import check_held_out, identity_digests
from llava_forgery.files import write_json
from llava_forgery.hosts.base import ForgeryModel
from llava_forgery.hosts.baseline import BaselineVLM
from llava_forgery.hosts.fingerprint import host_fingerprint
from llava_forgery.hosts.lora import without_peft
from llava_forgery.hosts.placement import WHOLE
from llava_forgery.hosts.quantized import is_quantized
from llava_forgery.kfd.checkpoint import detector_digest
from llava_forgery.train.deepspeed import exclude_from_deepspeed
from llava_forgery.train.dialogues import DialogueSource, RowSource
from llava_forgery.train.run_record import (
    TrainingRun,
    describe_adapter_weights,
    describe_host,
    describe_lora,
    open_run,
)
from llava_forgery.train.samplers import KindSampler, LengthSampler
from llava_forgery.train.samples import TrainingSamples
from llava_forgery.train.trainer import (
    ForgeryTrainer,
    Trainable,
    run_training,
)
from llava_forgery.train.warmup import WarmUp, warm_up_fpl

BEST, HISTORY = "best", "validation.json"

Order = Callable[[TrainingSamples, TrainingArguments], Sampler[int]]
"""Makes the sampler of a training."""


class Stage2(Trainable):
    """The host with the skill, or only with LoRA, in the form that the Trainer needs.

    Args:
        vlm: Model of either backend.
        fpl_learning_rate: Peak learning rate of the FPL; None for the common one.
        projector_learning_rate: Peak learning rate of the host's own projector, if it is trained;
            None for the common one.
    """

    def __init__(
        self,
        vlm: ForgeryModel | BaselineVLM,
        fpl_learning_rate: float | None = None,
        projector_learning_rate: float | None = None,
    ) -> None:
        super().__init__()
        self.vlm = vlm
        self.fpl_learning_rate = fpl_learning_rate
        self.projector_learning_rate = projector_learning_rate

    @property
    def bare(self) -> PreTrainedModel:
        """The host without peft's wrapper."""
        return without_peft(self.vlm.host)

    def forward(
        self, labels: torch.Tensor, forgery_images: torch.Tensor | None = None, **inputs: Any
    ) -> dict[str, torch.Tensor]:
        """Mean cross-entropy over the tokens of the answers (equation 5).

        Args:
            labels: (B, T), -100 where nothing is supervised.
            forgery_images: (M, 3, S, S) in [0, 1] of the samples with placeholders; None if the
                batch only holds general data, or the detector sees what the host sees.
            inputs: Inputs of the model.
        """
        if forgery_images is not None:
            # In its own precision, as in use; mixed precision is only for the host.
            with torch.autocast(forgery_images.device.type, enabled=False):
                inputs["detection"] = self.vlm.detect(forgery_images)
        logits, targets = self.vlm.labelled_logits(labels, **inputs)
        loss = F.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE_INDEX
        )
        return {"loss": loss}

    def saved_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.vlm.parameters() if p.requires_grad]

    def learning_rates(self) -> dict[nn.Parameter, float]:
        rates: dict[nn.Parameter, float] = {}
        if self.fpl_learning_rate is not None:
            rates |= dict.fromkeys(self.vlm.fpl.parameters(), self.fpl_learning_rate)
        if self.projector_learning_rate is not None:
            parameters = self.vlm.projector.module.parameters()
            rates |= dict.fromkeys(parameters, self.projector_learning_rate)
        return rates

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute the language model's layers in the backward pass to save memory."""
        self.bare.activation_checkpointing_enable(
            activation_checkpointing_kwargs=activation_checkpointing_kwargs, **options
        )

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """The same under the name, and with the options, of earlier releases of transformers."""
        self.bare.gradient_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    def save_checkpoint(self, directory: Path) -> None:
        self.vlm.save_pretrained(directory)

    def load_checkpoint(self, directory: Path) -> None:
        self.vlm.load_weights(directory)


class Stage2Trainer(ForgeryTrainer):
    """Draws samples in a custom order, passes the detector's pictures in full precision, and keeps
    the state of the lowest validation loss.

    Args:
        order: Makes the sampler.
        options: Options of the Trainer.
    """

    train_dataset: TrainingSamples

    def __init__(self, *, order: Order, **options: Any) -> None:
        self.order = order
        super().__init__(**options)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        # Under DeepSpeed the Trainer casts all inputs to half precision.
        shown = inputs.pop("forgery_images", None)
        prepared = super()._prepare_inputs(inputs)
        if shown is not None:
            prepared["forgery_images"] = shown.to(self.args.device)
        return prepared

    @property
    def history(self) -> list[dict[str, float]]:
        """Step and mean loss of each validation so far, which checkpoints restore."""
        log = [entry for entry in self.state.log_history if "eval_loss" in entry]
        return [{"step": entry["step"], "loss": entry["eval_loss"]} for entry in log]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validate; ``best/`` then holds the adapter with the lowest loss so far, the first of
        equal ones, and ``validation.json`` lists all losses."""
        figures = super().evaluate(*args, **kwargs)
        folder, history = Path(self.args.output_dir), self.history
        # The same in all processes, which write together.
        if best_of(history) is history[-1]:
            self.save_model(folder / BEST)
        if self.is_world_process_zero():
            write_json(folder / HISTORY, history)
        return figures

    def _get_train_sampler(self, train_dataset: TrainingSamples | None = None) -> Sampler[int]:
        return self.order(train_dataset or self.train_dataset, self.args)


def best_of(history: Sequence[dict[str, float]]) -> dict[str, float]:
    """The validation with the lowest loss, the first of equal ones."""
    return min(history, key=lambda figures: figures["loss"])


def batches_of_a_kind(samples: TrainingSamples, arguments: TrainingArguments) -> Sampler[int]:
    """Batches of similar lengths; without, a quarter of the demo's conversations was padding.

    Each is of the skill, of general data with images, or of text only, for which hosts of
    transformers take different inputs.
    """
    size = arguments.per_device_train_batch_size
    words = [abs(length) for length in samples.lengths]
    if all(samples.is_skill):
        return LengthSampler(words, size, arguments.seed)
    kinds = [
        0 if is_skill else 1 if length > 0 else 2
        for is_skill, length in zip(samples.is_skill, samples.lengths, strict=True)
    ]
    return KindSampler(kinds, words, size, arguments.seed)


class Collator:
    """Joins samples of :class:`TrainingSamples`.

    Args:
        collate: The host's :meth:`PromptEncoder.collate`.
    """

    def __init__(self, collate: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The output of ``collate`` and ``forgery_images`` (M, 3, S, S) of the skill's samples."""
        samples = [dict(sample) for sample in samples]
        shown = [sample.pop("forgery_images") for sample in samples if "forgery_images" in sample]
        batch = self.collate(samples)
        return {**batch, "forgery_images": torch.cat(shown)} if shown else batch


def run_stage2(
    stage: Stage2,
    samples: TrainingSamples,
    arguments: TrainingArguments,
    output_dir: str | PathLike,
    *,
    command: str,
    result: str,
    order: Order,
    settings: Mapping[str, Any],
    resume: bool | None,
    warm_up: WarmUp | None = None,
    validation: TrainingSamples | None = None,
    collator: Collator | None = None,
    prepare: Callable[[TrainingRun], None] | None = None,
) -> None:
    """Train and write the adapter; the model is in eval mode afterwards.

    The adapter's detector then records the people that both were trained on.

    Args:
        stage: Stage to train.
        samples: Training samples.
        arguments: Arguments of the Trainer; their folder receives checkpoints and record.
        output_dir: Receives the adapter.
        command: Command that trains, for the record.
        result: File that exists once ``output_dir`` holds the adapter.
        order: Makes the sampler.
        settings: Further settings that affect the result and are not visible here.
        resume: As for :func:`~llava_forgery.train.run_record.open_run`.
        warm_up: The FPL's warm start, which is skipped when resuming.
        validation: Conversations about other people, whose mean loss is measured as often as
            ``arguments`` say; the state of the lowest one is written instead of the last.
        collator: Collator of the samples, if they are not dialogues.
        prepare: Called with the unchanged model before the first step of an unfinished training,
            also if it resumes.

    Raises:
        ValueError: The folder holds another training, or results from elsewhere; or ``validation``
            shows people who are trained on, holds general data, or is used with ZeRO-3.
    """
    vlm = stage.vlm
    kfd = getattr(vlm, "kfd", None)
    people = samples.people
    if warm_up is not None and warm_up.pairs is not None:
        people |= identity_digests(warm_up.pairs.faces["identity"])
    if validation is not None:
        _check_validation(validation, people, arguments)
    if kfd is not None:
        kfd.training_people |= people
    described = {
        **describe_stage(stage),
        **settings,
        "warm_start": (warm_up or WarmUp(steps=0)).describe(),
        "data": samples.describe(),
        "validation": validation
        and [arguments.eval_strategy.value, arguments.eval_steps, validation.describe()],
    }
    run = open_run(arguments, command, described, Path(output_dir) / result, resume)
    if run.finished:
        stage.load_checkpoint(Path(output_dir))
        vlm.eval()
        return
    if warm_up is not None and run.checkpoint is None:
        # Every process does the same: it takes seconds and needs no communication.
        if not (arguments.deepspeed or is_quantized(stage.bare)):
            vlm.to(arguments.device)
        warm_up_fpl(vlm, samples.skill, warm_up)
    if prepare is not None:
        prepare(run)
    alone = nullcontext()
    if arguments.deepspeed and kfd is not None:
        owner, name = owner_of(vlm, kfd)
        if list(owner._modules) == [name]:
            # The llava package's tower around it only runs in steps that show a face: under ZeRO-3
            # the processes would count different modules.
            owner, name = owner_of(vlm, owner)
        alone = exclude_from_deepspeed(owner, name, arguments.device)
    with alone:
        with _without_cache(stage.bare):
            trainer = Stage2Trainer(
                model=stage,
                args=arguments,
                train_dataset=samples,
                eval_dataset=validation,
                data_collator=collator or Collator(vlm.prompts.collate),
                order=order,
            )
            run_training(trainer, run)
        if trainer.history:
            stage.load_checkpoint(run.folder / BEST)
        vlm.eval()
        trainer.save_model(output_dir)
        if trainer.is_world_process_zero() and Path(output_dir) == run.folder:
            # Next to its result, as in LLaVA's training.
            trainer.save_state()
        run.finish()


def _check_validation(
    validation: TrainingSamples, people: frozenset[str], arguments: TrainingArguments
) -> None:
    check_held_out(people, validation.people)
    if not all(validation.is_skill):
        raise ValueError(
            "the data to validate on hold general instruction data; give conversations of the "
            "skill only (data build-qa --split val)"
        )
    zero = getattr(arguments, "hf_deepspeed_config", None)
    if zero is not None and zero.is_zero3():
        raise ValueError(
            "under ZeRO-3 the best state cannot be loaded into partitioned weights; use "
            "scripts/zero2.json, or train without validation"
        )


def training_samples(
    vlm: ForgeryModel | BaselineVLM,
    skill: datasets.Dataset | DialogueSource,
    general: DialogueSource | None = None,
    general_ratio: float = 0.5,
    *,
    max_length: int = 2048,
    seed: int = 0,
) -> TrainingSamples:
    """The training data of a model.

    Args:
        vlm: Model of either backend.
        skill: Dialogues from ``build_conversations`` or
            :func:`~llava_forgery.train.dialogues.open_source`.
        general: General dialogues, if any.
        general_ratio: Share of the general dialogues in [0, 1).
        max_length: Maximum number of tokens of a sample.
        seed: Seed of the draws from the general data.
    """
    if isinstance(skill, datasets.Dataset):
        skill = RowSource(skill, "the conversations")
    return TrainingSamples(
        skill,
        general,
        general_ratio,
        prompts=vlm.prompts,
        max_length=max_length,
        # A detector on the host's tower, or none, gets no separate pictures.
        size=vlm.kfd.config.encoder.image_size if vlm.takes_forgery_images else None,
        seed=seed,
        crop=vlm.crop if vlm.takes_forgery_images else WHOLE,
    )


def describe_stage(stage: Stage2) -> dict[str, Any]:
    """Host, detector and trained parameters, for the record."""
    vlm = stage.vlm
    described = {
        "lora": describe_lora(vlm.host),
        "weights": describe_adapter_weights(vlm),
        "fpl_learning_rate": stage.fpl_learning_rate,
        "projector_learning_rate": stage.projector_learning_rate,
    }
    if isinstance(vlm, BaselineVLM):
        return {"host": describe_host(stage.bare, host_fingerprint(stage.bare)), **described}
    return {
        "host": describe_host(stage.bare, vlm.fingerprint),
        "detector": detector_digest(vlm.kfd),
        "placement": vlm.placement,
        "crop": vlm.crop,
        "fpl": vlm.fpl.config.to_dict(),
        **described,
    }


def owner_of(model: nn.Module, part: nn.Module) -> tuple[nn.Module, str]:
    """The submodule of ``model`` that holds ``part``, and the name of ``part`` there."""
    return next(
        (module, name)
        for module in model.modules()
        for name, child in module._modules.items()
        if child is part
    )


@contextmanager
def _without_cache(host: PreTrainedModel) -> Iterator[None]:
    """Disable the cache of keys and values in training; the host's configuration is restored."""
    config = host.config.get_text_config()
    before = config.use_cache
    config.use_cache = False
    try:
        yield
    finally:
        config.use_cache = before
