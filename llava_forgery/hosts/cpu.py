"""Running programs with a hard-coded "cuda" on the CPU, for debugging or without a GPU."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def use_cpu() -> None:
    """Keep this process on the CPU, and treat "cuda" as "cpu".

    ``to`` and ``cuda`` of tensors and modules, and ``device_map`` of transformers'
    ``from_pretrained``, use the CPU for any CUDA device, and flash attention becomes "sdpa", as
    LLaVA's tools and lmms-eval's models of ``llava`` call nothing else. Dtypes are kept, since
    float16 runs on CPUs and halves the memory. It cannot be undone.

    Raises:
        RuntimeError: This process sees a GPU; hide it before Python starts.
    """
    if torch.cuda.is_available():
        raise RuntimeError(
            "this process sees a GPU, and what it allocates there would escape --cpu: set "
            'CUDA_VISIBLE_DEVICES="" before Python starts'
        )
    for owner in (torch.Tensor, nn.Module):
        owner.to = _moves_to_cpu(owner.to)
        owner.cuda = _stays
    original = PreTrainedModel.from_pretrained.__func__

    @classmethod
    @functools.wraps(original)
    def from_pretrained(cls: type, *args: Any, device_map: Any = None, **kwargs: Any) -> Any:
        if isinstance(device_map, dict):
            device_map = {part: _without_cuda(device) for part, device in device_map.items()}
        # LLaVA-NeXT's loader asks for it, but CPUs do not support it.
        if kwargs.get("attn_implementation") == "flash_attention_2":
            kwargs["attn_implementation"] = "sdpa"
        return original(cls, *args, device_map=_without_cuda(device_map), **kwargs)

    PreTrainedModel.from_pretrained = from_pretrained


def _moves_to_cpu(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs:
            kwargs["device"] = _without_cuda(kwargs["device"])
        return original(self, *map(_without_cuda, args[:1]), *args[1:], **kwargs)

    return to


def _stays(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self


def _without_cuda(device: Any) -> Any:
    """The CPU for any CUDA device, however it is named; everything else unchanged."""
    if isinstance(device, str | torch.device):
        return "cpu" if str(device).startswith("cuda") else device
    numbered = isinstance(device, int) and not isinstance(device, bool)
    return "cpu" if numbered else device
