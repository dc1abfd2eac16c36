"""Saving and loading a forgery adapter: FPL, LoRA, detector and one JSON file; never the host.

Layout::

    forgery_config.json    format, host's name and fingerprint, FPL's configuration
    fpl.safetensors        the learner
    kfd/                   the detector (llava_forgery.kfd.checkpoint)
    lora/                  peft's own layout, where LoRA was trained
"""

from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from llava_forgery.files import (
    atomic_path,
    check_output_folder,
    portable_name,
    read_json,
    write_json,
)
from llava_forgery.fpl.learner import ForgeryPromptLearner
from llava_forgery.hosts.lora import fill_lora, save_lora
from llava_forgery.weights import load_tensors, save_tensors

CONFIG, FPL, KFD, LORA = "forgery_config.json", "fpl.safetensors", "kfd", "lora"
FORMAT = 1
ENTRIES = (CONFIG, FPL, KFD, LORA)


def save_adapter(model: nn.Module, directory: str | PathLike) -> None:
    """Write the adapter of a model.

    Args:
        model: From :func:`llava_forgery.hosts.transformers.model.attach_forgery`.
        directory: An existing adapter there is replaced as a whole.

    Raises:
        ValueError: There is something else.
    """
    directory = Path(directory)
    check_output_folder(directory, CONFIG)
    with atomic_path(directory) as temporary:
        temporary.mkdir()
        save_tensors(temporary / FPL, model.fpl.state_dict())
        model.kfd.save_pretrained(temporary / KFD)
        if model.has_lora:
            save_lora(model.host, temporary / LORA)
        write_json(
            temporary / CONFIG,
            {
                "format": FORMAT,
                "host": {
                    "name_or_path": portable_name(model.host_name, directory),
                    **model.fingerprint,
                },
                "fpl": model.fpl.config.to_dict(),
                "lora": model.has_lora,
            },
        )


def read_adapter_config(directory: str | PathLike) -> dict[str, Any]:
    """The adapter's JSON file.

    Raises:
        FileNotFoundError: The folder is missing or holds no adapter.
        ValueError: Of another format.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(
            f"there is no folder {directory}; give the folder of a forgery adapter, such as the "
            "demo's OUT/adapter"
        )
    if not (directory / CONFIG).is_file():
        raise FileNotFoundError(
            f"{directory} holds no {CONFIG}, so it is no forgery adapter; "
            "`llava-forgery train adapter` writes one"
        )
    config = read_json(directory / CONFIG)
    if config.get("format") != FORMAT:
        raise ValueError(
            f"{directory / CONFIG} has format {config.get('format')}; this version reads {FORMAT}"
        )
    return config


def fill_adapter(model: nn.Module, directory: str | PathLike) -> None:
    """Fill an attached FPL and LoRA from an adapter's folder, strictly."""
    directory = Path(directory)
    fill_learner(model.fpl, directory)
    if model.has_lora:
        fill_lora(model.host, directory / LORA)


def fill_learner(fpl: ForgeryPromptLearner, directory: Path) -> None:
    """Fill a built FPL from an adapter's folder, strictly."""
    fpl.load_state_dict(load_tensors(directory / FPL, fpl.state_dict()))
