"""Stage 1: train the Knowledge-guided Forgery Detector on simulated forgeries.

llava-forgery train detector --faces FACES --out KFD
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from llava_forgery.faces.identities import check_held_out, identity_digests
from llava_forgery.kfd.checkpoint import CONFIG, load_weights, portable_config
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.kfd.losses import LossWeights, training_losses
from llava_forgery.noise import quiet
from llava_forgery.simulate.batches import FramedPairs, collate_framed
from llava_forgery.simulate.degrade import DegradeConfig
from llava_forgery.simulate.fakes import LabelledPairs
from llava_forgery.simulate.pairs import FacePair, FacePairs, FramingConfig
from llava_forgery.simulate.simulator import SimulatorConfig
from llava_forgery.train.averaging import RunningAverage
from llava_forgery.train.run_record import describe_weights, open_run
from llava_forgery.train.trainer import (
    ForgeryTrainer,
    Trainable,
    run_training,
    training_arguments,
)
from llava_forgery.train.validation import Validation


class Stage1(Trainable):
    """The detector with its losses, in the form that the Trainer needs.

    Args:
        detector: Detector to train.
        weights: Weights of the losses.
        average: Decay of the running average of the weights; 0 keeps none.
    """

    def __init__(
        self, detector: KnowledgeGuidedForgeryDetector, weights: LossWeights, average: float = 0.0
    ) -> None:
        super().__init__()
        self.detector, self.weights = detector, weights
        # An existing calibration is of the previous weights.
        detector.calibration = None
        self.average = RunningAverage(detector, average)

    def forward(
        self,
        forged: torch.Tensor,
        pristine: torch.Tensor,
        mask: torch.Tensor,
        masked: torch.Tensor | None = None,
        paired: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Losses of a batch of pairs; see ``training_losses``."""
        _, losses = training_losses(
            self.detector, forged, pristine, mask, self.weights, masked, paired
        )
        return losses

    def save_checkpoint(self, directory: Path) -> None:
        self.detector.save_pretrained(directory)
        self.average.save(directory, lambda detector, folder: detector.save_pretrained(folder))

    def load_checkpoint(self, directory: Path) -> None:
        _load(self.detector, directory)
        self.average.load(directory, _load)


def _load(detector: KnowledgeGuidedForgeryDetector, folder: Path) -> None:
    load_weights(detector, folder, with_knowledge=True)


def collate_pairs(pairs: Sequence[FacePair]) -> dict[str, torch.Tensor]:
    """Stack pairs to ``forged``, ``pristine`` (B, 3, S, S) and ``mask`` (B, 1, S, S); if there are
    labelled fakes, also ``masked`` and ``paired`` (B,) bool."""
    batch = {
        name: torch.stack([getattr(pair, name) for pair in pairs])
        for name in ("forged", "pristine", "mask")
    }
    if not all(pair.masked and pair.paired for pair in pairs):
        for name in ("masked", "paired"):
            batch[name] = torch.tensor([getattr(pair, name) for pair in pairs])
    return batch


class Stage1Trainer(ForgeryTrainer):
    """Forges on its device the faces that the data loader only framed."""

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if isinstance(self.train_dataset, FramedPairs):
            inputs = collate_pairs(self.train_dataset.forge(inputs["batch"]))
        return super()._prepare_inputs(inputs)


def rendering_device(renderer: str, training: torch.device) -> torch.device | None:
    """Device on which stage 1 forges faces.

    Args:
        renderer: ``auto`` for the training's device if it is a GPU, ``cpu`` for the worker
            processes, or a device such as ``cuda:1``.
        training: Device of the training.

    Returns:
        The device; None for the worker processes.

    Raises:
        ValueError: There is no such device.
    """
    if renderer == "cpu":
        return None
    if renderer == "auto":
        return training if training.type == "cuda" else None
    try:
        return torch.empty(0, device=renderer).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"renderer must be auto, cpu or a device of this machine, got {renderer!r} "
            f"({str(error).splitlines()[0]})"
        ) from error


def recalibrate_batch_norm(
    model: nn.Module, pairs: FacePairs, batch_size: int, batches: int = 16
) -> None:
    """Recompute the running statistics of the trained batch norms for the current weights.

    Those from training are an average over weights that have changed since. Frozen modules keep
    theirs, which are part of the pretrained weights.

    Args:
        model: Model of images (B, 3, S, S) in [0, 1].
        pairs: Pairs of size S.
        batch_size: Number of pairs in a batch.
        batches: Number of batches.
    """
    device = next(model.parameters()).device
    count = min(batches * batch_size, len(pairs))

    def images() -> Iterator[torch.Tensor]:
        for start in range(0, count, batch_size):
            batch = collate_pairs([pairs[i] for i in range(start, min(start + batch_size, count))])
            yield torch.cat([batch["forged"], batch["pristine"]]).to(device)

    was_training = model.training
    model.train()
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    # A frozen encoder stays in eval mode, or has only frozen weights.
    frozen = [
        norm
        for norm in norms
        if not (norm.training and all(p.requires_grad for p in norm.parameters()))
    ]
    measured = {norm: norm.momentum for norm in norms if norm not in frozen}
    for norm in frozen:
        norm.eval()
    try:
        for norm in measured:
            norm.reset_running_stats()
            # The mean over all batches with equal weight.
            norm.momentum = None
        with torch.no_grad():
            for batch in images() if measured else ():
                model(batch)
    finally:
        for norm, momentum in measured.items():
            norm.momentum = momentum
        model.train(was_training)


@quiet()
def train_kfd(
    detector: KnowledgeGuidedForgeryDetector,
    faces: datasets.Dataset,
    output_dir: str | PathLike,
    *,
    steps: int = 220,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    seed: int = 0,
    save_steps: int | None = 100,
    workers: int = 1,
    weights: LossWeights | None = None,
    simulator: SimulatorConfig | None = None,
    framing: FramingConfig | None = None,
    degradation: DegradeConfig | None = None,
    average: float = 0.0,
    schedule: str = "cosine",
    labelled: datasets.Dataset | None = None,
    fake_ratio: float = 0.5,
    renderer: str = "auto",
    resume: bool = False,
    report_to: str = "none",
    norm_degradation: DegradeConfig | None = None,
    norm_batches: int = 16,
    val_faces: datasets.Dataset | None = None,
    eval_steps: int = 100,
    val_pairs: int = 128,
) -> KnowledgeGuidedForgeryDetector:
    """Train a detector and write it to ``output_dir``.

    Args:
        detector: Detector with its knowledge, from ``from_preset`` or ``from_config``.
        faces: Real faces of the people for training, from ``load_faces``.
        output_dir: Receives the detector, ``checkpoint-*``, ``log.json`` and
            ``training_run.json``. If it holds the same training, finished, nothing is trained.
        steps: Number of optimiser steps.
        batch_size: Number of pairs per step, each with two images.
        learning_rate: Peak learning rate, after a warm-up of a tenth of the steps.
        weight_decay: Weight decay of AdamW.
        seed: Seed of data, order and dropout.
        save_steps: Number of steps between checkpoints; None saves none.
        workers: Number of processes that simulate forgeries.
        weights: Weights of the terms of the loss.
        simulator: How forgeries are drawn.
        framing: How faces are placed in the picture.
        degradation: Degradation common to both images.
        average: Decay of the running average of the weights, which is what is written; 0 writes
            the weights of the last step.
        schedule: Name in transformers of the learning rate's schedule after the warm-up; with
            ``constant_with_warmup`` and an average, each checkpoint is as good as a training of
            that length.
        labelled: Labelled faces (``load_faces``) whose fakes are mixed in, such as a benchmark's;
            see :class:`~llava_forgery.simulate.fakes.LabelledPairs`.
        fake_ratio: Share of the pairs that show a fake of ``labelled``.
        renderer: Device that forges: ``cpu`` for the worker processes, a device, or ``auto`` for
            the GPU if the training uses one (:mod:`llava_forgery.simulate.batches`).
        resume: Whether to resume from the last checkpoint in ``output_dir``, with the result of an
            uninterrupted run.
        report_to: ``none``, ``tensorboard`` or ``wandb``.
        norm_degradation: Degradation of the pictures on which the trained batch norms are
            recalibrated at the end, such as that of videos; None for that of the training. The
            scores of a detector depend strongly on the statistics of its batch norms.
        norm_batches: Number of such batches.
        val_faces: Real faces of other people. With them the detector is measured during training,
            and the best state is written instead of the last; see :class:`Validation`.
        eval_steps: Number of steps between two such measurements.
        val_pairs: Number of forgeries of ``val_faces``, each with its pristine face.

    Returns:
        The detector, in eval mode.

    Raises:
        ValueError: ``output_dir`` holds another training, an interrupted one without ``resume``, or
            a detector from elsewhere; or a person is in both ``faces`` and ``val_faces``.
    """
    options = {
        "length": steps * batch_size,
        "size": detector.config.encoder.image_size,
        "seed": seed,
        "simulator": simulator,
        "framing": framing,
        "degradation": degradation or DegradeConfig(),
    }
    pairs = (
        FacePairs(faces, role="training", **options)
        if labelled is None
        else LabelledPairs(faces, labelled=labelled, ratio=fake_ratio, role="training", **options)
    )
    people, labelled_people, held_out = (
        identity_digests(() if rows is None else rows["identity"])
        for rows in (faces, labelled, val_faces)
    )
    check_held_out(people | labelled_people, held_out)
    detector.training_people = people | labelled_people
    stage = Stage1(detector, weights or LossWeights(), average)
    arguments = training_arguments(
        output_dir,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
        save_steps=save_steps,
        workers=workers,
        report_to=report_to,
        schedule=schedule,
    )
    settings = {
        "detector": portable_config(detector.config),
        "weights": describe_weights(detector),
        "losses": asdict(stage.weights),
        "average": average,
        "norms": [norm_batches, asdict(norm_degradation) if norm_degradation else None],
        "data": pairs.describe(),
    }
    device = rendering_device(renderer, arguments.device)
    if device is not None:
        # Differs by a few grey levels from the CPU's rendering.
        settings["renderer"] = "torch"
    validation = None
    if val_faces is not None:
        measured = FacePairs(val_faces, role="validation", **{**options, "length": val_pairs})
        validation = Validation(lambda: stage.average.model, measured, eval_steps, output_dir)
        settings["validation"] = validation.describe()
    run = open_run(arguments, "train detector", settings, Path(output_dir) / CONFIG, resume)
    if run.finished:
        _load(detector, run.folder)
        return detector.eval()
    trainer = Stage1Trainer(
        model=stage,
        args=arguments,
        train_dataset=pairs if device is None else FramedPairs(pairs, device),
        data_collator=collate_pairs if device is None else collate_framed,
        callbacks=[stage.average, *([] if validation is None else [validation])],
    )
    run_training(trainer, run)
    stage.average.take()
    if validation is not None:
        validation.take_best(detector)
    measured_on = pairs
    if norm_degradation is not None:
        options |= {"length": norm_batches * batch_size, "degradation": norm_degradation}
        measured_on = FacePairs(faces, role="training", **options)
    recalibrate_batch_norm(detector, measured_on, batch_size, norm_batches)
    detector.eval()
    trainer.save_model(output_dir)
    run.finish()
    return detector
