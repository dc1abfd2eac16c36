"""Changes that LLaVA-NeXT's ``llava`` needs to run on current transformers.

    from llava_forgery import patch_llava_next, register

    patch_llava_next()
    register()

LLaVA-NeXT (LLaVA-VL/LLaVA-NeXT at df17966) was written for transformers 4. Nothing here happens
unless :func:`patch_llava_next` is called, which logs its changes. LLaVA-NeXT's
``load_pretrained_model`` asks for flash attention unless told otherwise: give
``attn_implementation="sdpa"``. Its conversation module looks up a tokenizer on import: set
``HF_HUB_OFFLINE=1`` if that must not reach the hub.
"""

import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import modeling_utils, pytorch_utils

from llava_forgery.hosts.llava.register import register

logger = logging.getLogger(__name__)

# Functions that undo each change.
_undo: list[Callable[[], None]] = []


def is_next() -> bool:
    """Whether the ``llava`` that would be imported is LLaVA-NeXT's."""
    found = importlib.util.find_spec("llava")
    folders = (found.submodule_search_locations or []) if found else []
    return any((Path(folder) / "model/multimodal_resampler").is_dir() for folder in folders)


def patch_llava_next() -> list[str]:
    """Make LLaVA-NeXT's ``llava`` importable and usable; calling it again has no effect.

    Returns:
        A sentence for each change that was made, which is also logged.

    Raises:
        ImportError: There is no LLaVA-NeXT to import.
    """
    if not is_next():
        raise ImportError(
            "the llava that Python finds is not LLaVA-NeXT's (llava/model/multimodal_resampler is "
            "missing): put a checkout of LLaVA-VL/LLaVA-NeXT on PYTHONPATH before anything else"
        )
    changes = [*_bring_back_helpers(), *_keep_rope(), *_delay_towers(), *_plain_sizes()]
    for change in changes:
        logger.warning("%s", change)
    return changes


def register_any() -> None:
    """:func:`register`, preceded by :func:`patch_llava_next` if it is needed.

    Raises:
        ImportError: The ``llava`` package is not installed or does not run.
        ValueError: As for :func:`register`.
    """
    if is_next():
        patch_llava_next()
    register()


def prepare_import() -> None:
    """Changes that must precede the import of LLaVA-NeXT's ``llava``."""
    if is_next():
        for change in _bring_back_helpers():
            logger.warning("%s", change)


def unpatch_llava_next() -> None:
    """Undo all changes."""
    while _undo:
        _undo.pop()()


def _bring_back_helpers() -> Iterable[str]:
    helpers = {
        "apply_chunking_to_forward": pytorch_utils.apply_chunking_to_forward,
        "prune_linear_layer": pytorch_utils.prune_linear_layer,
        "find_pruneable_heads_and_indices": _find_pruneable_heads_and_indices,
    }
    for name, helper in helpers.items():
        if not hasattr(modeling_utils, name):
            _set(modeling_utils, name, helper)
            yield (
                f"transformers.modeling_utils.{name} is back, which llava's Q-Former imports from "
                "there"
            )


def _find_pruneable_heads_and_indices(
    heads: Iterable[int], n_heads: int, head_size: int, already_pruned_heads: set[int]
) -> tuple[set[int], torch.Tensor]:
    """Heads to prune and remaining columns of n_heads * head_size, as in transformers 4: counted
    among the heads that earlier pruning left."""
    heads_before = n_heads + len(already_pruned_heads)
    left = [head for head in range(heads_before) if head not in already_pruned_heads]
    pruned = set(heads) - set(already_pruned_heads)
    kept = torch.tensor([head not in pruned for head in left]).repeat_interleave(head_size)
    return pruned, torch.arange(len(kept))[kept].long()


def _keep_rope() -> Iterable[str]:
    """LlavaQwen sets ``rope_scaling`` to None, with which transformers 5 also loses the base."""
    try:
        module = importlib.import_module("llava.model.language_model.llava_qwen")
    except ImportError:
        return
    config = module.LlavaQwenConfig
    if "__setattr__" in vars(config):
        return

    def keep(self: Any, name: str, value: Any) -> None:
        if name != "rope_scaling" or value is not None:
            super(config, self).__setattr__(name, value)

    _set(config, "__setattr__", keep)
    yield "LlavaQwenConfig keeps its rotary embedding's parameters when rope_scaling is set to None"


def _delay_towers() -> Iterable[str]:
    """A tower cannot be loaded inside ``from_pretrained``, but afterwards by load_model()."""
    arch = importlib.import_module("llava.model.llava_arch")
    original = arch.build_vision_tower
    if hasattr(original, "_delays"):
        return

    @functools.wraps(original)
    def build_vision_tower(vision_tower_cfg: Any, **kwargs: Any) -> nn.Module:
        if torch.empty(0).is_meta:
            kwargs["delay_load"] = True
        return original(vision_tower_cfg, **kwargs)

    delaying: Any = build_vision_tower
    delaying._delays = True
    _set(arch, "build_vision_tower", delaying)
    yield (
        "llava_arch.build_vision_tower leaves the tower's weights to load_model() inside "
        "from_pretrained, as delay_load in the configuration does"
    )


class _PlainSize:
    """An image processor whose ``size`` is a dictionary, as transformers 4 had it."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.size = dict(processor.size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)


def _plain_sizes() -> Iterable[str]:
    """Any-resolution images check whether ``size`` is a dict, which it no longer is."""
    module = importlib.import_module("llava.mm_utils")
    original = getattr(module, "process_anyres_image", None)
    if original is None or hasattr(original, "_plain"):
        return

    @functools.wraps(original)
    def process_anyres_image(image: Any, processor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        # Some of LLaVA-NeXT's own processors have a pair.
        plain = processor if isinstance(processor.size, tuple) else _PlainSize(processor)
        return original(image, plain, *args, **kwargs)

    plain_sized: Any = process_anyres_image
    plain_sized._plain = True
    _set(module, "process_anyres_image", plain_sized)
    yield (
        "llava.mm_utils.process_anyres_image reads an image processor's size as a dictionary, "
        "which transformers 5 has replaced"
    )


def _set(owner: Any, name: str, value: Any) -> None:
    had, before = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, value)
    _undo.append(lambda: setattr(owner, name, before) if had else delattr(owner, name))
