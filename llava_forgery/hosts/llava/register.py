"""Registering the forgery tower and the Forgery Prompt Learner in the ``llava`` package.

    from llava_forgery.hosts.llava.register import register
    register()

Afterwards LLaVA's builders support ``kfd:DIR`` and ``forgery_prompt_learner``, its
``from_pretrained`` and ``load_pretrained_model`` attach the skill to a checkpoint whose
configuration names ``mm_forgery_tower``, and its conversation templates include the paper's.
Checkpoints without it work as before, and generate with transformers 5.24 and newer, which renamed
the cache. Nothing happens on import, and :func:`unregister` undoes everything.
"""

import functools
import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from llava_forgery.call_state import in_call, of_call
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.fpl.learner import ForgeryPromptLearner
from llava_forgery.hosts.kv_cache import takes_cache
from llava_forgery.hosts.llava.checkpoint import (
    check_folder,
    check_tower,
    for_llavas_loader,
    load_skill,
)
from llava_forgery.hosts.llava.names import PREFIX, PROJECTOR_TYPE
from llava_forgery.hosts.llava.prompts import TEMPLATE, paper_template
from llava_forgery.hosts.llava.tower import KFDVisionTower
from llava_forgery.hub import is_hub_name, local_folder

logger = logging.getLogger(__name__)

# Owner of the folder that LLaVA's loader is given, while it runs.
_LOADING = object()
# Functions that undo each change, in the order of the changes.
_undo: list[Callable[[], None]] = []


def import_llava(feature: str, module: str = "llava") -> ModuleType:
    """Import the ``llava`` package, or a module of it.

    Raises:
        ImportError: It is not installed, or does not work here; the message gives the remedy.
    """
    if importlib.util.find_spec("llava") is None:
        raise ImportError(
            f"{feature} needs the package llava (LLaVA 1.5 and 1.6), which is not installed. "
            "Install it with: pip install --no-deps llava-torch sentencepiece (its own pins, "
            "torch 2.1 and transformers 4.37, are older than what llava-forgery runs on)"
        )
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{feature} needs {module}, which could not be imported ({error}). LLaVA-NeXT's llava "
            "needs llava_forgery.patch_llava_next() first; else install "
            "pip install --no-deps llava-torch"
        ) from error


def registered() -> bool:
    """Whether :func:`register` was called and not undone."""
    return bool(_undo)


def register() -> None:
    """Register the forgery skill in LLaVA; calling it again has no effect.

    Raises:
        ImportError: The ``llava`` package is not installed or does not work.
        ValueError: LLaVA already has a template of our name.
    """
    if registered():
        return
    feature = "llava_forgery.hosts.llava.register.register()"
    arch = import_llava(feature, "llava.model.llava_arch")
    towers = import_llava(feature, "llava.model.multimodal_encoder.builder")
    projectors = import_llava(feature, "llava.model.multimodal_projector.builder")
    loader = import_llava(feature, "llava.model.builder")
    conversation = import_llava(feature, "llava.conversation")
    if TEMPLATE in conversation.conv_templates:
        raise ValueError(f"llava.conversation has a template {TEMPLATE!r} already")
    _rebind(towers.build_vision_tower, _tower_builder)
    _rebind(projectors.build_vision_projector, _projector_builder)
    _rebind(loader.load_pretrained_model, _loader)
    # All of them before the first is changed, as changed classes have their own from_pretrained.
    for model_class in list(_model_classes(arch.LlavaMetaForCausalLM)):
        _teach_from_pretrained(model_class)
        for name in ("forward", "prepare_inputs_for_generation"):
            _teach_cache(model_class, name)
    conversation.conv_templates[TEMPLATE] = paper_template()
    _undo.append(lambda: conversation.conv_templates.pop(TEMPLATE, None))


def unregister() -> None:
    """Undo :func:`register`; models that have the skill keep it."""
    while _undo:
        _undo.pop()()


def build_forgery_projector(config: Any) -> ForgeryPromptLearner:
    """A Forgery Prompt Learner with the sizes of a configuration.

    Args:
        config: Configuration with ``hidden_size`` and ``mm_forgery_fpl`` (:class:`FPLConfig`'s
            fields).

    Raises:
        ValueError: They are missing or invalid.
    """
    sizes = getattr(config, "mm_forgery_fpl", None)
    if sizes is None:
        raise ValueError(
            f"the projector {PROJECTOR_TYPE} needs mm_forgery_fpl in the configuration, such as "
            '{"hidden_size": 4096, "num_layers": 3}'
        )
    return ForgeryPromptLearner(FPLConfig.from_dict(sizes))


def _tower_builder(original: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    @functools.wraps(original)
    def build_vision_tower(vision_tower_cfg: Any, **kwargs: Any) -> nn.Module:
        name = getattr(
            vision_tower_cfg, "mm_vision_tower", getattr(vision_tower_cfg, "vision_tower", None)
        )
        if isinstance(name, str) and name.startswith(PREFIX):
            return KFDVisionTower(name, args=vision_tower_cfg, **kwargs)
        return original(vision_tower_cfg, **kwargs)

    return build_vision_tower


def _projector_builder(original: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    @functools.wraps(original)
    def build_vision_projector(config: Any, *args: Any, **kwargs: Any) -> nn.Module:
        if getattr(config, "mm_projector_type", None) == PROJECTOR_TYPE:
            return build_forgery_projector(config)
        return original(config, *args, **kwargs)

    return build_vision_projector


def _loader(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load_pretrained_model(
        model_path: Any, model_base: Any, model_name: str, *args: Any, **kwargs: Any
    ) -> Any:
        model_path = _local(model_path)
        check_folder(Path(model_path), model_base, model_name)
        with in_call(_LOADING, model_path):
            loaded = original(model_path, model_base, model_name, *args, **kwargs)
        check_tower(loaded[1], model_path)
        return loaded

    return load_pretrained_model


def _local(name: Any) -> Any:
    """The folder of one of our checkpoints on the hub; other names are returned unchanged."""
    if Path(name).exists() or not is_hub_name(str(name).partition("@")[0]):
        return name
    repo_id, _, revision = str(name).partition("@")
    try:
        values, _ = PreTrainedConfig.get_config_dict(repo_id, revision=revision or None)
    except OSError:
        return name
    ours = values.get("mm_forgery_tower") is not None
    return str(for_llavas_loader(local_folder(name))) if ours else name


def _rebind(original: Any, make: Callable[[Any], Any]) -> None:
    """Replace the original by a wrapper in all modules of LLaVA that hold it under its name."""
    wrapper, name = make(original), original.__name__
    for module in _llava_modules():
        if getattr(module, name, None) is original:
            setattr(module, name, wrapper)
    # Modules imported in the meantime hold the wrapper.
    _undo.append(lambda: _put_back(name, wrapper, original))


def _put_back(name: str, wrapper: Any, original: Any) -> None:
    for module in _llava_modules():
        if getattr(module, name, None) is wrapper:
            setattr(module, name, original)


def _llava_modules() -> list[ModuleType]:
    return [m for n, m in list(sys.modules.items()) if m and (n + ".").startswith("llava.")]


def _model_classes(meta: type) -> Iterator[type]:
    child: type
    for child in meta.__subclasses__():
        if issubclass(child, nn.Module) and "from_pretrained" not in vars(child):
            yield child
        yield from _model_classes(child)


def _teach_cache(model_class: type, name: str) -> None:
    """Without this, transformers 5.24 and newer cannot generate with the ``llava`` package."""
    original = vars(model_class).get(name)
    if original is None or (taught := takes_cache(original)) is original:
        return
    setattr(model_class, name, taught)
    _undo.append(lambda: setattr(model_class, name, original))


def _teach_from_pretrained(model_class: Any) -> None:
    @functools.wraps(model_class.from_pretrained.__func__)
    def from_pretrained(cls: type, path: Any, *args: Any, **kwargs: Any) -> Any:
        config = kwargs.get("config")
        folder = path
        if isinstance(config, PreTrainedConfig):
            # LLaVA reads a LoRA folder's configuration and its base's weights. Only AutoConfig
            # notes where a configuration was read.
            folder = config.name_or_path or of_call(_LOADING) or path
        loaded = super(model_class, cls).from_pretrained(path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if getattr(model.config, "mm_forgery_tower", None) is not None:
            load_skill(model, local_folder(str(folder)))
        return loaded

    model_class.from_pretrained = classmethod(from_pretrained)
    _undo.append(lambda: delattr(model_class, "from_pretrained"))
