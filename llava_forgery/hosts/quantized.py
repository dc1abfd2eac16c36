"""Hosts in 4 or 8 bits, and their devices, for both backends.

Only the language model's linear layers of a host are quantised (bitsandbytes), which are nearly all
of it. Its embedding, by which an adapter identifies its host, its head and its vision tower are
not. Adapters are trained on top in full precision (QLoRA, arXiv:2305.14314).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import psutil
import torch
from torch import nn

from llava_forgery.optional import lazy, require

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

transformers = lazy("transformers")

logger = logging.getLogger(__name__)

KINDS = ("4bit", "8bit")
# Class of bitsandbytes' Linear4bit.
_PACKS = "support_avx512bf16_for_cpu"


def is_quantized(host: nn.Module) -> bool:
    """Whether a host's weights are in 4 or 8 bits, also inside peft's wrapper.

    transformers 5.24 also says so for hosts from a GGUF file, whose weights are in full precision.
    """
    whole = (
        getattr(host, "quantization_method", None) == "gguf"
        and not host.hf_quantizer.packed_modules
    )
    return getattr(host, "is_quantized", False) and not whole


def pick_device(device: str | torch.device | None = None) -> str | torch.device:
    """The requested device; by default a GPU if there is one."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def place_host(
    model: PreTrainedModel,
    device: str | torch.device | None,
    dtype: torch.dtype | str = "auto",
) -> PreTrainedModel:
    """Move a host to a device, by default a GPU if there is one.

    A quantised host and one that is spread over devices stay where transformers placed them.

    Args:
        model: Host to move.
        device: Target device.
        dtype: Requested dtype; with "auto" float16, for which CPUs have no arithmetic, becomes
            float32 on a CPU, or bfloat16 if memory is too small for that.
    """
    if device == "auto" or is_quantized(model):
        return model
    device = torch.device(pick_device(device))
    if device.type == "cpu" and dtype == "auto" and model.dtype == torch.float16:
        size = 4 * sum(parameter.numel() for parameter in model.parameters())
        found = torch.float32 if size < psutil.virtual_memory().available else torch.bfloat16
        logger.info("the host's float16 weights run in %s on the CPU; --dtype keeps another", found)
        model = model.to(found)
    return model.to(device)


def device_map_of(device: str | torch.device | None) -> dict[str, str]:
    """Arguments of ``from_pretrained`` to spread a host over devices; empty for a single one."""
    return {"device_map": "auto"} if device == "auto" else {}


def quantization_config(
    config: PreTrainedConfig, kind: str, dtype: torch.dtype | str, spared: list[str]
) -> BitsAndBytesConfig:
    """Arguments of ``from_pretrained`` to quantise a host while it loads.

    Args:
        config: Configuration of the host.
        kind: "4bit" (NF4, with quantised scales) or "8bit" (LLM.int8).
        dtype: Compute dtype of 4-bit layers; "auto" for that of the configuration.
        spared: Names of the modules that are not quantised.

    Raises:
        ImportError: bitsandbytes is not installed; the message names the extra.
        ValueError: The kind is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"quantization must be one of {', '.join(KINDS)} or None, got {kind!r}")
    require("bitsandbytes", extra="quantization", feature=f"a host in {kind}")
    if kind == "8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=spared)
    if dtype == "auto":
        dtype = config.dtype or config.get_text_config().dtype or torch.float32
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=spared,
    )


def leave_unpacked(model: nn.Module) -> None:
    """Keep bitsandbytes from packing 4-bit weights for a processor's bfloat16 instructions.

    Release 0.50.2 does so in the first pass in eval mode on a CPU that has them. A model that is
    trained afterwards silently gets no gradient through such layers, and layers narrower than 64
    fail.
    """
    for module in model.modules():
        if hasattr(module, _PACKS):
            setattr(module, _PACKS, False)
