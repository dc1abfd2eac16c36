"""Writing the skill with LLaVA's files: learner, detector and names in the configuration."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from llava_forgery.files import apply_umask, portable_name
from llava_forgery.hosts.adapter import FORMAT, library_versions, write_card
from llava_forgery.hosts.fingerprint import host_fingerprint
from llava_forgery.hosts.llava.names import (
    FORMAT_KEY,
    PREFIX,
    PROJECTOR,
    TOWER,
    TRAINING_KEY,
    VERSIONS_KEY,
)
from llava_forgery.hosts.names import CARD, FPL, KFD
from llava_forgery.weights import save_tensors


def save_full(
    model: PreTrainedModel,
    save: Callable[..., None],
    directory: str | PathLike,
    state_dict: dict[str, torch.Tensor] | None,
    **options: Any,
) -> None:
    """Write a whole model with the skill.

    Args:
        model: Model with the skill.
        save: transformers' ``save_pretrained`` of the model.
        directory: Output folder.
        state_dict: State of the model, if the caller gathered it; the skill's tensors are omitted.
        options: Options of ``save_pretrained``.
    """
    directory = Path(directory)
    state = model.state_dict() if state_dict is None else state_dict
    own = tuple(f".{name}." for name in (TOWER, PROJECTOR))
    state = {name: t for name, t in state.items() if not any(part in name for part in own)}
    # Its embedding may have grown since the skill was attached.
    model.config.mm_forgery_host |= host_fingerprint(model)
    with saved_config(model, directory) as host:
        save(directory, state_dict=state, **options)
    for path in directory.glob("*.safetensors"):
        apply_umask(path)
    save_modules(model, directory)
    if not (directory / CARD).is_file():
        write_card(directory, host, lora=False, training=getattr(model.config, TRAINING_KEY, {}))


def save_modules(model: PreTrainedModel, directory: Path) -> None:
    inner = model.get_model()
    save_tensors(directory / FPL, getattr(inner, PROJECTOR).state_dict())
    getattr(inner, TOWER).kfd.save_pretrained(directory / KFD)


@contextmanager
def saved_config(model: PreTrainedModel, directory: Path) -> Iterator[str]:
    """Context in which the configuration has paths relative to the folder, to be moved with it.

    Yields:
        The host's name in it.
    """
    config = model.config
    tower, host = config.mm_forgery_tower, config.mm_forgery_host
    config.mm_forgery_tower = f"{PREFIX}{KFD}"
    name = portable_name(host["name_or_path"], directory)
    config.mm_forgery_host = {**host, "name_or_path": name}
    setattr(config, FORMAT_KEY, FORMAT)
    setattr(config, VERSIONS_KEY, library_versions())
    try:
        yield name
    finally:
        config.mm_forgery_tower, config.mm_forgery_host = tower, host
