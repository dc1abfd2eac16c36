"""What a training is of, kept in its folder, so that only the same training goes on there.

``training_run.json`` is written before the first step and compared whenever a training meets the
folder again: fingerprints of the detector, the host and the data, and all settings that decide the
result. How often is logged or saved, how many processes prepare data, and on which device, decide
nothing and are left out; paths as well, so that folders can be moved. ::

    {
      "schema_version": 1,
      "command": "train detector",
      "finished": false,
      "settings": {"max_steps": 220, "seed": 0, "faces": {"faces": "5d1f...", ...}, ...}
    }

Checkpoints hold pickled states of optimisers. They are read only where this file says that this
training wrote them.
"""

import json
import logging
import math
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from llava_forgery.files import fingerprint_of, read_json, remove_leftovers, write_json

logger = logging.getLogger(__name__)

RECORD = "training_run.json"
SCHEMA_VERSION = 1

# The Trainer writes this file last: a checkpoint without it was interrupted.
LAST_FILE = "trainer_state.json"

# Of TrainingArguments: what decides the result.
_DECIDING = (
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "bf16",
    "data_seed",
    "dataloader_drop_last",
    "fp16",
    "gradient_accumulation_steps",
    "label_smoothing_factor",
    "learning_rate",
    "lr_scheduler_kwargs",
    "lr_scheduler_type",
    "max_grad_norm",
    "max_steps",
    "neftune_noise_alpha",
    "num_train_epochs",
    "optim",
    "optim_args",
    "per_device_train_batch_size",
    "seed",
    "tf32",
    "use_liger_kernel",
    "warmup_steps",
    "weight_decay",
    "world_size",
)
# Of DeepSpeed's file. The stage decides what checkpoints hold.
_DECIDING_DEEPSPEED = ("bf16", "fp16", "gradient_clipping", "optimizer", "scheduler")

# Relative; the first weights may differ in their last bits between processors.
_TOLERANCE = 1e-5
_MOST_SIZES = 1000


@dataclass(frozen=True)
class TrainingRun:
    """A training and its folder; made by :func:`open_run`."""

    folder: Path
    record: dict[str, Any]
    finished: bool
    """The result is there: nothing is to be trained."""
    checkpoint: str | None
    """The one to go on from; None begins at the first step."""
    writes: bool
    """Whether this process is the one that writes."""

    def finish(self) -> None:
        """Note that the result is written."""
        if self.writes:
            write_json(self.folder / RECORD, {**self.record, "finished": True})


def open_run(
    arguments: TrainingArguments,
    command: str,
    settings: Mapping[str, Any],
    result: str | PathLike,
    resume: bool | None,
) -> TrainingRun:
    """Compare a training with what its folder holds, and write its record where there is none.

    What an interruption left of this training (temporary files, half a checkpoint) is removed. All
    processes call it.

    Args:
        arguments: The Trainer's; ``output_dir`` is the folder of checkpoints and record.
        command: What trains, such as ``train detector``.
        settings: What decides the result beside ``arguments``, as JSON takes it.
        result: The file without which the result is not there, in the same folder or another.
        resume: Whether to go on from the last checkpoint; None does so without being asked.

    Raises:
        ValueError: The folder holds another training, or one that is interrupted and ``resume`` is
            off, or results that no record tells of.
    """
    folder, result = Path(arguments.output_dir), Path(result)
    settings = {**_trainer_settings(arguments), **settings}
    record = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "finished": False,
        # As JSON gives it back, with lists for tuples.
        "settings": json.loads(json.dumps(settings, allow_nan=False)),
    }
    # The first process tidies up and writes, the others look after it.
    with arguments.main_process_first(desc="training_run.json"):
        return _open(folder, record, result, resume, arguments.should_save)


def check_training_folder(folder: str | PathLike, result: str | PathLike) -> None:
    """Refuse results and checkpoints that no record tells of; before anything is loaded.

    Args:
        folder: Of checkpoints and record.
        result: As for :func:`open_run`.

    Raises:
        ValueError: There are some.
    """
    folder, result = Path(folder), Path(result)
    if (folder / RECORD).is_file():
        return
    if result.exists() or any(folder.glob("checkpoint-*")):
        held = result if result.exists() else f"{folder}/checkpoint-*"
        raise ValueError(
            f"{held} is there, but no {folder / RECORD}, which every training writes: it is from "
            "elsewhere, and would be resumed or replaced. Give another output folder, or move it "
            "away"
        )


def training_folder(output_dir: str | PathLike) -> Path:
    """Where checkpoints and record lie of a training whose output is replaced as a whole."""
    output_dir = Path(output_dir)
    return output_dir.with_name(output_dir.name + "-training")


def last_checkpoint(directory: str | PathLike) -> str | None:
    """The newest whole checkpoint in a training's folder, None if there is none."""
    whole = [path for path in Path(directory).glob("checkpoint-*") if _is_whole(path)]
    return max(map(str, whole), key=_step_of, default=None)


def describe_weights(model: nn.Module) -> dict[str, float]:
    """Mean sizes of a model's trained and frozen weights: other weights share them only by chance.

    Args:
        model: As it is before the first step.
    """
    trained, frozen = [], []
    for parameter in model.parameters():
        (trained if parameter.requires_grad else frozen).append(parameter)
    return {"trained": mean_size(trained), "frozen": mean_size(frozen)}


def mean_size(parameters: Iterable[nn.Parameter]) -> float:
    """The mean absolute value of all; 0 of none."""
    total, count = 0.0, 0
    for parameter in parameters:
        total += float(parameter.detach().abs().sum(dtype=torch.float64))
        count += parameter.numel()
    return total / max(count, 1)


def describe_adapter_weights(model: nn.Module) -> float:
    """The mean size of what an adapter's training changes, but for LoRA's first halves.

    A new one is drawn where the host lies, and devices draw differently; the second halves, zero
    until they are trained, tell a new LoRA from another.
    """
    named = model.named_parameters()
    return mean_size(p for name, p in named if p.requires_grad and ".lora_A." not in name)


def describe_host(host: PreTrainedModel, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """A bare host for the record.

    Args:
        host: In which LoRA may lie already.
        fingerprint: From ``host_fingerprint``.
    """
    kinds = (name for name in ("4bit", "8bit") if getattr(host, f"is_loaded_in_{name}", False))
    return {**fingerprint, "dtype": str(host.dtype), "quantization": next(kinds, None)}


def describe_lora(model: nn.Module) -> dict[str, Any] | None:
    """The LoRA of peft's wrapper for the record; None of a model without it."""
    if not isinstance(model, PeftModel):
        return None
    config = model.active_peft_config
    return {"r": config.r, "alpha": config.lora_alpha, "dropout": config.lora_dropout}


def describe_tokens(sample: Mapping[str, Any]) -> str:
    """A digest of a sample's tokens and labels, in which tokenizer, template and wording show.

    Args:
        sample: The first one, with ``input_ids`` and ``labels`` (T,).
    """
    return fingerprint_of(sample["input_ids"].tolist(), sample["labels"].tolist())


def files_fingerprint(names: Sequence[Any], files: Sequence[Path]) -> str:
    """Of files by what is known of them and the sizes of some.

    Times and folders do not count, so that data can be copied.

    Args:
        names: What is known of each without opening it, as JSON takes it.
        files: Where they lie.
    """
    sizes = [file.stat().st_size if file.is_file() else None for file in spread(files)]
    return fingerprint_of(names, sizes)


def spread(files: Sequence[Any]) -> Sequence[Any]:
    """At most a thousand of all, evenly: what is looked at where millions would take too long."""
    return files[:: max(1, -(-len(files) // _MOST_SIZES))]


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """A text for each value that differs, with both values; nested names are joined by dots."""
    found = []
    for name in sorted({*before, *now}):
        one, two = before.get(name), now.get(name)
        if isinstance(one, dict) and isinstance(two, dict):
            found += differences(one, two, f"{prefix}{name}.")
        elif not _same(one, two):
            found.append(f"{prefix}{name} was {_short(one)}, now {_short(two)}")
    return found


def _open(
    folder: Path, record: dict[str, Any], result: Path, resume: bool | None, writes: bool
) -> TrainingRun:
    if writes:
        # An earlier result that was moved aside when it was to be replaced comes back.
        remove_leftovers(result.parent)
    check_training_folder(folder, result)
    before = read_json(folder / RECORD) if (folder / RECORD).is_file() else None
    whole = last_checkpoint(folder)
    if before is not None and (result.exists() or whole):
        _compare(before, record, folder, result)
        finished = bool(before.get("finished")) and result.exists()
    else:
        # What was written before its first checkpoint leaves nothing that could be mixed.
        finished = False
    if writes:
        _tidy(folder)
    if finished:
        logger.info("this training is finished: %s is its result, nothing is trained", result)
        return TrainingRun(folder, record, True, None, writes)
    if whole and resume is False:
        raise ValueError(
            f"{folder} holds checkpoints of this training, which was interrupted: continue it "
            "(--resume), or give another output folder"
        )
    if resume and not whole:
        logger.warning("%s holds no checkpoint to resume from: starting anew", folder)
    if writes:
        write_json(folder / RECORD, record)
    return TrainingRun(folder, record, False, whole, writes)


def _compare(before: dict[str, Any], now: dict[str, Any], folder: Path, result: Path) -> None:
    found = differences(
        {"command": before.get("command"), **before.get("settings", {})},
        {"command": now["command"], **now["settings"]},
    )
    if before.get("schema_version") != SCHEMA_VERSION:
        found = [f"schema_version was {before.get('schema_version')}, now {SCHEMA_VERSION}"]
    if found:
        state = "a finished" if before.get("finished") else "an interrupted"
        both = [folder] if result.parent == folder else [folder, result.parent]
        raise ValueError(
            f"{folder} holds {state} training that was another one: {'; '.join(found)}. Repeat it "
            "as it was, give another output folder, or remove "
            f"{' and '.join(map(str, both))} to train anew"
        )


def _tidy(folder: Path) -> None:
    """Remove what an interruption left of this training."""
    for path in folder.glob("checkpoint-*"):
        if not _is_whole(path):
            logger.warning("%s was interrupted while it was written and is removed", path)
            shutil.rmtree(path)
    remove_leftovers(folder)


def _is_whole(checkpoint: Path) -> bool:
    try:
        return _step_of(checkpoint.name) >= 0 and bool(read_json(checkpoint / LAST_FILE))
    except (OSError, ValueError):
        return False


def _step_of(checkpoint: str) -> int:
    found = re.search(r"checkpoint-(\d+)$", checkpoint)
    return int(found.group(1)) if found else -1


def _trainer_settings(arguments: TrainingArguments) -> dict[str, Any]:
    values = {name: getattr(arguments, name) for name in _DECIDING}
    # Enumerations by their values.
    values = {name: getattr(value, "value", value) for name, value in values.items()}
    config = arguments.deepspeed
    if config is None:
        return {**values, "deepspeed": None}
    config = config if isinstance(config, dict) else read_json(config)
    stage = config.get("zero_optimization", {}).get("stage", 0)
    parts = {name: config[name] for name in _DECIDING_DEEPSPEED if name in config}
    return {**values, "deepspeed": {"stage": stage, **parts}}


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, float) and isinstance(two, float):
        return math.isclose(one, two, rel_tol=_TOLERANCE)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(_same, one, two))
    return one == two


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:60]}... ({fingerprint_of(value)[:8]})"
