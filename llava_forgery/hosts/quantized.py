"""Hosts in 4 or 8 bits, and where they are placed, for both backends.

Of a quantised host (bitsandbytes) only the language model's linear layers are: they are nearly all
of it, and its embedding, by which an adapter knows its host, its head and its vision tower stay as
they are. Adapters are trained on top in full precision (QLoRA, arXiv:2305.14314).
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
# Of bitsandbytes' Linear4bit.
_PACKS = "support_avx512bf16_for_cpu"


def is_quantized(host: nn.Module) -> bool:
    """Whether a host's weights are in 4 or 8 bits; peft's wrapper is looked through.

    transformers 5.24 says so of hosts that were made of a GGUF file as well, whose weights lie in
    full precision.
    """
    whole = (
        getattr(host, "quantization_method", None) == "gguf"
        and not host.hf_quantizer.packed_modules
    )
    return getattr(host, "is_quantized", False) and not whole


def pick_device(device: str | torch.device | None = None) -> str | torch.device:
    """The device that is asked for; by default a GPU if there is one."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def place_host(
    model: PreTrainedModel,
    device: str | torch.device | None,
    dtype: torch.dtype | str = "auto",
) -> PreTrainedModel:
    """Bring a host to a device, a GPU if there is one by default.

    A quantised host and one that is spread over devices lie where transformers has placed them.

    Args:
        model: The host.
        device: Where to.
        dtype: What was asked for; with "auto" float16, for which processors have no arithmetic,
            becomes float32 on a CPU, or bfloat16 where memory has no room for that.
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
    """What ``from_pretrained`` takes to spread a host over devices; nothing for a single one."""
    return {"device_map": "auto"} if device == "auto" else {}


def quantization_config(
    config: PreTrainedConfig, kind: str, dtype: torch.dtype | str, spared: list[str]
) -> BitsAndBytesConfig:
    """What ``from_pretrained`` takes to quantise a host while it loads.

    Args:
        config: The host's.
        kind: "4bit" (NF4, scales quantised again) or "8bit" (LLM.int8).
        dtype: In which 4-bit layers compute; "auto" takes the configuration's.
        spared: Names of the modules to leave as they are.

    Raises:
        ImportError: bitsandbytes is not installed; the message names the extra.
        ValueError: Another kind.
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

    Release 0.50.2 does so at the first pass in eval mode on a CPU that has them. A model that is
    trained afterwards gets no gradient through such layers, without a word, and layers narrower
    than 64 fail.
    """
    for module in model.modules():
        if hasattr(module, _PACKS):
            setattr(module, _PACKS, False)
