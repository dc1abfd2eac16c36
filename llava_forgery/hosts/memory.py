"""Estimate of the GPU memory for training an adapter, from the host's configuration.

Nothing is loaded: the host is built on the meta device, its weights are counted, and one and two of
its layers are run there to find what autograd would keep. The counts are exact; what cannot be
counted (the CUDA context, fragmentation, workspaces) is a stated allowance. It is an estimate, not
a measurement.

Memory of LoRA on a frozen host (QLoRA, arXiv:2305.14314, for the 4-bit sizes):

- weights: NF4 takes 4 bits and per 64 weights an 8-bit scale, per 256 scales a float32 one;
  LLM.int8 takes 8 bits and a float32 scale for each row; everything else its dtype;
- trained parameters: float32, with a gradient and two AdamW moments of the same size;
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
    """Settings of a training."""

    quantization: str | None = None
    """Quantisation of the language model's linear layers: None, "8bit" or "4bit"."""
    dtype: torch.dtype = torch.bfloat16
    """Dtype of all other weights and of the activations."""
    lora: LoraSettings | None = None
    """Sizes of LoRA; None trains none."""
    batch_size: int = 1
    """Number of samples per pass."""
    tokens: int = 1024
    """Number of tokens of a sample, including image and placeholders."""
    supervised: int = 128
    """Number of positions from the first answer on, whose logits are computed."""
    gradient_checkpointing: bool = True
    """Whether layers are recomputed in the backward pass."""
    more_frozen: int = 0
    """Number of frozen float32 parameters besides the host, those of the detector."""
    more_trained: int = 0
    """Number of trained float32 parameters besides LoRA, those of the FPL."""
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
    """Weights of the host."""
    frozen_extra: int
    """Weights of the detector."""
    trained: int
    """Weights of LoRA and FPL."""
    gradients: int
    """Gradients of the trained weights."""
    optimiser: int
    """AdamW's two moments."""
    activations: int
    """Tensors that autograd keeps of the language model."""
    logits: int
    """Logits of the supervised positions, with their float32 copy and its gradient."""
    transient: int
    """The largest quantised layer, dequantised for one product."""
    allowance: int
    """Allowance for context, workspaces and fragmentation."""

    @property
    def total(self) -> int:
        """Sum of all fields."""
        return sum(asdict(self).values())


def estimate_memory(config: PreTrainedConfig, settings: MemorySettings) -> MemoryEstimate:
    """Estimate the memory for training an adapter of a host.

    Args:
        config: Configuration of a transformers image-text-to-text model.
        settings: Settings of the training.

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
        host: Host on any device.
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
        host: Host on the meta device; LoRA is attached and removed.
        settings: Sizes of LoRA.
    """
    adapted = peft.get_peft_model(host, lora_config(host, settings), low_cpu_mem_usage=True)
    count = sum(parameter.numel() for n, parameter in adapted.named_parameters() if ".lora_" in n)
    adapted.unload()
    return count


def activation_bytes(config: PreTrainedConfig, settings: MemorySettings) -> int:
    """Bytes that autograd keeps of the language model between forward and backward.

    One and two layers are run on the meta device; their difference is one layer. Attention is run
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
    # A whole mask is used unchanged; making one needs values, which the meta device does not have.
    mask_shape = (settings.batch_size, 1, settings.tokens, settings.tokens)
    mask = torch.zeros(mask_shape, dtype=settings.dtype, device="meta")
    with kept_storages(host) as kept:
        decoder(inputs_embeds=embedded, attention_mask=mask, use_cache=False)
    return sum(kept.values())


@contextmanager
def kept_storages(module: nn.Module) -> Iterator[dict[int, int]]:
    """Count what autograd keeps of the calls inside, without the module's own weights.

    Yields:
        Bytes by storage, each counted once; filled while the calls run.
    """
    own = {id_of(tensor) for tensor in [*module.parameters(), *module.buffers()]}
    kept: dict[int, int] = {}
    alive: list[Any] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        key = id_of(tensor)
        if key not in own:
            kept[key] = tensor.untyped_storage().nbytes()
            # The address of a freed storage could be reused by another one.
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def id_of(tensor: torch.Tensor) -> int:
    """Id of a tensor's storage, as data addresses are all 0 on the meta device."""
    return tensor.untyped_storage()._cdata
