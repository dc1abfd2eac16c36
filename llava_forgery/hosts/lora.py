"""LoRA on the host's language model alone, through peft."""

import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from llava_forgery.files import read_json, write_json
from llava_forgery.weights import load_tensors

# peft's names.
LORA_CONFIG, LORA_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class LoraSettings:
    """LoRA's sizes; the official code has rank 32, alpha 32, dropout 0.1 on q, k, v, o."""

    r: int = 32
    """Rank."""
    alpha: int = 32
    """Scale; the update counts alpha / r."""
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


def lora_config(host: nn.Module, settings: LoraSettings) -> LoraConfig:
    """peft's configuration with the language model's layers as the targets.

    A plain list of names would also hit the vision tower, whose attention layers have the same
    names: the pattern is anchored at the language model.

    Args:
        host: A transformers image-text-to-text model.
        settings: Sizes.

    Raises:
        ValueError: The language model has no such layers.
    """
    decoder = host.get_decoder()
    prefix = next(name for name, module in host.named_modules() if module is decoder)
    names = "|".join(map(re.escape, settings.projections))
    pattern = rf"{re.escape(prefix)}\..*\.({names})"
    if not any(re.fullmatch(pattern, name) for name, _ in host.named_modules()):
        raise ValueError(
            f"the host's language model ({type(decoder).__name__}) has no layers named "
            f"{', '.join(settings.projections)}; give LoraSettings(projections=...) its names"
        )
    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=pattern,
        task_type="CAUSAL_LM",
    )


def check_lora(host: nn.Module, directory: str | PathLike) -> None:
    """Compare a saved LoRA with a host's layers, before peft reads it and only warns.

    Args:
        host: Without peft's wrapper.
        directory: Holds peft's files.

    Raises:
        FileNotFoundError: One of them is missing.
        ValueError: It is damaged, or belongs to another host.
    """
    directory = Path(directory)
    for name in (LORA_CONFIG, LORA_WEIGHTS):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory} holds no {name}: the folder is not complete")
    # peft's own error would not name the file.
    read_json(directory / LORA_CONFIG)
    settings = PeftConfig.from_pretrained(str(directory))
    expected = {}
    for name, layer in host.named_modules():
        if check_target_module_exists(settings, name):
            # Not of the weight, which quantisation packs.
            inputs, outputs = layer.in_features, layer.out_features
            path = f"base_model.model.{name}"
            expected[f"{path}.lora_A.weight"] = torch.empty(settings.r, inputs, device="meta")
            expected[f"{path}.lora_B.weight"] = torch.empty(outputs, settings.r, device="meta")
    load_tensors(directory / LORA_WEIGHTS, expected)


def lora_state(host: PeftModel) -> dict[str, torch.Tensor]:
    """An attached LoRA's tensors, by the names of peft's files."""
    # Left to itself, peft asks the hub for the host's configuration to see if its words grew.
    return get_peft_model_state_dict(host, save_embedding_layers=False)


def save_lora(host: PeftModel, directory: str | PathLike, base: str | None = None) -> None:
    """Write an attached LoRA as peft's files.

    Args:
        host: peft's wrapper around the host.
        directory: The folder.
        base: The host's name in ``adapter_config.json``; by default peft's, which of a host in a
            folder is the whole path.
    """
    directory = Path(directory)
    host.save_pretrained(str(directory), save_embedding_layers=False)
    # peft's model card has blanks to fill in.
    (directory / "README.md").unlink(missing_ok=True)
    if base is not None:
        values = read_json(directory / LORA_CONFIG)
        write_json(directory / LORA_CONFIG, {**values, "base_model_name_or_path": base})


def fill_lora(host: PeftModel, directory: str | PathLike) -> None:
    """Fill an attached LoRA from peft's files, strictly; errors as :func:`load_tensors`."""
    expected = lora_state(host)
    set_peft_model_state_dict(host, load_tensors(Path(directory) / LORA_WEIGHTS, expected))
