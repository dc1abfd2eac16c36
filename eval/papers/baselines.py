"""Baselines of the tables: prompt-tuned CLIP, a linear probe, a self-blended classifier.

All learn from the simulator's pairs, by cross-entropy on real and fake.

Sources: CoOp (Zhou et al. 2022), equation 2, for the learned context, as Khan and Dang-Nguyen 2024
use it for deepfakes; Shiohara and Yamasaki 2022 for training on self-blended faces.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path

import datasets
import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import nn

from eval.papers.table_settings import ClipSettings, SelfBlendedSettings
from llava_forgery.kfd.config import EncoderConfig, KFDConfig
from llava_forgery.kfd.encoder import load_open_clip
from llava_forgery.kfd.knowledge import ForgeryKnowledge, OpenClipTextEncoder
from llava_forgery.simulate.degrade import DegradeConfig
from llava_forgery.simulate.pairs import FacePairs, FramingConfig
from llava_forgery.simulate.simulator import SimulatorConfig
from llava_forgery.tensors import from_bytes
from llava_forgery.train.averaging import RunningAverage
from llava_forgery.train.run_record import describe_weights, open_run
from llava_forgery.train.stage1 import collate_pairs, recalibrate_batch_norm
from llava_forgery.train.trainer import (
    ForgeryTrainer,
    Trainable,
    run_training,
    training_arguments,
)
from llava_forgery.weights import load_tensors, save_tensors

WEIGHTS = "baseline.safetensors"


class Baseline(nn.Module, ABC):
    """Images (B, 3, S, S) in [0, 1] to logits (B, 2) of [real, fake].

    Attributes:
        size: Side S in pixels.
        simulator: Settings of the training forgeries; None for the simulator's defaults.
        own_statistics: Whether it trains batch norms; a frozen tower keeps its statistics.
    """

    size: int
    simulator: SimulatorConfig | None = None
    own_statistics: bool = False
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits (B, 2) of images (B, 3, S, S) in [0, 1], which are normalised here."""
        return self.logits((pixel_values - self.mean) / self.std)

    @abstractmethod
    def logits(self, normalised: torch.Tensor) -> torch.Tensor:
        """Logits (B, 2) of normalised images."""

    @abstractmethod
    def trained(self) -> dict[str, torch.Tensor]:
        """Trained tensors, which a checkpoint holds, by name."""


class ClipBaseline(Baseline):
    """A frozen open_clip model with a learned context, or with a linear layer on its features.

    Args:
        settings: Settings of the model.
        head: ``context``: cosines with the texts of real and fake, whose context is learned.
            ``probe``: a linear layer.
        seed: Seed of new weights, also of the towers' if they are random.
    """

    def __init__(self, settings: ClipSettings, head: str, seed: int = 0) -> None:
        if head not in ("context", "probe"):
            raise ValueError(f'head must be "context" or "probe", got {head!r}')
        encoder = EncoderConfig(
            "open_clip", settings.model, settings.pretrained, (1,), image_size=settings.image_size
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = load_open_clip(encoder)
            visual = model.visual
            super().__init__(settings.image_size, visual.image_mean, visual.image_std)
            self.visual = visual
            self.scale = float(model.logit_scale.exp())
            side = settings.image_size
            with torch.no_grad():
                width = visual(torch.zeros(1, 3, side, side)).shape[-1]
            self.knowledge: ForgeryKnowledge | None = None
            if head == "context":
                texts = OpenClipTextEncoder(model, settings.model)
                config = KFDConfig(
                    encoder=replace(encoder, text_width=width),
                    context_length=settings.context_length,
                )
                self.knowledge = ForgeryKnowledge(config, texts)
            else:
                self.probe = nn.Linear(width, 2)

    def logits(self, normalised: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            features = F.normalize(self.visual(normalised).float(), dim=-1)
        if self.knowledge is None:
            return self.probe(features)
        return self.scale * features @ F.normalize(self.knowledge(), dim=-1).T

    def trained(self) -> dict[str, torch.Tensor]:
        return {n: p for n, p in self.named_parameters() if p.requires_grad}

    def train(self, mode: bool = True) -> "ClipBaseline":
        """The frozen towers stay in eval mode, and nothing else has modes."""
        return super().train(False)


class SelfBlendedBaseline(Baseline):
    """A timm classifier that learns from faces blended with themselves, the whole inner face.

    Args:
        settings: Settings of the model.
        seed: Seed of new weights.
    """

    simulator = SimulatorConfig(whole_face=1.0)
    own_statistics = True

    def __init__(self, settings: SelfBlendedSettings, seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = timm.create_model(settings.model, pretrained=False)
            super().__init__(
                settings.image_size, model.default_cfg["mean"], model.default_cfg["std"]
            )
            if settings.weights is not None:
                model.load_state_dict(load_tensors(settings.weights, model.state_dict()))
            model.reset_classifier(2)
        self.model = model

    def logits(self, normalised: torch.Tensor) -> torch.Tensor:
        # On CPUs convolutions train in three fifths of the time in this memory format.
        return self.model(normalised.contiguous(memory_format=torch.channels_last))

    def trained(self) -> dict[str, torch.Tensor]:
        # Including statistics of batch norms.
        return self.state_dict()


class _Training(Trainable):
    """A baseline with its loss, in the form that the Trainer needs."""

    def __init__(self, model: Baseline, average: float) -> None:
        super().__init__()
        self.model = model
        self.average = RunningAverage(model, average)

    def forward(
        self, forged: torch.Tensor, pristine: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Cross-entropy on a batch of pairs; the mask is ignored."""
        logits = self.model(torch.cat([forged, pristine]))
        labels = torch.cat([torch.ones(len(forged)), torch.zeros(len(pristine))]).long()
        return {"loss": F.cross_entropy(logits, labels.to(logits.device))}

    def save_checkpoint(self, directory: Path) -> None:
        _save(self.model, directory)
        self.average.save(directory, _save)

    def load_checkpoint(self, directory: Path) -> None:
        fill_baseline(self.model, directory)
        self.average.load(directory, fill_baseline)


def train_baseline(
    model: Baseline,
    faces: datasets.Dataset,
    output_dir: str | PathLike,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int = 0,
    save_steps: int | None = None,
    workers: int = 0,
    framing: FramingConfig | None = None,
    degradation: DegradeConfig | None = None,
    average: float = 0.0,
    schedule: str = "cosine",
    norm_degradation: DegradeConfig | None = None,
    norm_batches: int = 16,
    resume: bool = False,
) -> Baseline:
    """Train a baseline and write the trained tensors to ``output_dir``.

    Args:
        model: New model.
        faces: Real faces of the people for training.
        output_dir: Receives ``baseline.safetensors``, ``checkpoint-*`` and ``log.json``.
        steps: Number of optimiser steps.
        batch_size: Number of pairs per step.
        learning_rate: Peak learning rate, after the warm-up.
        seed: Seed of data and order.
        save_steps: Number of steps between checkpoints; None saves none.
        workers: Number of processes that simulate forgeries.
        framing: How faces are placed; None for the default.
        degradation: Degradation of both images of a pair; None for the default.
        average: Decay of the running average of the weights; 0 keeps none.
        schedule: Schedule of the learning rate.
        norm_degradation: Degradation of the pictures on which trained batch norms are recalibrated
            at the end; None for that of the training.
        norm_batches: Number of such batches.
        resume: Whether to resume from the last checkpoint.

    Returns:
        The model, in eval mode.
    """
    options = {
        "size": model.size,
        "seed": seed,
        "simulator": model.simulator,
        "framing": framing,
    }
    pairs = FacePairs(
        faces,
        steps * batch_size,
        degradation=degradation or DegradeConfig(),
        role="training",
        **options,
    )
    arguments = training_arguments(
        output_dir,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=1e-4,
        seed=seed,
        save_steps=save_steps,
        workers=workers,
        schedule=schedule,
    )
    settings = {
        "baseline": type(model).__name__,
        "weights": describe_weights(model),
        "average": average,
        "norms": [norm_batches, asdict(norm_degradation) if norm_degradation else None],
        "data": pairs.describe(),
    }
    run = open_run(arguments, "baseline", settings, Path(output_dir) / WEIGHTS, resume)
    if run.finished:
        fill_baseline(model, output_dir)
        return model.eval()
    training = _Training(model, average)
    trainer = ForgeryTrainer(
        model=training,
        args=arguments,
        train_dataset=pairs,
        data_collator=collate_pairs,
        callbacks=[training.average],
    )
    run_training(trainer, run)
    training.average.take()
    if model.own_statistics:
        if norm_degradation is not None:
            pairs = FacePairs(
                faces,
                norm_batches * batch_size,
                degradation=norm_degradation,
                role="training",
                **options,
            )
        recalibrate_batch_norm(model, pairs, batch_size, norm_batches)
    model.eval()
    _save(model, Path(output_dir))
    run.finish()
    return model


def _save(model: Baseline, folder: Path) -> None:
    save_tensors(folder / WEIGHTS, model.trained())


def fill_baseline(model: Baseline, directory: str | PathLike) -> None:
    """Fill a new baseline of the same settings and seed from a folder, strictly."""
    expected = model.trained()
    tensors = load_tensors(Path(directory) / WEIGHTS, expected)
    with torch.no_grad():
        for name, tensor in tensors.items():
            expected[name].copy_(tensor)


class BaselineScorer:
    """A baseline's probability of fake; see :class:`llava_forgery.evaluation.scorers.Scorer`."""

    names: tuple[str, ...] = ("classifier",)

    def __init__(self, model: Baseline) -> None:
        self.model = model.eval()
        self.size = model.size

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> dict[str, list[float]]:
        pixels = torch.stack([from_bytes(image) for image in images]).to(self.model.mean.device)
        return {"classifier": self.model(pixels).float().softmax(dim=1)[:, 1].tolist()}
