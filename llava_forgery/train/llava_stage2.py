"""Stage 2 on a model of the ``llava`` package: the FPL, and LoRA where wanted, with LLaVA's flags.

    deepspeed --module llava_forgery.train.llava_train --lora_enable True --forgery_tower KFD ...

``scripts/finetune_lora.sh`` and ``scripts/finetune_fpl.sh`` call it. The detector stays frozen, and
so does the host but for what the flags ask for.
"""

import inspect
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel

from llava_forgery.files import apply_umask, naming, temporary_path
from llava_forgery.hosts.llava.checkpoint import (
    CONFIG,
    NO_LORA,
    NON_LORA,
    TRAINABLES,
    write_llava_adapter,
)
from llava_forgery.hosts.llava.model import llava_lora_config
from llava_forgery.hosts.llava.names import PROJECTOR, TEMPLATE_KEY, TOWER
from llava_forgery.hosts.llava.saving import FPL
from llava_forgery.hosts.lora import LORA_CONFIG, LORA_WEIGHTS, LoraSettings, fill_lora
from llava_forgery.kfd.checkpoint import detector_digest
from llava_forgery.kfd.detector import KFDOutput
from llava_forgery.train.deepspeed import exclude_from_deepspeed
from llava_forgery.train.llava_data import LlavaCollator, TrainingSamples
from llava_forgery.train.llava_flags import TrainingArguments
from llava_forgery.train.run_record import (
    describe_adapter_weights,
    describe_host,
    describe_lora,
    open_run,
)
from llava_forgery.train.samplers import AlternatingSampler, EpochSampler, ModalitySampler
from llava_forgery.train.trainer import ForgeryTrainer, Trainable, run_training
from llava_forgery.weights import load_tensors

# Fields of ours and LLaVA's that decide the result beside the Trainer's.
_DECIDING = (
    "bits",
    "double_quant",
    "freeze_mm_mlp_adapter",
    "group_by_modality_length",
    "mm_projector_lr",
    "model_max_length",
    "quant_type",
)


class LlavaStage2(Trainable):
    """A model of the ``llava`` package with the skill, as the Trainer wants it.

    Args:
        model: With the skill; peft's wrapper around it where LoRA is trained.
        fpl_learning_rate: The FPL's highest learning rate; None takes the common one.
        projector_learning_rate: The same for the host's own projector.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        fpl_learning_rate: float | None = None,
        projector_learning_rate: float | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        # LLaVA-NeXT's models want to be told of each image that it is no video.
        self._tells_modalities = "modalities" in inspect.signature(self.bare.forward).parameters
        self.fpl_learning_rate = fpl_learning_rate
        self.projector_learning_rate = projector_learning_rate

    @property
    def bare(self) -> PreTrainedModel:
        """The model without peft's wrapper."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def fpl(self) -> nn.Module:
        """The learner."""
        return getattr(self.bare.get_model(), PROJECTOR)

    def forward(
        self, forgery_images: torch.Tensor | None = None, **inputs: Any
    ) -> dict[str, torch.Tensor]:
        """Cross-entropy on the answers' tokens (equation 5), as LLaVA's model computes it.

        Args:
            forgery_images: (M, 3, S, S) in [0, 1], of the samples with placeholders; None where
                the batch holds general data alone, or the detector reads the host's own tower.
            inputs: What LLaVA's model takes.
        """
        if self._tells_modalities:
            inputs.setdefault("modalities", ["image"] * len(inputs["images"]))
        if forgery_images is not None:
            inputs["detection"] = self._detect(forgery_images)
        return {"loss": self.model(**inputs).loss}

    def _detect(self, forgery_images: torch.Tensor) -> KFDOutput:
        # In its own precision, as in use: mixed precision is for the host.
        with torch.autocast(forgery_images.device.type, enabled=False):
            return self.bare.detect(forgery_images)

    def trainable_names(self) -> list[str]:
        """Names of the parameters that training changes, as the model without wrappers has them."""
        return [name for name, p in self.model.named_parameters() if p.requires_grad]

    def saved_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def learning_rates(self) -> dict[nn.Parameter, float]:
        rates: dict[nn.Parameter, float] = {}
        if self.fpl_learning_rate is not None:
            rates |= dict.fromkeys(self.fpl.parameters(), self.fpl_learning_rate)
        if self.projector_learning_rate is not None:
            rates |= dict.fromkeys(
                self.bare.get_model().mm_projector.parameters(), self.projector_learning_rate
            )
        return rates

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Compute the language model's layers twice to keep less of them in memory."""
        self.bare.activation_checkpointing_enable(
            activation_checkpointing_kwargs=activation_checkpointing_kwargs, **options
        )

    def save_checkpoint(self, directory: Path) -> None:
        """Write the adapter in LLaVA's layout into a folder that may hold other files."""
        directory.mkdir(parents=True, exist_ok=True)
        with temporary_path(directory) as temporary:
            with naming(directory, temporary):
                write_llava_adapter(self.model, temporary, directory, self._trained_projector())
            apply_umask(temporary)
            # Without the configuration the folder is no adapter: so it is the first file to go and
            # the last to come. What an earlier training wrote and this one did not goes as well.
            for name in (CONFIG, LORA_CONFIG, LORA_WEIGHTS, NON_LORA, NO_LORA, TRAINABLES):
                (directory / name).unlink(missing_ok=True)
            for path in sorted(temporary.iterdir(), key=lambda path: path.name == CONFIG):
                target = directory / path.name
                if target.is_dir():
                    shutil.rmtree(target)
                path.replace(target)

    def _trained_projector(self) -> dict[str, torch.Tensor]:
        """The host's own projector where it is trained as well, by the host's names."""
        module = self.bare.get_model().mm_projector
        names = {f"model.mm_projector.{name}": p for name, p in module.named_parameters()}
        return {name: p.detach() for name, p in names.items() if p.requires_grad}

    def load_checkpoint(self, directory: Path) -> None:
        """Fill what is trained from :meth:`save_checkpoint`'s files, strictly."""
        self.fpl.load_state_dict(load_tensors(directory / FPL, self.fpl.state_dict()))
        if isinstance(self.model, PeftModel):
            fill_lora(self.model, directory)
        projector = self._trained_projector()
        if not projector and (directory / TRAINABLES).is_file():
            raise ValueError(
                f"{directory} holds weights of the host's own projector, which this training "
                "leaves as they are; give --mm_projector_lr as before, or another --output_dir"
            )
        if projector:
            for name, tensor in load_tensors(directory / TRAINABLES, projector).items():
                projector[name].copy_(tensor)


class LlavaTrainer(ForgeryTrainer):
    """With the orders of :mod:`llava_forgery.train.samplers`."""

    args: TrainingArguments
    train_dataset: TrainingSamples

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        # Under DeepSpeed the Trainer brings all inputs to half precision; see `_detect`.
        shown = inputs.pop("forgery_images", None)
        prepared = super()._prepare_inputs(inputs)
        if shown is not None:
            prepared["forgery_images"] = shown.to(self.args.device)
        return prepared

    def _get_train_sampler(self, train_dataset: TrainingSamples | None = None) -> Sampler[int]:
        samples = train_dataset or self.train_dataset
        arguments = self.args
        # Data and weights have seeds of their own in transformers.
        seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
        if arguments.group_by_modality_length:
            parts = arguments.world_size * arguments.gradient_accumulation_steps
            return ModalitySampler(samples.lengths, arguments.train_batch_size, parts, seed)
        kinds = samples.is_skill
        return EpochSampler(len(kinds), seed) if all(kinds) else AlternatingSampler(kinds, seed)


def linear_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the language model's linear layers, LLaVA's LoRA targets: neither the towers', nor
    the projectors', nor the head's.

    Args:
        model: Of the ``llava`` package.
    """
    layers = model.get_model().layers.named_modules()
    return tuple(
        sorted({name.rsplit(".", 1)[-1] for name, m in layers if isinstance(m, nn.Linear)})
    )


def prepare_model(
    model: PreTrainedModel, arguments: TrainingArguments
) -> PreTrainedModel | PeftModel:
    """Freeze everything but what the flags ask for, and attach LoRA where they do.

    Args:
        model: With the skill.
        arguments: ``lora_*``, and whether the host's own projector is trained.
    """
    inner = model.get_model()
    model.requires_grad_(False)
    getattr(inner, PROJECTOR).requires_grad_(True)
    prepared: PreTrainedModel | PeftModel = model
    if arguments.lora_enable:
        settings = LoraSettings(
            r=arguments.lora_r,
            alpha=arguments.lora_alpha,
            dropout=arguments.lora_dropout,
            projections=linear_names(model),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(arguments.seed)
            prepared = get_peft_model(model, llava_lora_config(model, settings))
        # peft freezes all it did not make.
        getattr(inner, PROJECTOR).requires_grad_(True)
    if arguments.trains_projector:
        inner.mm_projector.requires_grad_(True)
    # Masters in full precision: an update is far smaller than what half precision tells apart.
    for parameter in prepared.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return prepared


def train_llava(
    model: PreTrainedModel | PeftModel,
    samples: TrainingSamples,
    arguments: TrainingArguments,
    fpl_learning_rate: float | None = None,
    pad_id: int = 0,
) -> PreTrainedModel | PeftModel:
    """Train, and write the adapter into ``arguments.output_dir``, beside the checkpoints.

    Where checkpoints of this training lie there, it resumes from the last one, as LLaVA's does;
    where its result lies there, nothing is trained.

    Args:
        model: From :func:`prepare_model`.
        samples: To learn from.
        arguments: The flags.
        fpl_learning_rate: The FPL's.
        pad_id: Fills up shorter texts; masked.

    Returns:
        The model, in eval mode. Under ZeRO-3 its weights remain shared out among the processes.

    Raises:
        ValueError: ``arguments.output_dir`` holds another training, or results from elsewhere.
    """
    stage = LlavaStage2(model, fpl_learning_rate, arguments.mm_projector_lr)
    settings = {**_describe(stage, arguments), "data": samples.describe()}
    result = Path(arguments.output_dir) / CONFIG
    opened = open_run(arguments, "llava_train", settings, result, resume=None)
    if opened.finished:
        stage.load_checkpoint(opened.folder)
        return model.eval()
    inner = stage.bare.get_model()
    hidden = (
        exclude_from_deepspeed(inner, TOWER, arguments.device)
        if arguments.deepspeed
        else nullcontext()
    )
    with hidden:
        with _without_cache(stage.bare):
            trainer = LlavaTrainer(
                model=stage,
                args=arguments,
                train_dataset=samples,
                data_collator=LlavaCollator(pad_id),
            )
            run_training(trainer, opened)
        model.eval()
        trainer.save_model(arguments.output_dir)
        if trainer.is_world_process_zero():
            trainer.save_state()
        opened.finish()
    return model


def _describe(stage: LlavaStage2, arguments: TrainingArguments) -> dict[str, Any]:
    """Host, detector and what is trained, for the record."""
    config = stage.bare.config
    fingerprint = {k: v for k, v in config.mm_forgery_host.items() if k != "name_or_path"}
    return {
        **{name: getattr(arguments, name) for name in _DECIDING},
        "host": describe_host(stage.bare, fingerprint),
        "detector": detector_digest(getattr(stage.bare.get_model(), TOWER).kfd),
        "fpl": config.mm_forgery_fpl,
        "fpl_lr": stage.fpl_learning_rate,
        "lora": describe_lora(stage.model),
        "weights": describe_adapter_weights(stage),
        "image_aspect_ratio": getattr(config, "image_aspect_ratio", None),
        "version": getattr(config, TEMPLATE_KEY, None),
    }


@contextmanager
def _without_cache(model: PreTrainedModel) -> Iterator[None]:
    """Training needs no keys and values; the checkpoint's configuration keeps its own word."""
    before = model.config.use_cache
    model.config.use_cache = False
    try:
        yield
    finally:
        model.config.use_cache = before
