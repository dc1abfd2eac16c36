"""A running average of the weights during training, saved in checkpoints with them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from transformers import TrainerCallback

from llava_forgery.files import read_json, write_json

# Within a checkpoint: the folder of the averaged model, and the file with its number of steps.
_FOLDER, _COUNT = "averaged", "steps.json"


class RunningAverage(TrainerCallback):
    """Exponential moving average of a model's weights, updated after each step; buffers are copied.

    Args:
        model: Model that is trained.
        decay: Decay in [0, 1); 0 keeps no average.

    Raises:
        ValueError: The decay is out of range.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"average is a decay in [0, 1), got {decay}")
        self.decay, self._model = decay, model
        self._averaged = AveragedModel(model, multi_avg_fn=self._mix) if decay else None

    @property
    def model(self) -> Any:
        """The averaged model; the model itself if there is no average, or no longer."""
        return self._model if self._averaged is None else self._averaged.module

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.update()

    def update(self) -> None:
        """Add the current weights to the average."""
        if self._averaged is not None:
            self._averaged.to(next(self._model.parameters()).device)
            self._averaged.update_parameters(self._model)

    def take(self) -> None:
        """Copy the averaged weights, if any, to the model, and end averaging."""
        if self._averaged is not None:
            self._model.load_state_dict(self._averaged.module.state_dict())
            self._averaged = None

    def save(self, checkpoint: Path, write: Callable[[Any, Path], object]) -> None:
        """Write the averaged model, if there is one, and its number of steps."""
        if self._averaged is not None:
            (checkpoint / _FOLDER).mkdir(parents=True, exist_ok=True)
            write(self._averaged.module, checkpoint / _FOLDER)
            write_json(checkpoint / _FOLDER / _COUNT, int(self._averaged.n_averaged))

    def load(self, checkpoint: Path, read: Callable[[Any, Path], object]) -> None:
        """Read the output of :meth:`save`."""
        if self._averaged is not None:
            read(self._averaged.module, checkpoint / _FOLDER)
            self._averaged.n_averaged.fill_(read_json(checkpoint / _FOLDER / _COUNT))

    def _mix(
        self, averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor
    ) -> None:
        # Early in training the initial weights would count too much.
        decay = min(self.decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averaged, current, 1 - decay)
