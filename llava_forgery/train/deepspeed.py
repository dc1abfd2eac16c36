"""Several processes under DeepSpeed: which one writes, and weights partitioned among them.

ZeRO-2 partitions the optimiser's state and the gradients; ZeRO-3 also the weights, so that a
parameter is empty outside its own module's call. Each process loads the whole host (into main
memory), which is partitioned when training starts: fingerprint and initialisation need whole
weights.
"""

import os
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import TrainingArguments
from transformers.integrations.deepspeed import (
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)

from llava_forgery.files import some_names
from llava_forgery.optional import require

# Environment variable of torch that overrides the argument of torch.load.
_FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def deepspeed_file(path: str | PathLike | None) -> str | None:
    """Check that DeepSpeed and its JSON file are available.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: DeepSpeed is not installed; the message names the extra.
    """
    if path is None:
        return None
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"there is no file {path}; scripts/zero2.json and scripts/zero3.json are ready to use"
        )
    require("deepspeed", extra="deepspeed", feature="training with --deepspeed")
    return str(path)


@contextmanager
def gathered_parameters(parameters: Iterable[nn.Parameter]) -> Iterator[bool]:
    """Gather partitioned parameters; every process must enter.

    Args:
        parameters: Parameters that are read inside; others may be empty there.

    Yields:
        Whether this process is the one that writes. The others wait for it at the end.
    """
    shared = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    gathered: Any = nullcontext()
    if shared:
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters(shared)
    several = dist.is_available() and dist.is_initialized()
    with gathered:
        yield not several or dist.get_rank() == 0
    if several:
        dist.barrier()


@contextmanager
def without_zero3_init(arguments: TrainingArguments) -> Iterator[None]:
    """Context in which models are loaded whole, although the parsed flags ask for ZeRO-3.

    Once such arguments exist, transformers partitions every model that it loads, and empty weights
    have no fingerprint.

    Args:
        arguments: Arguments of the Trainer.
    """
    config = getattr(arguments, "hf_deepspeed_config", None)
    if config is not None:
        unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            set_hf_deepspeed_config(config)


def make_contiguous(model: nn.Module) -> None:
    """Make all weights contiguous, as DeepSpeed sends their raw memory."""
    for parameter in model.parameters():
        # `contiguous()` is not enough: it keeps the layout of 1 x 1 kernels.
        if parameter.dim() and parameter.stride(-1) != 1:
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)


@contextmanager
def exclude_from_deepspeed(module: nn.Module, name: str, device: torch.device) -> Iterator[None]:
    """Hide a frozen submodule from DeepSpeed, which would partition, cast and send it.

    It remains a callable attribute, in its own dtype and whole on each device. DeepSpeed cannot
    send parameters without dimensions, such as a temperature.

    Args:
        module: Owner of the submodule.
        name: Name of the submodule.
        device: Device of the submodule, since nothing else moves it there.
    """
    part = module._modules.pop(name)
    module.__dict__[name] = part.to(device)
    try:
        yield
    finally:
        del module.__dict__[name]
        setattr(module, name, part)


def save_engine(engine: Any, directory: str) -> None:
    """Write DeepSpeed's state for resuming, without the frozen weights and so without the host.

    A head that shares its weight with the embedding is the exception: DeepSpeed has the weight
    under only one of its names.
    """
    engine.save_checkpoint(directory, exclude_frozen_parameters=True)


def fill_trained(src: dict[str, torch.Tensor], dst: nn.Module) -> None:
    """Fill a module from a state without frozen weights; everything trained must be in it.

    Args:
        src: Tensors by name.
        dst: Module to fill; DeepSpeed passes both by these names.

    Raises:
        ValueError: A trained parameter is missing, or a name is unknown.
    """
    own = dst.state_dict()
    trained = {name for name, p in dst.named_parameters() if p.requires_grad}
    missing, unknown = sorted(trained - set(src)), sorted(set(src) - set(own))
    if missing or unknown:
        raise ValueError(
            f"the checkpoint belongs to another training: missing {some_names(missing) or 'none'}, "
            f"unknown {some_names(unknown) or 'none'}"
        )
    dst.load_state_dict({**own, **src})


@contextmanager
def _weights_only() -> Iterator[None]:
    """Context in which ``torch.load`` runs no code of a file, although DeepSpeed asks it to."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    # Plain records of numbers.
    records = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
    before = os.environ.get(_FORCED)
    os.environ[_FORCED] = "1"
    try:
        with torch.serialization.safe_globals(records):
            yield
    finally:
        if before is None:
            del os.environ[_FORCED]
        else:
            os.environ[_FORCED] = before


def load_engine(engine: Any, directory: str) -> None:
    """Read the output of :func:`save_engine`: tensors, numbers and DeepSpeed's records of them.

    Raises:
        ValueError: There is nothing to read, or something that could run code, which was not run.
    """
    try:
        with _weights_only():
            path, _ = engine.load_checkpoint(directory, custom_load_fn=fill_trained)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{directory} is refused: its state of DeepSpeed holds more than tensors and numbers, "
            f"which could run code of whoever wrote it ({str(error).splitlines()[0]})"
        ) from error
    if path is None:
        raise ValueError(
            f"{directory} holds no state of DeepSpeed: it was written without --deepspeed"
        )
