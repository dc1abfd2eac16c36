"""Additions of both stages to the transformers Trainer: checkpoints, logs, exact resuming."""

import os
import shutil
import sys
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llava_forgery.files import write_failure, write_json
from llava_forgery.noise import notices_wanted
from llava_forgery.train.deepspeed import (
    deepspeed_file,
    gathered_parameters,
    load_engine,
    make_contiguous,
    save_engine,
)
from llava_forgery.train.run_record import LAST_FILE, TrainingRun, last_checkpoint

_SCHEDULE = "scheduler.pt"


class Trainable(nn.Module, ABC):
    """A model that the :class:`ForgeryTrainer` trains."""

    @abstractmethod
    def save_checkpoint(self, directory: Path) -> None:
        """Write the trained parameters."""

    @abstractmethod
    def load_checkpoint(self, directory: Path) -> None:
        """Read the trained parameters, strictly."""

    def learning_rates(self) -> dict[nn.Parameter, float]:
        """Peak learning rates of parameters that do not use the common one."""
        return {}

    def saved_parameters(self) -> list[nn.Parameter]:
        """Parameters that :meth:`save_checkpoint` reads; under ZeRO-3 others are empty then."""
        return list(self.parameters())


class ForgeryTrainer(Trainer):
    """Saves and loads checkpoints through the model, and logs all of its loss terms.

    The model's forward returns a dict with ``loss`` and any number of further scalars.
    """

    model: Trainable

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Our losses are means over the batch; the Trainer divides by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        self._terms: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._norms = [
            module
            for module in self.model.modules()
            if isinstance(module, nn.BatchNorm2d)
            and any(weight.requires_grad for weight in module.parameters())
        ]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not self._norms or self.accelerator.num_processes == 1:
            return super().training_step(*args, **kwargs)
        before = running_statistics(self._norms)
        loss = super().training_step(*args, **kwargs)
        # Only the first process writes them, and its own batches may never show a face.
        after = self.accelerator.gather(running_statistics(self._norms)[None])
        fill_statistics(self._norms, before, after)
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Any:
        outputs = model(**inputs)
        for name, value in outputs.items():
            if name != "loss":
                self._terms[name].append(value.detach())
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        made = self.optimizer is None
        optimiser = super().create_optimizer(model)
        # Must be done here: the schedule is made next, from the rates of the groups.
        own = self.model.learning_rates() if made else {}
        for group in list(optimiser.param_groups) if own else ():
            apart = [p for p in group["params"] if p in own]
            group["params"] = [p for p in group["params"] if p not in own]
            for rate in sorted({own[p] for p in apart}):
                params = [p for p in apart if own[p] == rate]
                optimiser.add_param_group({**group, "params": params, "lr": rate})
        return optimiser

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            for name, values in self._terms.items():
                logs[name] = round(float(torch.stack(values).mean()), 4)
            self._terms.clear()
        super().log(logs, *args, **kwargs)

    def save_model(
        self, output_dir: str | PathLike | None = None, _internal_call: bool = False
    ) -> None:
        """Write the model; all processes call it, and the first one writes."""
        folder = Path(output_dir or self.args.output_dir)
        with gathered_parameters(self.model.saved_parameters()) as writes:
            if writes:
                try:
                    self.model.save_checkpoint(folder)
                except Exception as error:
                    failure = write_failure(error, folder)
                    if failure is None or _internal_call:
                        raise
                    raise self._stopped(failure) from error
        # The folder is renamed into place, and files that another process wrote there before, such
        # as the state of its random numbers, would be lost.
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        try:
            super()._save_checkpoint(*args, **kwargs)
        except Exception as error:
            failure = write_failure(error, folder)
            if failure is None:
                raise
            # An incomplete checkpoint is useless and takes the space that the next one needs.
            shutil.rmtree(folder, ignore_errors=True)
            raise self._stopped(failure) from error

    def _stopped(self, failure: OSError) -> OSError:
        """The error of a failed write, with the state of the training."""
        kept = last_checkpoint(self.args.output_dir)
        left = f"{kept} is complete: free space and resume" if kept else "there is no checkpoint"
        reason = f"{failure.strerror}; training stopped at step {self.state.global_step}, {left}"
        return OSError(failure.errno, reason, failure.filename)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        (model or self.model).load_checkpoint(Path(resume_from_checkpoint))

    # The Trainer can only exclude the host from DeepSpeed's checkpoints for peft's models.
    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        save_engine(self.model_wrapped, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / _SCHEDULE)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        if not self.is_deepspeed_enabled:
            return super()._prepare_for_training(
                max_steps, train_dataloader, resume_from_checkpoint
            )
        make_contiguous(self.model)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if resume_from_checkpoint:
            load_engine(self.model_wrapped, resume_from_checkpoint)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared


def running_statistics(norms: Sequence[nn.BatchNorm2d]) -> torch.Tensor:
    """Number of batches, means and variances of each batch norm, as one (N,) float64."""
    parts = [
        part.reshape(-1).double()
        for norm in norms
        for part in (norm.num_batches_tracked, norm.running_mean, norm.running_var)
    ]
    return torch.cat(parts)


@torch.no_grad()
def fill_statistics(
    norms: Sequence[nn.BatchNorm2d], before: torch.Tensor, after: torch.Tensor
) -> None:
    """Fill batch norms as if one process had seen the batches of P processes one after another.

    Args:
        norms: Batch norms, all with a momentum.
        before: (N,) from :func:`running_statistics` before a step, the same in all processes.
        after: (P, N) from all processes after the step.
    """
    sizes = [1 + 2 * norm.num_features for norm in norms]
    parts = zip(norms, before.split(sizes), after.split(sizes, dim=1), strict=True)
    for norm, start, ends in parts:
        state = start.clone()
        for end in ends:
            batches = end[0] - start[0]
            # An update keeps this share of the current value and adds the measured one.
            kept = (1 - norm.momentum) ** batches
            state[1:] = kept * state[1:] + (end[1:] - kept * start[1:])
            state[0] += batches
        norm.num_batches_tracked.copy_(state[0])
        norm.running_mean.copy_(state[1 : 1 + norm.num_features])
        norm.running_var.copy_(state[1 + norm.num_features :])


def training_arguments(
    output_dir: str | PathLike,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
    save_steps: int | None,
    workers: int,
    report_to: str = "none",
    deepspeed: str | PathLike | None = None,
    schedule: str = "cosine",
    **more: Any,
) -> TrainingArguments:
    """Arguments of the Trainer that both stages share.

    Args:
        output_dir: Folder of the training.
        steps: Number of optimiser steps; -1 to use ``num_train_epochs``.
        batch_size: Number of samples per step and process.
        learning_rate: Peak learning rate, after a warm-up over a tenth of the steps.
        weight_decay: Weight decay of AdamW.
        seed: Seed of data order, dropout and the like.
        save_steps: Number of steps between checkpoints; None saves none.
        workers: Number of processes that prepare data; 0 prepares it in the main process.
        report_to: ``none``, ``tensorboard`` or ``wandb``.
        deepspeed: DeepSpeed's JSON file; None trains without it.
        schedule: Name in transformers of the schedule after the warm-up.
        more: Any other fields of TrainingArguments.
    """
    several = deepspeed is not None or int(os.environ.get("WORLD_SIZE", "1")) > 1
    return TrainingArguments(
        output_dir=str(output_dir),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type=schedule,
        warmup_steps=max(1, steps // 10) if steps > 0 else 0.1,
        weight_decay=weight_decay,
        seed=seed,
        save_strategy="no" if save_steps is None else "steps",
        save_steps=save_steps or 500,
        save_total_limit=2,
        logging_steps=10,
        report_to=report_to,
        dataloader_num_workers=workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        # Without a terminal the log has only lines and no bars.
        disable_tqdm=not sys.stderr.isatty(),
        deepspeed=deepspeed_file(deepspeed),
        # Without it the Trainer counts one process if several run on CPUs.
        use_cpu=several and not torch.cuda.is_available(),
        **more,
    )


def run_training(trainer: ForgeryTrainer, run: TrainingRun) -> None:
    """Train, from the run's checkpoint if it has one, and keep the log as JSON.

    Args:
        trainer: New trainer.
        run: Unfinished run from :func:`llava_forgery.train.run_record.open_run`. The caller writes
            the result and then calls its ``finish``.
    """
    if not notices_wanted():
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
    checkpoint = run.checkpoint
    state = TrainerState.load_from_json(str(Path(checkpoint) / LAST_FILE)) if checkpoint else None
    if state is not None and state.global_step >= state.max_steps:
        # Interrupted after its last step; the Trainer would add another.
        trainer._load_from_checkpoint(checkpoint)
        trainer.state = state
    else:
        trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.is_world_process_zero():
        write_json(run.folder / "log.json", trainer.state.log_history)
