"""An estimate of the GPU memory that training an adapter takes, from the host's configuration.

Nothing is loaded: the host is built on the meta device, its weights are counted, and one and two of
its layers are run there to see what autograd would keep. What is counted is exact; what no count
can know (the CUDA context, fragmentation, workspaces) is a stated allowance. It is an estimate, not
a measurement.

What is held, for LoRA on a frozen host (QLoRA, arXiv:2305.14314, for the 4-bit sizes):

- weights: NF4 takes 4 bits and per 64 weights an 8-bit scale, per 256 scales a float32 one;
  LLM.int8 takes 8 bits and a float32 scale for each row; everything else its dtype;
- trained parameters: float32, with as large a gradient and two AdamW moments;
- activations: with gradient checkpointing each layer's input, and all of one layer; without it all
  of all layers;
- logits of the supervised places: the host's dtype, float32, and a float32 gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from llava_forgery.hosts.lora import LoraSettings, lora_config
from llava_forgery.optional import lazy

peft = lazy("peft")

# bitsandbytes' block sizes: weights that share a scale, and scales that share one.
BLOCK, NESTED_BLOCK = 64, 256


@dataclass(frozen=True)
class MemorySettings:
    """What a training is like."""

    quantization: str | None = None
    """None, "8bit" or "4bit", of the language model's linear layers."""
    dtype: torch.dtype = torch.bfloat16
    """Of all other weights and of the activations."""
    lora: LoraSettings | None = None
    """Sizes of LoRA; None trains none."""
    batch_size: int = 1
    """Samples for each pass."""
    tokens: int = 1024
    """Tokens of a sample, image and placeholders included."""
    supervised: int = 128
    """Places from the first answer on, whose logits are computed."""
    gradient_checkpointing: bool = True
    """Whether layers are computed twice."""
    more_frozen: int = 0
    """Frozen parameters beside the host, float32: the detector's."""
    more_trained: int = 0
    """Trained parameters beside LoRA, float32: the FPL's."""
    allowance: float = 2.0
    """GiB for the CUDA context, workspaces and fragmentation."""

    def __post_init__(self) -> None:
        if self.quantization not in (None, "4bit", "8bit"):
            raise ValueError(f"quantization must be 4bit, 8bit or None, got {self.quantization!r}")
        for name in ("batch_size", "tokens", "supervised"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.supervised > self.tokens:
            raise ValueError(f"supervised {self.supervised} is more than tokens {self.tokens}")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the GPU while an adapter is trained."""

    weights: int
    """The host's."""
    frozen_extra: int
    """The detector's."""
    trained: int
    """LoRA and FPL."""
    gradients: int
    """Of what is trained."""
    optimiser: int
    """AdamW's two moments."""
    activations: int
    """What autograd keeps of the language model."""
    logits: int
    """Of the supervised places, with their float32 copy and its gradient."""
    transient: int
    """The largest quantised layer, brought back to its dtype for one product."""
    allowance: int
    """Context, workspaces, fragmentation: not counted but granted."""

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(asdict(self).values())


def estimate_memory(config: PreTrainedConfig, settings: MemorySettings) -> MemoryEstimate:
    """Estimate what training an adapter of a host takes.

    Args:
        config: Of a transformers image-text-to-text model.
        settings: How it is trained.

    Returns:
        Bytes, by kind.
    """
    host = build_on_meta(config, settings.dtype)
    weights, transient = weight_bytes(host, settings.quantization)
    lora = lora_parameters(host, settings.lora) if settings.lora else 0
    trained = 4 * (lora + settings.more_trained)
    itemsize = settings.dtype.itemsize
    places = settings.batch_size * settings.supervised
    vocabulary = host.get_output_embeddings().weight.shape[0]
    return MemoryEstimate(
        weights=weights,
        frozen_extra=4 * settings.more_frozen,
        trained=trained,
        gradients=trained,
        optimiser=2 * trained,
        activations=activation_bytes(config, settings),
        logits=places * vocabulary * (itemsize + 4 + 4),
        transient=transient,
        allowance=int(settings.allowance * 2**30),
    )


def build_on_meta(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A host without storage."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(
            copy.deepcopy(config), dtype=dtype, trust_remote_code=False
        )


def weight_bytes(host: PreTrainedModel, quantization: str | None) -> tuple[int, int]:
    """Bytes of a host's weights, and of the largest quantised layer in its own dtype.

    Args:
        host: On any device.
        quantization: None, "8bit" or "4bit".
    """
    quantised = set()
    if quantization is not None:
        linear = (m for m in host.get_decoder().modules() if isinstance(m, nn.Linear))
        quantised = {id(module.weight) for module in linear}
    total = largest = 0
    for weight in host.parameters():
        count, plain = weight.numel(), weight.numel() * weight.element_size()
        if id(weight) not in quantised:
            total += plain
            continue
        largest = max(largest, plain)
        if quantization == "8bit":
            total += count + 4 * len(weight)
        else:
            blocks = -(-count // BLOCK)
            total += -(-count // 2) + blocks + 4 * -(-blocks // NESTED_BLOCK)
    total += sum(buffer.numel() * buffer.element_size() for buffer in host.buffers())
    return total, largest


def lora_parameters(host: PreTrainedModel, settings: LoraSettings) -> int:
    """Number of LoRA's parameters on a host.

    Args:
        host: On the meta device; LoRA is put on and taken off.
        settings: Sizes.
    """
    adapted = peft.get_peft_model(host, lora_config(host, settings), low_cpu_mem_usage=True)
    count = sum(parameter.numel() for n, parameter in adapted.named_parameters() if ".lora_" in n)
    adapted.unload()
    return count


def activation_bytes(config: PreTrainedConfig, settings: MemorySettings) -> int:
    """Bytes that autograd keeps of the language model between forward and backward.

    One and two layers are run on the meta device; their difference is a layer. Attention is taken
    in its eager form, which keeps its whole matrix: an upper bound for fused kernels.
    """
    layers = config.get_text_config().num_hidden_layers
    one, two = (_kept_bytes(config, settings, count) for count in (1, 2))
    layer = two - one
    if not settings.gradient_checkpointing:
        return one + layer * (layers - 1)
    width = config.get_text_config().hidden_size
    inputs = settings.batch_size * settings.tokens * width * settings.dtype.itemsize
    return one + inputs * layers


def _kept_bytes(config: PreTrainedConfig, settings: MemorySettings, layers: int) -> int:
    small = copy.deepcopy(config)
    text = small.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    small._attn_implementation = "eager"
    host = build_on_meta(small, settings.dtype).requires_grad_(False)
    if settings.lora:
        host = peft.get_peft_model(host, lora_config(host, settings.lora), low_cpu_mem_usage=True)
    host.train()
    decoder = host.get_decoder()
    shape = (settings.batch_size, settings.tokens, text.hidden_size)
    embedded = torch.zeros(shape, dtype=settings.dtype, device="meta", requires_grad=True)
    # A whole mask is taken as it is; making one asks for values, which the meta device has not.
    mask_shape = (settings.batch_size, 1, settings.tokens, settings.tokens)
    mask = torch.zeros(mask_shape, dtype=settings.dtype, device="meta")
    with kept_storages(host) as kept:
        decoder(inputs_embeds=embedded, attention_mask=mask, use_cache=False)
    return sum(kept.values())


@contextmanager
def kept_storages(module: nn.Module) -> Iterator[dict[int, int]]:
    """Count what autograd keeps of the calls inside, the module's own weights left out.

    Yields:
        Filled while the calls run: storage to its bytes, each counted once.
    """
    own = {id_of(tensor) for tensor in [*module.parameters(), *module.buffers()]}
    kept: dict[int, int] = {}
    alive: list[Any] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        key = id_of(tensor)
        if key not in own:
            kept[key] = tensor.untyped_storage().nbytes()
            # A storage that is given back could lend its address to another one.
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def id_of(tensor: torch.Tensor) -> int:
    """Of a tensor's storage; addresses of data are all 0 on the meta device."""
    return tensor.untyped_storage()._cdata
