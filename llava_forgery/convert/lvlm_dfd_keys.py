"""Names and shapes of the official LVLM-DFD checkpoint, with ours.

Source: botianzhe/LVLM-DFD at commit 589b036.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llava_forgery.convert.imagebind import LORA_RANK, tower_config
from llava_forgery.convert.sources import TensorSource
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.fpl.learner import GRID, ForgeryPromptLearner
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.kfd.consistency import ConsistencyMaps
from llava_forgery.kfd.heads import ForgeryClassifier, PaperLocator

TEMPERATURE = 100.0
TAPS = (16, 24, 32)


@dataclass(frozen=True)
class LvlmDfdSizes:
    """Sizes of a checkpoint; the defaults are the official code's."""

    hidden_size: int = 4096
    """Width of the language model."""
    language_layers: int = 32
    """Number of blocks of the language model."""
    lora_rank: int = 32
    """Rank of the language model's LoRA, whose alpha is the same."""
    towers: Mapping[str, Any] | None = None
    """open_clip's configuration of ImageBind's towers; None for ViT-H-14's."""
    taps: tuple[int, ...] = TAPS
    """Tapped blocks of the image tower, counted from 1."""
    tower_rank: int = LORA_RANK
    """Rank of ImageBind's LoRA."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "language_layers", "lora_rank", "tower_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def fpl(self) -> FPLConfig:
        """The learner's configuration."""
        return FPLConfig(self.hidden_size, len(self.taps), "paper")

    @property
    def lora(self) -> LoraSettings:
        """The language model's LoRA."""
        return LoraSettings(self.lora_rank, self.lora_rank, 0.1)


def detector_sources(sizes: LvlmDfdSizes) -> dict[str, TensorSource]:
    """The detector's linear layers and heads; its temperature is constant in the checkpoint."""
    config = tower_config(sizes.towers)
    layers = len(sizes.taps)
    widths = [config["vision_cfg"]["width"]] * layers
    with torch.device("meta"):
        modules = {
            "consistency": ConsistencyMaps(widths, config["embed_dim"], TEMPERATURE),
            "locator": PaperLocator(layers),
            "classifier": ForgeryClassifier(layers),
        }
    names = {
        r"consistency\.linears": "image_decoder.fc",
        r"locator\.branches\.(\d+)\.0": r"locator.conv.\1",
        r"locator\.branches\.(\d+)\.2": r"locator.batchnorm.\1",
        r"locator\.head": "locator.finalconv",
        r"classifier\.branches": "classifier.meta_net",
        r"classifier\.fc\.0": "classifier.fc1",
        r"classifier\.fc\.2": "classifier.fc2",
    }
    sources = _renamed(nn.ModuleDict(modules), names)
    del sources["consistency.log_temperature"]
    return sources


def learner_sources(sizes: LvlmDfdSizes) -> dict[str, TensorSource]:
    """The learner's tensors, whose vectors have a different order in the checkpoint."""
    with torch.device("meta"):
        learner = ForgeryPromptLearner(sizes.fpl)
    names = {
        "base": "prompt_learner.base_prompts",
        "map_grid": "prompt_learner.meta_net1",
        "mask_grid": "prompt_learner.meta_net2",
        "score": "prompt_learner.fc",
        "fuse": "prompt_learner.finalconv",
    }
    sources = _renamed(learner, names)
    n_base, places = sizes.fpl.n_base, GRID * GRID

    def reorder(weight: torch.Tensor) -> torch.Tensor:
        # Official: base, maps, mask, score. Ours: base, mask, maps, score.
        base, maps, mask, score = weight.split([n_base, places, places, 1], dim=1)
        return torch.cat([base, mask, maps, score], dim=1)

    fuse = sources["fuse.weight"]
    return {**sources, "fuse.weight": TensorSource(fuse.name, fuse.shape, reorder)}


def language_lora_sources(sizes: LvlmDfdSizes, names: Iterable[str]) -> dict[str, TensorSource]:
    """The language model's LoRA, by the names in peft's files.

    Args:
        sizes: Sizes of the checkpoint.
        names: Names in the checkpoint; older releases of peft omit the adapter's name ``default``.
    """
    default = ".default" if any(".lora_A.default." in name for name in names) else ""
    width, rank = sizes.hidden_size, sizes.lora_rank
    sources = {}
    for layer in range(sizes.language_layers):
        for projection in sizes.lora.projections:
            stem = f"base_model.model.model.layers.{layer}.self_attn.{projection}"
            for letter, shape in (("A", (rank, width)), ("B", (width, rank))):
                sources[f"{stem}.lora_{letter}.weight"] = TensorSource(
                    f"llama_model.{stem}.lora_{letter}{default}.weight", shape
                )
    return sources


def projection_sources(sizes: LvlmDfdSizes) -> dict[str, TensorSource]:
    """The linear layer from ImageBind's embedding to the language model."""
    width = sizes.hidden_size
    embedding = tower_config(sizes.towers)["embed_dim"]
    return {
        "weight": TensorSource("llama_proj.weight", (width, embedding)),
        "bias": TensorSource("llama_proj.bias", (width,)),
    }


def _renamed(module: nn.Module, names: Mapping[str, str]) -> dict[str, TensorSource]:
    """Sources of a module's tensors in a checkpoint with other names, given as patterns."""
    sources = {}
    for name, tensor in module.state_dict().items():
        theirs = name
        for pattern, replacement in names.items():
            theirs, count = re.subn(rf"^{pattern}(?=\.|$)", replacement, theirs)
            if count:
                break
        sources[name] = TensorSource(theirs, tuple(tensor.shape), dtype=tensor.dtype)
    return sources
