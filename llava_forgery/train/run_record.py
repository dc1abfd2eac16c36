"""Record of a training in its folder, so that only the same training resumes there.

``training_run.json`` is written before the first step and compared whenever a training uses the
folder again. It holds fingerprints of the detector, the host and the data, and all settings that
affect the result. The frequency of logging and saving, the number of workers and the device do not,
and are omitted; so are paths, so that folders can be moved. ::

    {
      "schema_version": 1,
      "command": "train detector",
      "finished": false,
      "settings": {"max_steps": 220, "seed": 0, "faces": {"faces": "5d1f...", ...}, ...}
    }

Checkpoints hold pickled states of optimisers. They are only read if this file says that the same
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

# The Trainer writes this file last, so a checkpoint without it is incomplete.
LAST_FILE = "trainer_state.json"

# Fields of TrainingArguments that affect the result.
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
# Keys of DeepSpeed's file. The stage determines the content of checkpoints.
_DECIDING_DEEPSPEED = ("bf16", "fp16", "gradient_clipping", "optimizer", "scheduler")

# Relative tolerance; initial weights may differ in their last bits between processors.
_TOLERANCE = 1e-5
_MOST_SIZES = 1000


@dataclass(frozen=True)
class TrainingRun:
    """A training and its folder; made by :func:`open_run`."""

    folder: Path
    record: dict[str, Any]
    finished: bool
    """Whether the result exists, so that nothing is trained."""
    checkpoint: str | None
    """Checkpoint to resume from; None starts at the first step."""
    writes: bool
    """Whether this process is the one that writes."""

    def finish(self) -> None:
        """Record that the result is written."""
        if self.writes:
            write_json(self.folder / RECORD, {**self.record, "finished": True})


def open_run(
    arguments: TrainingArguments,
    command: str,
    settings: Mapping[str, Any],
    result: str | PathLike,
    resume: bool | None,
) -> TrainingRun:
    """Compare a training with the record in its folder, or write one if there is none.

    Remains of an interruption of this training (temporary files, an incomplete checkpoint) are
    removed. All processes must call it.

    Args:
        arguments: Arguments of the Trainer; ``output_dir`` is the folder of checkpoints and record.
        command: Command that trains, such as ``train detector``.
        settings: Everything besides ``arguments`` that affects the result, JSON-serializable.
        result: File that exists once the result is complete, in the same folder or another.
        resume: Whether to resume from the last checkpoint; None does so by default.

    Raises:
        ValueError: The folder holds another training, an interrupted one and ``resume`` is False,
            or results without a record.
    """
    folder, result = Path(arguments.output_dir), Path(result)
    settings = {**_trainer_settings(arguments), **settings}
    record = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "finished": False,
        # As JSON returns it, with lists for tuples.
        "settings": json.loads(json.dumps(settings, allow_nan=False)),
    }
    # The first process cleans up and writes, the others read afterwards.
    with arguments.main_process_first(desc="training_run.json"):
        return _open(folder, record, result, resume, arguments.should_save)


def check_training_folder(folder: str | PathLike, result: str | PathLike) -> None:
    """Refuse results and checkpoints without a record, before anything is loaded.

    Args:
        folder: Folder of checkpoints and record.
        result: As for :func:`open_run`.

    Raises:
        ValueError: There are such files.
    """
    folder, result = Path(folder), Path(result)
    if (folder / RECORD).is_file():
        return
    if result.exists() or any(folder.glob("checkpoint-*")):
        held = result if result.exists() else f"{folder}/checkpoint-*"
        raise ValueError(
            f"{held} exists, but not {folder / RECORD}, which every training writes: it is from "
            "elsewhere, and would be resumed or replaced. Give another output folder, or move it "
            "away"
        )


def training_folder(output_dir: str | PathLike) -> Path:
    """Folder of checkpoints and record for a training whose output is replaced as a whole."""
    output_dir = Path(output_dir)
    return output_dir.with_name(output_dir.name + "-training")


def last_checkpoint(directory: str | PathLike) -> str | None:
    """The newest complete checkpoint in a training's folder; None if there is none."""
    whole = [path for path in Path(directory).glob("checkpoint-*") if _is_whole(path)]
    return max(map(str, whole), key=_step_of, default=None)


def describe_weights(model: nn.Module) -> dict[str, float]:
    """Mean magnitudes of a model's trained and frozen weights, which identify them.

    Args:
        model: Model before the first step.
    """
    trained, frozen = [], []
    for parameter in model.parameters():
        (trained if parameter.requires_grad else frozen).append(parameter)
    return {"trained": mean_size(trained), "frozen": mean_size(frozen)}


def mean_size(parameters: Iterable[nn.Parameter]) -> float:
    """Mean absolute value of all parameters; 0 if there are none."""
    total, count = 0.0, 0
    for parameter in parameters:
        total += float(parameter.detach().abs().sum(dtype=torch.float64))
        count += parameter.numel()
    return total / max(count, 1)


def describe_adapter_weights(model: nn.Module) -> float:
    """Mean magnitude of the weights that an adapter's training changes, except LoRA's A matrices.

    New A matrices are drawn on the host's device, and devices draw differently; the B matrices,
    zero until they are trained, distinguish a new LoRA from another.
    """
    named = model.named_parameters()
    return mean_size(p for name, p in named if p.requires_grad and ".lora_A." not in name)


def describe_host(host: PreTrainedModel, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Description of a bare host for the record.

    Args:
        host: Host, in which LoRA may already be injected.
        fingerprint: Output of ``host_fingerprint``.
    """
    kinds = (name for name in ("4bit", "8bit") if getattr(host, f"is_loaded_in_{name}", False))
    return {**fingerprint, "dtype": str(host.dtype), "quantization": next(kinds, None)}


def describe_lora(model: nn.Module) -> dict[str, Any] | None:
    """The LoRA of peft's wrapper for the record; None for a model without it."""
    if not isinstance(model, PeftModel):
        return None
    config = model.active_peft_config
    return {"r": config.r, "alpha": config.lora_alpha, "dropout": config.lora_dropout}


def describe_tokens(sample: Mapping[str, Any]) -> str:
    """Digest of a sample's tokens and labels, which depends on tokenizer, template and wording.

    Args:
        sample: First sample, with ``input_ids`` and ``labels`` (T,).
    """
    return fingerprint_of(sample["input_ids"].tolist(), sample["labels"].tolist())


def files_fingerprint(names: Sequence[Any], files: Sequence[Path]) -> str:
    """Fingerprint of files by their descriptions and the sizes of some.

    Times and folders are ignored, so that data can be copied.

    Args:
        names: Description of each file without opening it, JSON-serializable.
        files: Paths of the files.
    """
    sizes = [file.stat().st_size if file.is_file() else None for file in spread(files)]
    return fingerprint_of(names, sizes)


def spread(files: Sequence[Any]) -> Sequence[Any]:
    """At most a thousand evenly spaced files, where checking millions would take too long."""
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
        # Restore an earlier result that was moved aside to be replaced.
        remove_leftovers(result.parent)
    check_training_folder(folder, result)
    before = read_json(folder / RECORD) if (folder / RECORD).is_file() else None
    whole = last_checkpoint(folder)
    if before is not None and (result.exists() or whole):
        _compare(before, record, folder, result)
        finished = bool(before.get("finished")) and result.exists()
    else:
        # Before its first checkpoint a training leaves nothing that could be mixed.
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
        logger.warning("%s holds no checkpoint to resume from: starting again", folder)
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
            f"{folder} holds {state} training with other settings: {'; '.join(found)}. Repeat it "
            "unchanged, give another output folder, or remove "
            f"{' and '.join(map(str, both))} to train again"
        )


def _tidy(folder: Path) -> None:
    """Remove what an interruption of this training left behind."""
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
    # Enumerations are recorded by their values.
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
