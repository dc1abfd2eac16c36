"""Stage 1: train the Knowledge-guided Forgery Detector on simulated forgeries.

llava-forgery train detector --faces FACES --out KFD
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path

import datasets
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from llava_forgery.kfd.checkpoint import CONFIG, load_weights, portable_config
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.kfd.losses import LossWeights, training_losses
from llava_forgery.simulate.degrade import DegradeConfig
from llava_forgery.simulate.pairs import FacePair, FacePairs
from llava_forgery.simulate.simulator import SimulatorConfig
from llava_forgery.train.run_record import describe_weights, open_run
from llava_forgery.train.trainer import (
    ForgeryTrainer,
    Trainable,
    run_training,
    training_arguments,
)


class Stage1(Trainable):
    """The detector with its losses, as the Trainer wants it."""

    def __init__(self, detector: KnowledgeGuidedForgeryDetector, weights: LossWeights) -> None:
        super().__init__()
        self.detector, self.weights = detector, weights

    def forward(
        self, forged: torch.Tensor, pristine: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Losses of a batch of pairs; see ``training_losses``."""
        _, losses = training_losses(self.detector, forged, pristine, mask, self.weights)
        return losses

    def save_checkpoint(self, directory: Path) -> None:
        self.detector.save_pretrained(directory)

    def load_checkpoint(self, directory: Path) -> None:
        load_weights(self.detector, directory, with_knowledge=True)


def collate_pairs(pairs: Sequence[FacePair]) -> dict[str, torch.Tensor]:
    """Stack pairs to ``forged``, ``pristine`` (B, 3, S, S) and ``mask`` (B, 1, S, S)."""
    return {
        name: torch.stack([getattr(pair, name) for pair in pairs])
        for name in ("forged", "pristine", "mask")
    }


def recalibrate_batch_norm(
    model: nn.Module, pairs: FacePairs, batch_size: int, batches: int = 16
) -> None:
    """Measure the running statistics of the trained batch norms anew, for the weights as they are.

    What training leaves behind is an average over weights that have moved on since. Frozen modules
    keep theirs: they are part of the pretrained weights.

    Args:
        model: Takes images (B, 3, S, S) in [0, 1].
        pairs: Of the size S.
        batch_size: Pairs at once.
        batches: How many.
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
    # A frozen encoder stays in eval mode, or has weights that nothing trains.
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
            # The mean over all batches, each with the same weight.
            norm.momentum = None
        with torch.no_grad():
            for batch in images() if measured else ():
                model(batch)
    finally:
        for norm, momentum in measured.items():
            norm.momentum = momentum
        model.train(was_training)


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
    degradation: DegradeConfig | None = None,
    resume: bool = False,
    report_to: str = "none",
) -> KnowledgeGuidedForgeryDetector:
    """Train a detector and write it to ``output_dir``.

    Args:
        detector: With its knowledge, from ``from_preset`` or ``from_config``.
        faces: Real faces of people who are for training, from ``load_faces``.
        output_dir: Receives the detector, ``checkpoint-*``, ``log.json`` and
            ``training_run.json``. Where it holds this very training, finished, nothing is trained.
        steps: Optimiser steps.
        batch_size: Pairs for each step, so twice as many images.
        learning_rate: Highest value of a warmed-up cosine.
        weight_decay: AdamW's.
        seed: Of data, order and dropout.
        save_steps: Steps between checkpoints; None saves none.
        workers: Processes that simulate forgeries.
        weights: Of the losses' terms.
        simulator: How forgeries are drawn.
        degradation: Changes of quality that both images share.
        resume: Continue from the last checkpoint in ``output_dir``: the result is that of a run
            without interruption.
        report_to: ``none``, ``tensorboard`` or ``wandb``.

    Returns:
        The detector, in eval mode.

    Raises:
        ValueError: ``output_dir`` holds another training, or an interrupted one and ``resume`` is
            off, or a detector from elsewhere.
    """
    pairs = FacePairs(
        faces,
        length=steps * batch_size,
        size=detector.config.encoder.image_size,
        seed=seed,
        simulator=simulator,
        degradation=degradation or DegradeConfig(),
    )
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
    )
    stage = Stage1(detector, weights or LossWeights())
    settings = {
        "detector": portable_config(detector.config),
        "weights": describe_weights(detector),
        "losses": asdict(stage.weights),
        "data": pairs.describe(),
    }
    run = open_run(arguments, "train-kfd", settings, Path(output_dir) / CONFIG, resume)
    if run.finished:
        stage.load_checkpoint(run.folder)
        return detector.eval()
    trainer = ForgeryTrainer(
        model=stage, args=arguments, train_dataset=pairs, data_collator=collate_pairs
    )
    run_training(trainer, run)
    recalibrate_batch_norm(detector, pairs, batch_size)
    detector.eval()
    trainer.save_model(output_dir)
    run.finish()
    return detector
