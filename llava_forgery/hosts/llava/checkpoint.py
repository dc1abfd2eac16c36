"""The forgery skill in LLaVA's own folders.

LoRA::

    config.json                    the model's, with mm_forgery_tower, mm_forgery_projector_type,
                                   mm_forgery_fpl, mm_forgery_host, format and versions
    adapter_config.json, adapter_model.safetensors          LoRA, as peft writes it
    non_lora_trainables.bin        needed by LLaVA's loader; nothing of the skill is in it
    fpl.safetensors, kfd/          the learner and the detector
    host_trainables.safetensors    weights of the host that were trained besides LoRA, if any: the
                                   content of the .bin, for readers that refuse pickles
    README.md                      the model card

Without LoRA (only the FPL) ``mm_projector.bin`` is used instead, which that branch of LLaVA's
loader needs. A whole model (merged) has LLaVA's files with ``fpl.safetensors`` and ``kfd/``.

Formats 1 and 2 only differ in what is recorded, so both are supported.

LLaVA's loader reads all three after :func:`llava_forgery.hosts.llava.register.register`; otherwise
it only reads the host and LoRA.
"""

from __future__ import annotations

import logging
import shutil
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import cached_assets_path, constants
from transformers import PreTrainedModel

from llava_forgery.downloads import named_by
from llava_forgery.files import (
    atomic_path,
    check_output_folder,
    read_json,
    resolve_name,
)
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.fpl.learner import ForgeryPromptLearner
from llava_forgery.hosts.adapter import FORMAT, write_card
from llava_forgery.hosts.fingerprint import check_fingerprint, check_parts
from llava_forgery.hosts.llava.model import attach_to_llava
from llava_forgery.hosts.llava.names import (
    CONFIG_KEYS,
    CROP_KEY,
    FORMAT_KEY,
    HOST_PROJECTOR,
    PLACEMENT_KEY,
    PREFIX,
    PROJECTOR_TYPE,
    TRAINING_KEY,
)
from llava_forgery.hosts.llava.saving import save_modules, saved_config
from llava_forgery.hosts.llava.skill import has_forgery_adapter
from llava_forgery.hosts.lora import LORA_CONFIG, LORA_WEIGHTS, check_lora, is_peft, save_lora
from llava_forgery.hosts.names import CARD, FPL, KFD
from llava_forgery.hosts.placement import PLACEHOLDERS, WHOLE
from llava_forgery.hosts.projector import TRAINABLES, TrainedProjector
from llava_forgery.optional import lazy
from llava_forgery.weights import load_tensors, read_tensors, save_tensors

peft = lazy("peft")

logger = logging.getLogger(__name__)

CONFIG = "config.json"
NON_LORA, NO_LORA = "non_lora_trainables.bin", "mm_projector.bin"
# Files of an adapter besides fpl.safetensors and kfd/, the configuration first.
FILES = (CONFIG, LORA_CONFIG, LORA_WEIGHTS, NON_LORA, NO_LORA, TRAINABLES)
ENTRIES = (*FILES, FPL, KFD, CARD)


def read_skill_config(directory: str | PathLike) -> dict[str, Any] | None:
    """The configuration of one of our folders in LLaVA's layout; None for other folders.

    Raises:
        ValueError: The format is newer.
    """
    path = Path(directory) / CONFIG
    values = read_json(path) if path.is_file() else {}
    if not isinstance(values, dict) or not values.get("mm_forgery_tower"):
        return None
    if values.get(FORMAT_KEY, 1) not in range(1, FORMAT + 1):
        raise ValueError(
            f"{path} has {FORMAT_KEY} {values[FORMAT_KEY]}, this version reads 1 to {FORMAT}; a "
            "newer llava-forgery may have written it"
        )
    return values


def holds_model(directory: Path) -> bool:
    """Whether a folder holds a whole model's weights."""
    return any(any(directory.glob(f"{n}*")) for n in ("model.safetensors", "model-", "pytorch_"))


def check_folder(directory: Path, base: str | None, name: str) -> None:
    """Refuse what LLaVA's loader would misread, as it depends on the folder's name.

    Args:
        directory: LLaVA's ``model_path``.
        base: LLaVA's ``model_base``.
        name: LLaVA's ``model_name``, from the folder's name.

    Raises:
        ValueError: The name, or a missing base, would make the loader choose another branch.
    """
    if read_skill_config(directory) is None:
        return
    needed = ["llava"]
    if (directory / LORA_CONFIG).is_file():
        needed.append("lora")
    lacking = [word for word in needed if word not in name.lower()]
    if lacking:
        raise ValueError(
            f"LLaVA tells the kind of a checkpoint by its name, and {name!r} lacks "
            f"{' and '.join(map(repr, lacking))}: rename {directory} to, say, "
            f"{'-'.join(['my', *needed])}, or give such a model_name"
        )
    if base is None and not holds_model(directory):
        raise ValueError(
            f"{directory} holds only an adapter: give the model it was trained on as model_base "
            "(--model-base)"
        )
    if "lora" in name.lower() and not (directory / LORA_CONFIG).is_file() and base is not None:
        raise ValueError(
            f"{directory} holds no {LORA_CONFIG}, but its name {name!r} says 'lora', and LLaVA's "
            "loader goes by it: rename the folder"
        )


def load_skill(model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """Attach the skill that a loaded model's configuration names.

    Args:
        model: Model of the ``llava`` package, with its weights.
        directory: Folder of the configuration.

    Returns:
        The same model; the FPL is frozen.

    Raises:
        FileNotFoundError: Detector or learner are missing.
        ValueError: They do not match, or the model is not the one that they were trained on.
    """
    config = model.config
    values = {key: getattr(config, key, None) for key in CONFIG_KEYS}
    missing = [key for key, value in values.items() if value is None]
    if missing:
        raise ValueError(f"the configuration in {directory} lacks {', '.join(missing)}")
    if values["mm_forgery_projector_type"] != PROJECTOR_TYPE:
        raise ValueError(
            f"mm_forgery_projector_type must be {PROJECTOR_TYPE}, got "
            f"{values['mm_forgery_projector_type']!r}"
        )
    trained = (directory / TRAINABLES).is_file()
    # Loaders fill the tower later, and call check_tower then.
    skip = set() if model.get_vision_tower().is_loaded else {"vision tower"}
    if trained:
        # LLaVA's loader has already filled it.
        skip.add("projector")
    check_fingerprint(model, values["mm_forgery_host"], str(directory), skip)
    learner = ForgeryPromptLearner(FPLConfig.from_dict(values["mm_forgery_fpl"]))
    learner.load_state_dict(load_tensors(directory / FPL, learner.state_dict()))
    if (directory / LORA_CONFIG).is_file():
        check_lora(model, directory)
    projector = None
    if trained:
        projector = TrainedProjector(model, HOST_PROJECTOR)
        projector.fill(directory)
    tower = resolve_name(values["mm_forgery_tower"].removeprefix(PREFIX), directory)
    # Names in files are only resolved in the hub's cache.
    here = Path(tower).is_dir()
    with nullcontext() if here else named_by(directory / CONFIG, {"detector": tower}):
        attach_to_llava(
            model,
            tower,
            learner.requires_grad_(False).eval(),
            placement=getattr(config, PLACEMENT_KEY, PLACEHOLDERS),
            crop=getattr(config, CROP_KEY, WHOLE),
        )
    model._forgery_projector = projector
    name = resolve_name(values["mm_forgery_host"]["name_or_path"], directory)
    config.mm_forgery_host = {**values["mm_forgery_host"], "name_or_path": name}
    return model


def for_llavas_loader(directory: Path) -> Path:
    """A folder from the hub, which holds no pickle, with the one that LLaVA's loader needs.

    The pickle is made here from safetensors, in a copy in huggingface_hub's cache.

    Args:
        directory: Folder in LLaVA's layout.
    """
    name = NON_LORA if (directory / LORA_CONFIG).is_file() else NO_LORA
    if holds_model(directory) or (directory / name).is_file():
        return directory
    # By its repository and commit, as in the cache.
    repository, commit = directory.parent.parent.name, directory.name
    assets = cached_assets_path(
        "llava-forgery", repository, commit, assets_dir=constants.HF_ASSETS_CACHE
    )
    copy = assets / repository
    if not (copy / name).is_file():
        with atomic_path(copy) as temporary:
            shutil.copytree(directory, temporary)
            trained = directory / TRAINABLES
            torch.save(read_tensors(trained) if trained.is_file() else {}, temporary / name)
    return copy


def check_tower(model: PreTrainedModel, directory: str | PathLike) -> None:
    """Compare the vision tower, once LLaVA's loader has filled it, with that in training.

    Raises:
        ValueError: The towers differ.
    """
    expected = getattr(model.config, "mm_forgery_host", {})
    check_parts(model, expected, str(directory), skip={"projector"})


def save_llava_adapter(
    model: PreTrainedModel | peft.PeftModel,
    directory: str | PathLike,
    host_trainables: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the trained parameters in LLaVA's layout, never the host.

    Args:
        model: Model with the skill, in peft's wrapper if LoRA was trained.
        directory: Output folder; an existing one is replaced as a whole. LLaVA's loader depends on
            its name: it must contain "llava", and "lora" if LoRA was trained.
        host_trainables: Further weights of the host that were trained, such as
            ``model.mm_projector.0.weight``; LLaVA's loader reads them from its own file.

    Raises:
        ValueError: The model has no skill, or the folder holds something else.
    """
    directory = Path(directory)
    needed = ["llava", "lora"] if is_peft(model) else ["llava"]
    if not all(word in directory.name.lower() for word in needed):
        logger.warning(
            "LLaVA's loader goes by a folder's name: %s should hold %s",
            directory,
            " and ".join(map(repr, needed)),
        )
    check_output_folder(directory, FPL)
    with atomic_path(directory) as temporary:
        write_llava_adapter(model, temporary, directory, host_trainables)


def write_llava_adapter(
    model: PreTrainedModel | peft.PeftModel,
    temporary: Path,
    directory: Path,
    host_trainables: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write :func:`save_llava_adapter`'s files into a new folder, to be moved by the caller.

    Args:
        model: As for :func:`save_llava_adapter`.
        temporary: New folder.
        directory: Final location of its files, next to ``temporary``.
        host_trainables: As for :func:`save_llava_adapter`.

    Raises:
        ValueError: The model has no skill.
    """
    lora = is_peft(model)
    bare = model.get_base_model() if lora else model
    if not has_forgery_adapter(bare):
        raise ValueError("this model has no forgery skill to save; attach_to_llava gives it one")
    temporary.mkdir()
    with saved_config(bare, directory) as host:
        bare.config.save_pretrained(temporary)
    if lora:
        save_lora(model, temporary, host)
    write_card(temporary, host, lora, getattr(bare.config, TRAINING_KEY, {}))
    save_modules(bare, temporary)
    trainables = {name: t.detach().cpu() for name, t in (host_trainables or {}).items()}
    torch.save(trainables, temporary / (NON_LORA if lora else NO_LORA))
    if trainables:
        save_tensors(temporary / TRAINABLES, trainables)
