"""LoRA on the host's language model alone, through peft."""

import re
from dataclasses import dataclass

from peft import LoraConfig
from torch import nn


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
