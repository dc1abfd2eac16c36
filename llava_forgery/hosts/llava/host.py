"""Loading an original checkpoint of the ``llava`` package for training."""

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

# LLaVA's choice of modules that are not quantised.
SPARED = ["model.mm_projector", "model.vision_tower", "lm_head"]


def read_checkpoint(
    path: str, max_length: int | None = None, cache_dir: str | None = None
) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig, type[PreTrainedModel]]:
    """Everything of a checkpoint except its weights.

    Args:
        path: Folder or hub name.
        max_length: The tokenizer's ``model_max_length``; None keeps its own.
        cache_dir: Cache folder of transformers.

    Returns:
        Tokenizer, configuration and LLaVA's class of the model.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ImportError: The ``llava`` package is not installed.
        ValueError: It is not a checkpoint of LLaVA with a vision tower.
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
        # As in LLaVA; any token works, because of the mask.
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
    """Load a checkpoint with its vision tower, as in LLaVA's training.

    Args:
        path: Folder or hub name.
        dtype: Dtype of the weights, including the vision tower's; "auto" for the checkpoint's.
        quantization: Quantisation of the language model's linear layers, with ``SPARED``.
        device: Device to load a quantised model onto.
        aspect: LLaVA's ``image_aspect_ratio``; None keeps the checkpoint's.
        max_length: As for :func:`read_checkpoint`.
        cache_dir: As for :func:`read_checkpoint`.

    Raises:
        FileNotFoundError: As for :func:`read_checkpoint`.
        ImportError: The ``llava`` package is not installed.
        ValueError: As for :func:`read_checkpoint`, or the checkpoint already has the skill.
    """
    tokenizer, _, model_class = read_checkpoint(path, max_length, cache_dir)
    options: dict[str, Any] = {"cache_dir": cache_dir}
    if quantization is not None:
        options |= {"quantization_config": quantization, "device_map": {"": device}}
    model = model_class.from_pretrained(path, dtype=dtype, **options)
    # As LLaVA writes them into the configuration of the adapter.
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
