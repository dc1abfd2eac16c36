"""How much memory is free, and how much of it one face takes while it is judged."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from llava_forgery.hosts.base import ForgeryModel

_CGROUP = Path("/sys/fs/cgroup")
# A module's inputs and outputs are not all there is: residuals, masks, workspaces.
_ALLOWANCE = 2


def free_memory(device: str | torch.device = "cpu") -> int:
    """Bytes that a process can still take on a device; on a CPU within its control group (v2).

    Args:
        device: A CPU or a CUDA device.
    """
    device = torch.device(device)
    if device.type == "cuda":
        # What torch keeps for later is free as well.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    free = psutil.virtual_memory().available
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit == "max":
            return free
        used = int((_CGROUP / "memory.current").read_text())
        # Files that were read lie in memory until it is wanted for something else.
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return max(0, min(free, int(limit) - used + int(stat["inactive_file"])))
    except OSError:
        return free


class FaceMemory:
    """What one face takes in a batch, counted while the first one is judged.

    Counted are the widest step, by the inputs and outputs of the modules that compute it, and what
    is kept of a face until its answer is written: keys, values, and the logits of each new token.
    Nothing is polled, so the same faces make the same batches.

    Attributes:
        bytes: None before a face was counted.
        tokens: Of its prompt, with what the host puts in an image's place; 0 without a prompt.
    """

    def __init__(self) -> None:
        self.bytes: int | None = None
        self.tokens = 0

    @contextmanager
    def counted(self, kfd: nn.Module, vlm: ForgeryModel | None, new_tokens: int) -> Iterator[None]:
        """Count what one face takes inside.

        Args:
            kfd: The detector.
            vlm: The host with the skill; None where nothing is asked.
            new_tokens: Most of an answer.
        """
        widest = tokens = 0

        def measure(module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal widest
            widest = max(widest, _bytes(inputs) + _bytes(output))

        def count(module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal tokens
            if output.ndim == 3:
                tokens = max(tokens, output.shape[1])

        leaves = {m for top in (kfd, vlm) if top for m in top.modules() if not any(m.children())}
        handles = [module.register_forward_hook(measure) for module in leaves]
        if vlm is not None:
            linear = (m for m in vlm.host.get_decoder().modules() if isinstance(m, nn.Linear))
            handles += [module.register_forward_hook(count) for module in linear]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        kept = 0 if vlm is None else _kept(vlm.host, tokens, new_tokens)
        self.bytes, self.tokens = _ALLOWANCE * widest + kept, tokens


def _kept(host: nn.Module, tokens: int, new: int) -> int:
    """Bytes of keys and values, and of float32 logits, until an answer is written."""
    text = host.config.get_text_config()
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    keys = 2 * text.num_hidden_layers * kv_heads * head * host.dtype.itemsize
    return keys * (tokens + new) + 4 * text.vocab_size * new


def _bytes(values: Any) -> int:
    if isinstance(values, torch.Tensor):
        return values.nbytes
    if isinstance(values, (tuple, list)):
        return sum(map(_bytes, values))
    return 0
