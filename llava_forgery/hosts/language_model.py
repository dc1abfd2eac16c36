"""A host's language model by itself, for servers such as vLLM that know nothing of the skill.

:func:`prompt_embeddings` gives what the language model is fed: words, image features and
E_forgery as one row of embeddings. :func:`save_language_model` writes the language model that
reads them as a plain causal model of transformers.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from threading import get_ident
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from llava_forgery.files import atomic_path, check_output_folder
from llava_forgery.hosts.auto import AutoForgeryModel, ForgeryProcessor
from llava_forgery.hosts.base import ForgeryModel
from llava_forgery.hosts.lora import without_peft
from llava_forgery.hosts.names import MODEL_CONFIG
from llava_forgery.hosts.quantized import is_quantized
from llava_forgery.noise import quiet
from llava_forgery.qa.build import build_prompt

# Of the largest logit. Half precision rounds by up to 0.004; a language model that needs more than
# embeddings is off by far more.
_TOLERANCE = 0.02


class _Fed(Exception):
    """The language model was reached: there is nothing more to compute."""


def export_language_model(
    directory: str | PathLike,
    out: str | PathLike,
    base_model: str | None = None,
    *,
    dtype: torch.dtype | str = "auto",
    allow_download: bool = False,
    max_shard_size: str = "5GB",
) -> None:
    """Write the language model of an adapter's host, LoRA merged, as :func:`save_language_model`.

    Args:
        directory: A forgery adapter of either backend: its folder or hub name.
        out: Folder to write; an earlier export there is replaced as a whole.
        base_model: The host's folder or hub name; by default the one the adapter names.
        dtype: Of the host's weights.
        allow_download: Whether what the adapter's files name may be downloaded.
        max_shard_size: Largest file of weights, as transformers takes it.

    Raises:
        FileNotFoundError: Adapter or host is missing.
        ValueError: As :func:`save_language_model`, or a file is damaged.
    """
    check_output_folder(out, MODEL_CONFIG)
    model = AutoForgeryModel.from_pretrained(
        directory, base_model, device="cpu", dtype=dtype, allow_download=allow_download
    )
    save_language_model(model, out, max_shard_size)


@quiet()
@torch.no_grad()
def save_language_model(
    model: ForgeryModel, out: str | PathLike, max_shard_size: str = "5GB"
) -> None:
    """Write a host's language model with its tokenizer; the model's LoRA is merged.

    What was written is loaded again and compared with the model on a prompt about a grey picture,
    which takes the memory of two language models.

    Args:
        model: In eval mode.
        out: Folder to write; an earlier export there is replaced as a whole.
        max_shard_size: Largest file of weights, as transformers takes it.

    Raises:
        ValueError: The host is quantised, transformers has no causal model of its language model's
            kind, that model does not answer from embeddings alone as the host does, or ``out``
            holds something else.
    """
    check_output_folder(out, MODEL_CONFIG)
    if is_quantized(model.host):
        raise ValueError("a quantised host cannot be exported; load it unquantised")
    if model.has_lora:
        model.merge_lora()
    plain = _plain(model.host)
    with atomic_path(out) as temporary:
        plain.save_pretrained(temporary, max_shard_size=max_shard_size)
        model.prompts.tokenizer.save_pretrained(temporary)
        written = AutoModelForCausalLM.from_pretrained(
            temporary, dtype=plain.dtype, trust_remote_code=False
        )
        _check(model, written.eval())


@torch.no_grad()
def prompt_embeddings(model: ForgeryModel, **inputs: Any) -> torch.Tensor:
    """What the host's language model is fed for one prompt.

    Args:
        model: In eval mode, of either backend.
        inputs: Of ``model.forward``, for one prompt without padding, such as
            :class:`~llava_forgery.hosts.auto.ForgeryProcessor` gives.

    Returns:
        (T, C) in the host's precision, on its device: a row for each token, each of the image's
        features and each of the n_f embeddings of E_forgery.

    Raises:
        ValueError: There are several prompts, or as ``model.forward``.
    """
    if len(inputs["input_ids"]) != 1:
        raise ValueError(f"expected one prompt, got {len(inputs['input_ids'])}; give one at a time")
    with _stop_at(without_peft(model.host).get_decoder()) as fed:
        model(**inputs)
    return fed[0][0]


@contextmanager
def _stop_at(decoder: nn.Module) -> Iterator[list[torch.Tensor]]:
    """End this thread's call at a decoder; receives its embeddings (B, T, C)."""
    fed: list[torch.Tensor] = []
    caller = get_ident()

    def take(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if get_ident() == caller:
            fed.append(kwargs["inputs_embeds"])
            raise _Fed

    handle = decoder.register_forward_pre_hook(take, with_kwargs=True)
    try:
        yield fed
    except _Fed:
        pass
    finally:
        handle.remove()


def _plain(host: PreTrainedModel) -> PreTrainedModel:
    """The causal model that holds the host's decoder and head; the tensors are the host's."""
    config = _plain_config(host.config.get_text_config(decoder=True))
    decoder, head = host.get_decoder(), host.get_output_embeddings()
    config.tie_word_embeddings = head.weight is host.get_input_embeddings().weight
    with torch.device("meta"):
        plain = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    state = decoder.state_dict()
    inner = plain.get_decoder()
    if lacking := sorted(inner.state_dict().keys() - state.keys()):
        raise ValueError(
            f"the host's language model, {type(decoder).__name__}, lacks {lacking[0]} of "
            f"{type(inner).__name__}; serve the host with llava-forgery serve"
        )
    # A decoder of the llava package holds towers and projectors as well.
    inner.load_state_dict({name: state[name] for name in inner.state_dict()}, assign=True)
    plain.get_output_embeddings().load_state_dict(head.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = copy.deepcopy(host.generation_config)
    return plain


def _plain_config(text: PretrainedConfig) -> PretrainedConfig:
    """A language model's configuration without what others, such as ``llava``, add to it."""
    for kind in type(text).__mro__:
        if kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind.__module__.startswith("transformers."):
            break
    else:
        raise ValueError(
            f"transformers has no causal language model of {type(text).__name__}; serve the host "
            "with llava-forgery serve"
        )
    known = kind().to_dict().keys() - {"model_type", "architectures"}
    return kind(**{name: value for name, value in text.to_dict().items() if name in known})


def _check(model: ForgeryModel, plain: PreTrainedModel) -> None:
    """Refuse a plain model that does not answer as the host does."""
    if model.family.bidirectional_prefix:
        raise ValueError(
            f"prompts of {model.family.name} see themselves in both directions, which embeddings "
            "alone cannot say; serve the host with llava-forgery serve"
        )
    side = model.kfd.config.encoder.image_size
    inputs = ForgeryProcessor(model)(Image.new("RGB", (side, side), "grey"), build_prompt(0.5))
    wanted = model(**inputs).logits.float()
    found = plain(inputs_embeds=prompt_embeddings(model, **inputs)[None]).logits.float()
    # At every token: masks of the image's own show less in the last.
    off = float((found - wanted).abs().max() / wanted.abs().max())
    # Also where it is no number.
    if not off <= _TOLERANCE:
        raise ValueError(
            f"by itself the language model, {type(plain).__name__}, is off by {off:.2g} of the "
            "largest logit: the host gives it more than embeddings, such as positions or masks of "
            "its own; serve the host with llava-forgery serve"
        )
