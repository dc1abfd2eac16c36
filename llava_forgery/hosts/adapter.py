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

import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from llava_forgery.files import (
    atomic_path,
    check_output_folder,
    portable_name,
    read_json,
    resolve_name,
    write_json,
)
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.fpl.learner import ForgeryPromptLearner
from llava_forgery.hosts.fingerprint import check_fingerprint
from llava_forgery.hosts.lora import check_lora, fill_lora
from llava_forgery.hosts.quantized import leave_unpacked, quantization_config
from llava_forgery.hosts.transformers.model import ForgeryVLM, attach_forgery
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.weights import load_tensors, save_tensors

CONFIG, FPL, KFD, LORA = "forgery_config.json", "fpl.safetensors", "kfd", "lora"
FORMAT = 1
ENTRIES = (CONFIG, FPL, KFD, LORA)


def save_adapter(model: ForgeryVLM, directory: str | PathLike) -> None:
    """Write the adapter of a model.

    Args:
        model: From :func:`attach_forgery`.
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
            model.host.save_pretrained(temporary / LORA)
            # peft adds a model card with blanks to fill in.
            (temporary / LORA / "README.md").unlink(missing_ok=True)
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
            f"{directory} holds no {CONFIG}, so it is no forgery adapter; `llava-forgery finetune` "
            "writes one"
        )
    config = read_json(directory / CONFIG)
    if config.get("format") != FORMAT:
        raise ValueError(
            f"{directory / CONFIG} has format {config.get('format')}; this version reads {FORMAT}"
        )
    return config


def load_host(
    directory: Path, name_or_path: str, quantization: str | None = None, **options: Any
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The bare host that an adapter names, or that the user gives.

    Args:
        directory: The adapter's, against which a relative path is read first.
        name_or_path: A folder or a hub name.
        quantization: "4bit" or "8bit" for the language model's linear layers; None leaves them
            as they are (:mod:`llava_forgery.hosts.quantized`).
        options: For ``from_pretrained``, such as ``dtype`` and ``device_map``.

    Raises:
        FileNotFoundError: Neither a folder nor something that transformers can load.
        ImportError: Quantisation is asked for and bitsandbytes is not installed.
    """
    source = resolve_name(name_or_path, directory)
    try:
        if quantization is not None:
            options["quantization_config"] = quantization_config(
                source, quantization, options.get("dtype", "auto")
            )
        processor = AutoProcessor.from_pretrained(source)
        model = AutoModelForImageTextToText.from_pretrained(source, **options)
        leave_unpacked(model)
    except OSError as error:
        raise FileNotFoundError(
            f"the host {name_or_path!r} could not be loaded ({str(error).splitlines()[0]}); give "
            "its folder or hub name (host=..., or --host)"
        ) from error
    return model, processor


def pick_device(device: str | torch.device | None = None) -> str | torch.device:
    """The device that is asked for; by default a GPU if there is one."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def place_host(model: PreTrainedModel, device: str | torch.device | None) -> PreTrainedModel:
    """Bring a host to a device, a GPU if there is one by default.

    A quantised host lies where it was loaded: transformers has placed it.
    """
    return model if getattr(model, "is_quantized", False) else model.to(pick_device(device))


def load_adapter(
    directory: str | PathLike,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    trainable: bool = False,
) -> ForgeryVLM:
    """Attach a saved adapter to a loaded host.

    Args:
        directory: The adapter's.
        model: The bare host.
        processor: Its processor.
        trainable: Whether FPL and LoRA are to be trained further.

    Returns:
        The host with the skill, in eval mode.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The host is another one, or a file does not fit.
    """
    directory = Path(directory)
    config = read_adapter_config(directory)
    check_fingerprint(model, config["host"], str(directory))
    # A detector on the host's own tower finds it in the host.
    kfd = KnowledgeGuidedForgeryDetector.from_pretrained(directory / KFD, with_tower=False)
    fpl = ForgeryPromptLearner(FPLConfig.from_dict(config["fpl"]))
    fill_learner(fpl, directory)
    vlm = attach_forgery(model, processor, kfd, fpl)
    if config["lora"]:
        check_lora(model, directory / LORA)
        vlm.host = PeftModel.from_pretrained(model, directory / LORA, is_trainable=trainable)
    fpl.requires_grad_(trainable)
    return vlm.eval()


def fill_adapter(model: ForgeryVLM, directory: str | PathLike) -> None:
    """Fill an attached FPL and LoRA from an adapter's folder, strictly."""
    directory = Path(directory)
    fill_learner(model.fpl, directory)
    if model.has_lora:
        fill_lora(model.host, directory / LORA)


def fill_learner(fpl: ForgeryPromptLearner, directory: Path) -> None:
    """Fill a built FPL from an adapter's folder, strictly."""
    fpl.load_state_dict(load_tensors(directory / FPL, fpl.state_dict()))
