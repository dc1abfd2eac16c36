"""Loading a checkpoint of the ``llava`` package as it is, to be trained."""

from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llava_forgery.hosts.llava.register import import_llava
from llava_forgery.hosts.llava.skill import has_forgery_adapter
from llava_forgery.noise import quiet

# LLaVA's choice of what stays as it is in a quantised model.
SPARED = ["model.mm_projector", "model.vision_tower", "lm_head"]


def read_checkpoint(
    path: str, max_length: int | None = None, cache_dir: str | None = None
) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig, type[PreTrainedModel]]:
    """All of a checkpoint but its weights.

    Args:
        path: Folder or hub name.
        max_length: The tokenizer's ``model_max_length``; None leaves its own.
        cache_dir: Where transformers keeps what it fetches.

    Returns:
        Tokenizer, configuration and the class that LLaVA has for it.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ImportError: The ``llava`` package is not installed.
        ValueError: It is no checkpoint of LLaVA's that sees images.
    """
    length = {} if max_length is None else {"model_max_length": max_length}
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, padding_side="right", cache_dir=cache_dir, trust_remote_code=False, **length
        )
        values, _ = PreTrainedConfig.get_config_dict(path, cache_dir=cache_dir)
    except OSError as error:
        raise FileNotFoundError(
            f"the checkpoint {path!r} could not be read ({str(error).splitlines()[0]}); give a "
            "LLaVA checkpoint's folder or hub name (--base-model, --model_name_or_path)"
        ) from error
    if tokenizer.pad_token is None or tokenizer.unk_token is not None:
        # As LLaVA does; the mask says what is padding, so any token will do.
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    models = import_llava("training on its checkpoints", "llava.model")
    names = values.get("architectures") or []
    found = [getattr(models, name, None) for name in names]
    if not found or found[0] is None or "Mpt" in names[0]:
        raise ValueError(
            f"{path} is a {', '.join(names) or 'model of unknown class'}, expected a checkpoint of "
            "the llava package such as LlavaLlamaForCausalLM; for models of transformers "
            "(llava-hf/...) use llava-forgery train adapter --backend transformers"
        )
    if "mm_vision_tower" not in values:
        raise ValueError(
            f"{path} names no mm_vision_tower: it sees no images yet; train it with LLaVA first"
        )
    config = found[0].config_class.from_pretrained(path, cache_dir=cache_dir)
    return tokenizer, config, found[0]


@quiet()
def load_llava_host(
    path: str,
    *,
    dtype: torch.dtype | str = "auto",
    quantization: BitsAndBytesConfig | None = None,
    device: torch.device | str | None = None,
    aspect: str | None = None,
    max_length: int | None = None,
    cache_dir: str | None = None,
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """A checkpoint with its vision tower, as LLaVA's training loads it.

    Args:
        path: Folder or hub name.
        dtype: Of the weights, the vision tower's too; "auto" takes the checkpoint's.
        quantization: For the language model's linear layers, with ``SPARED``.
        device: Where a quantised model is loaded to.
        aspect: LLaVA's ``image_aspect_ratio``; None leaves the checkpoint's.
        max_length: As for :func:`read_checkpoint`, as is ``cache_dir``.
        cache_dir: Likewise.

    Raises:
        FileNotFoundError: As :func:`read_checkpoint`, as are the others.
        ImportError: The ``llava`` package is not installed.
        ValueError: It has the skill already.
    """
    tokenizer, _, model_class = read_checkpoint(path, max_length, cache_dir)
    options: dict[str, Any] = {"cache_dir": cache_dir}
    if quantization is not None:
        options |= {"quantization_config": quantization, "device_map": {"": device}}
    model = model_class.from_pretrained(path, dtype=dtype, **options)
    # As LLaVA writes them into the configuration that goes with the adapter.
    model.config.tokenizer_padding_side = tokenizer.padding_side
    model.config.tokenizer_model_max_length = tokenizer.model_max_length
    if aspect is not None:
        model.config.image_aspect_ratio = aspect
    if has_forgery_adapter(model):
        raise ValueError(
            f"{path} has the forgery skill already; give the checkpoint it was trained on"
        )
    tower = model.get_vision_tower()
    if not tower.is_loaded:
        tower.load_model()
    tower.to(device=model.device, dtype=model.dtype)
    return tokenizer, model
