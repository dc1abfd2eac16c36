"""A saved LoRA on a frozen host, without peft, which takes long to import.

Hooks on the linear layers add the same updates as peft's layers.
"""

import re
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from llava_forgery.files import read_json, write_json
from llava_forgery.hosts.lora import LORA_CONFIG, LORA_WEIGHTS
from llava_forgery.hosts.quantized import is_quantized
from llava_forgery.weights import load_tensors, save_tensors

# Prefix of the host's layers in peft's files.
_PREFIX = "base_model.model."
# Fields of peft's configuration that change the update, with the only values supported here.
_PLAIN = {
    "peft_type": "LORA", "bias": "none", "modules_to_save": None, "fan_in_fan_out": False,
    "rank_pattern": {}, "alpha_pattern": {}, "layers_to_transform": None, "exclude_modules": None,
    "target_parameters": None, "trainable_token_indices": None, "layer_replication": None,
    "alora_invocation_tokens": None, "use_dora": False, "use_rslora": False, "use_qalora": False,
    "use_bdlora": None, "lora_bias": False, "arrow_config": None, "velora_config": None,
    "monteclora_config": None,
}  # fmt: skip


def takes_frozen(host: nn.Module, directory: str | PathLike) -> bool:
    """Whether :class:`FrozenLora` can replace peft: plain LoRA of a pattern of names, on linear
    layers that are not quantised."""
    config = read_json(Path(directory) / LORA_CONFIG)
    return (
        not is_quantized(host)
        and isinstance(config.get("target_modules"), str)
        and all(config.get(name, value) in (value, None) for name, value in _PLAIN.items())
        and all(type(layer) is nn.Linear for layer in _layers(host, config).values())
    )


class FrozenLora:
    """LoRA from peft's files, attached to a host's linear layers.

    Args:
        host: Host for which :func:`takes_frozen` holds.
        directory: Folder of peft's files.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: One is damaged, or belongs to another host.
    """

    def __init__(self, host: nn.Module, directory: str | PathLike) -> None:
        self._config = read_json(Path(directory) / LORA_CONFIG)
        self._layers = _layers(host, self._config)
        self._scale = self._config["lora_alpha"] / self._config["r"]
        self.fill(directory)
        self._handles = [
            layer.register_forward_hook(self._hook(name)) for name, layer in self._layers.items()
        ]

    def fill(self, directory: str | PathLike) -> None:
        """Read the weights of another such folder, strictly; errors as for the class."""
        rank, expected = self._config["r"], {}
        for name, layer in self._layers.items():
            down, up = _names(name)
            expected[down] = torch.empty(rank, layer.in_features, device="meta")
            expected[up] = torch.empty(layer.out_features, rank, device="meta")
        tensors = load_tensors(Path(directory) / LORA_WEIGHTS, expected)
        # In full precision, as in peft.
        self._weights = {
            name: tuple(tensors[part].float() for part in _names(name)) for name in self._layers
        }

    def save(self, directory: str | PathLike, base: str) -> None:
        """Write peft's files; ``base`` is the host's name in them."""
        tensors = {
            name: tensor
            for layer, parts in self._weights.items()
            for name, tensor in zip(_names(layer), parts, strict=True)
        }
        save_tensors(Path(directory) / LORA_WEIGHTS, tensors)
        values = {**self._config, "base_model_name_or_path": base, "inference_mode": True}
        write_json(Path(directory) / LORA_CONFIG, values)

    def remove(self) -> None:
        """Remove the LoRA from the host."""
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def merge(self) -> None:
        """Merge the LoRA permanently into the host's weights, and remove it."""
        for name, layer in self._layers.items():
            down, up = self._weights_on(name, layer.weight.device)
            layer.weight += (up @ down * self._scale).to(layer.weight.dtype)
        self.remove()

    def _hook(self, name: str) -> Callable[..., torch.Tensor]:
        def add(layer: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
            down, up = self._weights_on(name, output.device)
            update = F.linear(F.linear(inputs[0].to(down.dtype), down), up)
            return (output + update * self._scale).to(output.dtype)

        return add

    def _weights_on(self, name: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The two matrices of a layer, which stay on the device of the last request."""
        down, up = self._weights[name]
        if down.device != device:
            self._weights[name] = down, up = down.to(device), up.to(device)
        return down, up


def _layers(host: nn.Module, config: dict[str, Any]) -> dict[str, nn.Module]:
    """The layers that peft's configuration names, by their names in the host."""
    pattern = re.compile(config["target_modules"])
    return {name: layer for name, layer in host.named_modules() if pattern.fullmatch(name)}


def _names(layer: str) -> tuple[str, str]:
    """A layer's tensors in peft's files: A (r, inputs) and B (outputs, r)."""
    return f"{_PREFIX}{layer}.lora_A.weight", f"{_PREFIX}{layer}.lora_B.weight"
