"""Validation during a detector's training on held-out people, and its best state."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llava_forgery.files import read_json, write_json
from llava_forgery.kfd.checkpoint import load_weights
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.simulate.pairs import FacePairs

BEST, HISTORY = "best", "validation.json"
_AT_ONCE = 8


class Validation(TrainerCallback):
    """Measures a detector every few steps on fixed pairs, and keeps the best state.

    ``validation.json`` lists ``{"step", "auc", "loss"}`` (cross-entropy of the score); ``best/``
    holds the detector with the highest AUC, the first of equal ones. Both are also correct after an
    interruption: measurements after the checkpoint are repeated.

    Args:
        candidate: Returns the detector as it would be written now.
        pairs: Forged and pristine faces of people who are not trained on.
        every: Number of steps between two measurements.
        folder: Folder of the training.

    Raises:
        ValueError: ``every`` is not positive.
    """

    def __init__(
        self,
        candidate: Callable[[], KnowledgeGuidedForgeryDetector],
        pairs: FacePairs,
        every: int,
        folder: str | PathLike,
    ) -> None:
        if every < 1:
            raise ValueError(f"steps between two validations must be positive, got {every}")
        self.candidate, self.pairs, self.every = candidate, pairs, every
        self.folder = Path(folder)
        self.history: list[dict[str, float]] = []

    def describe(self) -> dict[str, Any]:
        """Everything besides the weights that the figures depend on, JSON-serializable."""
        return {"every": self.every, "pairs": self.pairs.describe()}

    @property
    def best(self) -> dict[str, float]:
        """The measurement of the detector in ``best/``."""
        return max(self.history, key=lambda figures: figures["auc"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step:
            kept = self.folder / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / HISTORY
            self.history = read_json(kept)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        last = state.global_step == state.max_steps
        if not state.is_world_process_zero or (state.global_step % self.every and not last):
            return
        detector = self.candidate()
        figures = {"step": state.global_step, **measure(detector, self.pairs)}
        self.history.append(figures)
        if self.best is figures:
            detector.save_pretrained(self.folder / BEST)
        write_json(self.folder / HISTORY, self.history)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.is_world_process_zero:
            folder = self.folder / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            write_json(folder / HISTORY, self.history)

    def take_best(self, detector: KnowledgeGuidedForgeryDetector) -> None:
        """Load the weights in ``best/`` into ``detector``."""
        load_weights(detector, self.folder / BEST, with_knowledge=True)


@torch.no_grad()
def measure(detector: KnowledgeGuidedForgeryDetector, pairs: FacePairs) -> dict[str, float]:
    """AUC and cross-entropy of a detector's scores of both faces of each pair.

    The detector's mode is restored.
    """
    was_training = detector.training
    detector.eval()
    device = detector.text_features.device
    scores: list[torch.Tensor] = []
    for start in range(0, len(pairs), _AT_ONCE):
        batch = [pairs[i] for i in range(start, min(start + _AT_ONCE, len(pairs)))]
        images = torch.stack([pair.forged for pair in batch] + [pair.pristine for pair in batch])
        scores.append(detector(images.to(device)).score.double().cpu().view(2, -1))
    detector.train(was_training)
    fake, real = torch.cat(scores, dim=1).numpy()
    above = np.sign(fake[:, None] - real).mean()
    labels = torch.cat([torch.ones(len(fake)), torch.zeros(len(real))]).double()
    loss = binary_cross_entropy(torch.from_numpy(np.concatenate([fake, real])), labels)
    return {"auc": round(float(above + 1) / 2, 4), "loss": round(float(loss), 4)}
