"""Hosts whose language model is held in 4 or 8 bits, through bitsandbytes.

Only the linear layers of the language model are quantised: they are nearly all of a host, and its
embedding, by which an adapter knows its host, its head and its vision tower stay as they are.
Adapters are trained on top in full precision (QLoRA, arXiv:2305.14314).
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig

from llava_forgery.optional import require

KINDS = ("4bit", "8bit")
# Of bitsandbytes' Linear4bit.
_PACKS = "support_avx512bf16_for_cpu"


def quantization_config(
    name_or_path: str, kind: str, dtype: torch.dtype | str = "auto"
) -> BitsAndBytesConfig:
    """What ``from_pretrained`` takes to quantise a host while it loads.

    Args:
        name_or_path: The host, whose configuration says which modules to spare.
        kind: "4bit" (NF4, scales quantised again) or "8bit" (LLM.int8).
        dtype: In which 4-bit layers compute; "auto" takes the configuration's.

    Raises:
        ImportError: bitsandbytes is not installed; the message names the extra.
        ValueError: Another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"quantization must be one of {', '.join(KINDS)} or None, got {kind!r}")
    require("bitsandbytes", extra="quantization", feature=f"a host in {kind}")
    config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    spared = spared_modules(config)
    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=spared)
    if dtype == "auto":
        dtype = config.dtype or config.get_text_config().dtype or torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=spared,
    )


def spared_modules(config: Any) -> list[str]:
    """Names of the linear layers outside the language model's blocks, for any family."""
    with torch.device("meta"):
        host = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    decoder = set(host.get_decoder().modules())
    return [
        name
        for name, module in host.named_modules()
        if isinstance(module, nn.Linear) and module not in decoder
    ]


def leave_unpacked(model: nn.Module) -> None:
    """Keep bitsandbytes from packing 4-bit weights for a processor's bfloat16 instructions.

    Release 0.50.2 does so at the first pass in eval mode on a CPU that has them. A model that is
    trained afterwards gets no gradient through such layers, without a word, and layers narrower
    than 64 fail.
    """
    for module in model.modules():
        if hasattr(module, _PACKS):
            setattr(module, _PACKS, False)
