"""The forgery skill on a model of the ``llava`` package.

``attach_to_llava`` adds a tower (the detector) and a projector (the FPL) to a loaded model,
``model.get_model().forgery_tower`` and ``.forgery_projector``. The model's ``forward`` and
``generate`` then also take ``forgery_images``. Its own tower, its projector and the names of its
weights are unchanged.

Source: LVLM-DFD, sections 3.2 and 3.3.
"""

from __future__ import annotations

import re
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel

from llava_forgery.fpl.config import FPLConfig
from llava_forgery.fpl.learner import ForgeryPromptLearner
from llava_forgery.hosts.fingerprint import host_fingerprint
from llava_forgery.hosts.llava.names import (
    CONFIG_KEYS,
    CROP_KEY,
    FORMAT_KEY,
    PLACEMENT_KEY,
    PREFIX,
    PROJECTOR,
    PROJECTOR_TYPE,
    TEMPLATE_KEY,
    TOWER,
    TRAINING_KEY,
    VERSIONS_KEY,
)
from llava_forgery.hosts.llava.shared_tower import LlavaSharedTower
from llava_forgery.hosts.llava.skill import forgery_class, has_forgery_adapter
from llava_forgery.hosts.llava.tower import KFDVisionTower
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.pictures import ClientPrompts
from llava_forgery.hosts.placeholder import input_embedding
from llava_forgery.hosts.placement import ALWAYS, FACE, check_crop, check_placement
from llava_forgery.hub import local_folder
from llava_forgery.kfd.host_tower import HostEncoder
from llava_forgery.noise import quiet
from llava_forgery.optional import lazy

if TYPE_CHECKING:
    import peft
else:
    peft = lazy("peft")


@quiet()
def attach_to_llava(
    model: PreTrainedModel,
    forgery_tower: str | PathLike,
    fpl: ForgeryPromptLearner | FPLConfig | None = None,
    seed: int = 0,
    placement: str = ALWAYS,
    crop: str = FACE,
) -> PreTrainedModel:
    """Attach the forgery skill to a loaded model of the ``llava`` package.

    The detector is frozen, the FPL is trainable, and the model's own weights are unchanged.

    Args:
        model: Model such as ``LlavaLlamaForCausalLM``, with its weights.
        forgery_tower: The detector, ``kfd:DIR`` or DIR: its folder or hub name.
        fpl: A learner, or its configuration for a new one; by default a new ``lite`` one.
        seed: Seed of a new learner's weights.
        placement: Whether E_forgery follows each image of every prompt (``always``), or is only
            at written ``placeholders``; see :mod:`llava_forgery.hosts.placement`.
        crop: Whether the ``face`` is cut out of pictures that come without ``forgery_images``, or
            the whole picture is judged (``none``).

    Returns:
        The same model; its ``forward`` and ``generate`` take ``forgery_images`` (N, 3, S, S) in
        [0, 1], one for each image of the prompts with placeholders, in their order; or none, if
        the detector reads the model's own vision tower (``train detector --base-model``).

    Raises:
        FileNotFoundError: The folder holds no detector.
        ValueError: The model already has the skill, sizes do not match, there is no such placement
            or crop, or a new learner is needed after LLaVA's ``disable_torch_init``.
    """
    if has_forgery_adapter(model):
        raise ValueError("this model has the forgery skill already")
    if not hasattr(model, "get_model") or not hasattr(model, "get_vision_tower"):
        raise ValueError(
            f"{type(model).__name__} is not a model of the llava package; use attach_forgery for "
            "those of transformers"
        )
    check_placement(placement)
    check_crop(crop)
    fingerprint = host_fingerprint(model)
    tower = KFDVisionTower(local_folder(str(forgery_tower).removeprefix(PREFIX)))
    layers, width = tower.config.num_layers, fingerprint["hidden_size"]
    if fpl is None:
        fpl = FPLConfig(hidden_size=width, num_layers=layers)
    if isinstance(fpl, FPLConfig):
        _check_initialisation()
        learner = ForgeryPromptLearner.from_config(replace(fpl, hidden_size=width), seed)
        learner.match_scale(input_embedding(model).weight.detach().cpu())
    else:
        learner = fpl
    sizes = {"hidden_size": width, "num_layers": layers}
    for field, expected in sizes.items():
        if getattr(learner.config, field) != expected:
            raise ValueError(
                f"this FPL has {field} {getattr(learner.config, field)}, the model and the "
                f"detector need {expected}: it belongs to others"
            )
    _install(model, tower, learner)
    config = model.config
    config.mm_forgery_tower = f"{PREFIX}{tower.directory}"
    config.mm_forgery_projector_type = PROJECTOR_TYPE
    config.mm_forgery_fpl = learner.config.to_dict()
    setattr(config, PLACEMENT_KEY, placement)
    setattr(config, CROP_KEY, crop)
    config.mm_forgery_host = {"name_or_path": model.name_or_path, **fingerprint}
    return model


def _check_initialisation() -> None:
    """LLaVA's tools disable torch's initialisation: new layers are then uninitialised memory."""
    if nn.Linear.reset_parameters.__module__ != nn.Linear.__module__:
        raise ValueError(
            "torch's initialisation of linear layers is switched off in this process (LLaVA's "
            "disable_torch_init), so a new FPL would begin with garbage; attach it before, or give "
            "a loaded learner"
        )


def detach_from_llava(model: Any) -> PreTrainedModel:
    """Remove the skill, which restores the model.

    Raises:
        ValueError: The model does not have the skill.
    """
    if not has_forgery_adapter(model):
        raise ValueError("this model has no forgery skill")
    inner = model.get_model()
    delattr(inner, TOWER)
    delattr(inner, PROJECTOR)
    for key in (
        *CONFIG_KEYS,
        PLACEMENT_KEY,
        CROP_KEY,
        TEMPLATE_KEY,
        FORMAT_KEY,
        VERSIONS_KEY,
        TRAINING_KEY,
    ):
        if hasattr(model.config, key):
            delattr(model.config, key)
    if model._forgery_projector is not None:
        model._forgery_projector.restore()
    model._forgery_shared = model._forgery_projector = model._forgery_clients = None
    model.__class__ = type(model).__mro__[2]
    return model


def _install(model: Any, tower: KFDVisionTower, learner: ForgeryPromptLearner) -> None:
    device = input_embedding(model).weight.device
    inner = model.get_model()
    setattr(inner, TOWER, tower.to(device))
    setattr(inner, PROJECTOR, learner.to(device))
    model._forgery_clients = ClientPrompts()
    kind: Any = type(model)
    model.__class__ = forgery_class(kind)
    if isinstance(tower.kfd.encoder, HostEncoder):
        model._forgery_shared = LlavaSharedTower(model, tower.kfd)


def llava_lora_config(model: PreTrainedModel, settings: LoraSettings) -> peft.LoraConfig:
    """peft's configuration with only the language model's layers as targets.

    A list of names would also match the vision tower, which is inside the language model here.

    Args:
        model: Model of the ``llava`` package.
        settings: Sizes of LoRA.

    Raises:
        ValueError: The language model has no such layers.
    """
    names = "|".join(settings.projections)
    pattern = rf"model\.layers\.\d+\..*\.({names})"
    if not any(re.fullmatch(pattern, name) for name, _ in model.named_modules()):
        raise ValueError(
            f"{type(model).__name__} has no layers named {names.replace('|', ', ')} in its "
            "language model; give LoraSettings(projections=...) its names"
        )
    return peft.LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=pattern,
        bias="none",
        task_type="CAUSAL_LM",
    )
