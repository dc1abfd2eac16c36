"""LoRA on the host's language model only, through peft."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard, cast

import torch
from torch import nn

from llava_forgery.files import read_json, write_json
from llava_forgery.hosts.quantized import is_quantized
from llava_forgery.optional import lazy
from llava_forgery.weights import load_tensors

if TYPE_CHECKING:
    import peft
    from transformers import PreTrainedModel
else:
    peft = lazy("peft")

# peft's names.
LORA_CONFIG, LORA_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_peft(model: nn.Module) -> TypeGuard[peft.PeftModel]:
    """Whether a model is peft's wrapper, determined without importing peft, which takes long."""
    return hasattr(model, "get_base_model")


def without_peft(model: PreTrainedModel | peft.PeftModel) -> PreTrainedModel:
    """The host inside peft's wrapper, if it has one; LoRA's layers stay in it."""
    return cast("PreTrainedModel", model.get_base_model() if is_peft(model) else model)


@dataclass(frozen=True)
class LoraSettings:
    """LoRA's sizes; the official code has rank 32, alpha 32, dropout 0.1 on q, k, v, o."""

    r: int = 32
    """Rank."""
    alpha: int = 32
    """Scale; the update is scaled by alpha / r."""
    dropout: float = 0.1
    """Dropout on the input of the update."""
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Names of the linear layers."""

    def __post_init__(self) -> None:
        if self.r < 1 or self.alpha < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"expected r and alpha of at least 1 and dropout in [0, 1), got r={self.r}, "
                f"alpha={self.alpha}, dropout={self.dropout}"
            )


def lora_config(host: PreTrainedModel, settings: LoraSettings | peft.LoraConfig) -> peft.LoraConfig:
    """peft's configuration with the language model's layers as targets.

    A plain list of names would also match the vision tower, whose attention layers have the same
    names, so the names are anchored at the language model.

    Args:
        host: A transformers image-text-to-text model.
        settings: Sizes; or peft's own configuration, whose ``target_modules`` are names of layers,
            "all-linear", a regular expression, or None for those of :class:`LoraSettings`.

    Raises:
        ValueError: The language model has no such layers, or a regular expression matches layers
            outside of it.
    """
    decoder = host.get_decoder()
    prefix = next(name for name, module in host.named_modules() if module is decoder)
    if isinstance(settings, peft.LoraConfig):
        config = copy.deepcopy(settings)
        wanted: Collection[str] | str = config.target_modules or LoraSettings.projections
    else:
        wanted = settings.projections
        config = peft.LoraConfig(
            r=settings.r, lora_alpha=settings.alpha, lora_dropout=settings.dropout
        )
    if wanted == "all-linear":
        linear = (name for name, m in decoder.named_modules() if isinstance(m, nn.Linear))
        wanted = {name.rsplit(".", 1)[-1] for name in linear}
    if isinstance(wanted, str):
        pattern = told = wanted
    else:
        # peft makes a set of a list.
        names = sorted(wanted) if isinstance(wanted, set) else list(wanted)
        told = ", ".join(names)
        pattern = rf"{re.escape(prefix)}\..*\.({'|'.join(map(re.escape, names))})"
    found = [name for name, _ in host.named_modules() if re.fullmatch(pattern, name)]
    if not found:
        raise ValueError(
            f"the host's language model ({type(decoder).__name__}) has no layers named {told}; "
            "give LoraSettings(projections=...) or LoraConfig(target_modules=...) its names"
        )
    beyond = [name for name in found if not name.startswith(f"{prefix}.")]
    if beyond:
        raise ValueError(
            f"target_modules {told} reaches {beyond[0]}, outside the language model; give names "
            "of layers, or anchor the regular expression"
        )
    config.target_modules, config.task_type = pattern, "CAUSAL_LM"
    return config


def load_lora(
    host: PreTrainedModel, directory: str | PathLike, trainable: bool = False
) -> peft.PeftModel:
    """Attach a saved LoRA to a host; peft itself would only warn if files do not match.

    Args:
        host: Host without peft's wrapper.
        directory: Folder of peft's files.
        trainable: Whether the LoRA will be trained further.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: One is damaged, or belongs to another host.
    """
    directory = Path(directory)
    for name in (LORA_CONFIG, LORA_WEIGHTS):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory} holds no {name}: the folder is not complete")
    # peft's own error would not name the file.
    read_json(directory / LORA_CONFIG)
    config = peft.PeftConfig.from_pretrained(str(directory))
    config.inference_mode = not trainable
    # The fingerprint identifies the host; peft would warn of one that was moved.
    config.base_model_name_or_path = None
    model = peft.get_peft_model(host, config)
    try:
        fill_lora(model, directory)
    except BaseException:
        model.unload()
        raise
    return model


def check_lora(host: nn.Module, directory: str | PathLike) -> None:
    """Compare a saved LoRA with a host's layers, as peft would only warn.

    Args:
        host: Host without peft's wrapper.
        directory: Folder of peft's files.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The LoRA is damaged, or belongs to another host.
    """
    directory = Path(directory)
    for name in (LORA_CONFIG, LORA_WEIGHTS):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory} holds no {name}: the folder is not complete")
    # peft's own error would not name the file.
    read_json(directory / LORA_CONFIG)
    settings = peft.PeftConfig.from_pretrained(str(directory))
    expected = {}
    for name, layer in host.named_modules():
        if peft.tuners.tuners_utils.check_target_module_exists(settings, name):
            # Not from the weight, which quantisation packs.
            inputs, outputs = layer.in_features, layer.out_features
            path = f"base_model.model.{name}"
            expected[f"{path}.lora_A.weight"] = torch.empty(settings.r, inputs, device="meta")
            expected[f"{path}.lora_B.weight"] = torch.empty(outputs, settings.r, device="meta")
    load_tensors(directory / LORA_WEIGHTS, expected)


def merge_lora(host: peft.PeftModel) -> nn.Module:
    """Merge an attached LoRA into the host's weights, and return the bare host.

    Raises:
        ValueError: The host is quantised, and the sum would be rounded to 4 or 8 bits again.
    """
    if is_quantized(host.get_base_model()):
        raise ValueError("LoRA cannot be merged into a quantised host; load it unquantised")
    return host.merge_and_unload()


def lora_state(host: peft.PeftModel) -> dict[str, torch.Tensor]:
    """An attached LoRA's tensors, by the names of peft's files."""
    # By default peft asks the hub for the host's configuration to see if the vocabulary grew.
    return peft.get_peft_model_state_dict(host, save_embedding_layers=False)


def save_lora(host: peft.PeftModel, directory: str | PathLike, base: str | None = None) -> None:
    """Write an attached LoRA as peft's files.

    Args:
        host: peft's wrapper around the host.
        directory: Output folder.
        base: Name of the host in ``adapter_config.json``; by default peft's, which is the whole
            path for a host in a folder.
    """
    directory = Path(directory)
    host.save_pretrained(str(directory), save_embedding_layers=False)
    # peft's model card has blanks to fill in.
    (directory / "README.md").unlink(missing_ok=True)
    if base is not None:
        values = read_json(directory / LORA_CONFIG)
        write_json(directory / LORA_CONFIG, {**values, "base_model_name_or_path": base})


def fill_lora(host: peft.PeftModel, directory: str | PathLike) -> None:
    """Load an attached LoRA from peft's files, strictly; errors as for :func:`load_tensors`."""
    expected = lora_state(host)
    peft.set_peft_model_state_dict(host, load_tensors(Path(directory) / LORA_WEIGHTS, expected))
