"""Loading a host of transformers, and an adapter onto it."""

from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
)

from llava_forgery.downloads import allow_downloads, named_by
from llava_forgery.files import read_json, resolve_name
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.fpl.learner import ForgeryPromptLearner
from llava_forgery.hosts.adapter import fill_learner, read_adapter_config
from llava_forgery.hosts.fingerprint import check_fingerprint
from llava_forgery.hosts.frozen_lora import FrozenLora, takes_frozen
from llava_forgery.hosts.lora import load_lora
from llava_forgery.hosts.names import CONFIG, KFD
from llava_forgery.hosts.placement import PLACEHOLDERS, WHOLE
from llava_forgery.hosts.projector import TRAINABLES, TrainedProjector
from llava_forgery.hosts.quantized import (
    device_map_of,
    leave_unpacked,
    place_host,
    quantization_config,
)
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.hosts.transformers.vlm import ForgeryVLM
from llava_forgery.hub import local_folder
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.noise import quiet


@quiet()
def load_host(
    directory: Path, name_or_path: str, quantization: str | None = None, **options: Any
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The bare host that an adapter names, or that the user gives.

    Args:
        directory: The adapter's, against which a relative path is read first.
        name_or_path: A folder or a hub name.
        quantization: "4bit" or "8bit" for the language model's linear layers; None leaves them
            as they are.
        options: For ``from_pretrained``, such as ``dtype`` and ``device_map``.

    Raises:
        FileNotFoundError: Neither a folder nor something that transformers can load.
        ImportError: Quantisation is asked for and bitsandbytes is not installed.
        ValueError: It is a forgery adapter, could only be loaded by running code that it brings, or
            the checkpoint lacks weights.
    """
    source = resolve_name(name_or_path, directory)
    if (Path(source) / CONFIG).is_file():
        # transformers would load the host that the LoRA names, with the LoRA on it.
        raise ValueError(f"{source} is a forgery adapter, expected its host (--base-model)")
    try:
        if quantization is not None:
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            options["quantization_config"] = quantization_config(
                config, quantization, options.get("dtype", "auto"), spared_modules(config)
            )
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
        model, report = AutoModelForImageTextToText.from_pretrained(
            source, trust_remote_code=False, output_loading_info=True, **options
        )
        leave_unpacked(model)
    except OSError as error:
        raise FileNotFoundError(
            f"the host {name_or_path!r} could not be loaded ({str(error).splitlines()[0]}); give "
            "its folder or hub name (base_model=..., or --base-model)"
        ) from error
    except ValueError as error:
        if "custom code" not in str(error):
            raise
        raise ValueError(
            f"the host {name_or_path!r} brings Python code of its own, which is not run; give a "
            "host whose class transformers has"
        ) from error
    # transformers fills them with random values, and warns.
    if lacking := sorted(report["missing_keys"]):
        raise ValueError(
            f"the checkpoint of the host {name_or_path!r} does not hold all weights of "
            f"{type(model).__name__}: {len(lacking)} are missing, such as {lacking[0]}; "
            "download it again, or give another host"
        )
    return model, processor


def load_named_host(
    file: Path, host: str | None = None, quantization: str | None = None, **options: Any
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The host that the user gives, or else the one that a JSON file of ours names.

    Args:
        file: The adapter's or the pseudo-word's.
        host: A folder or a hub name; None for the file's.
        quantization: As for :func:`load_host`, as are the other options.

    Raises:
        FileNotFoundError: As :func:`load_host`; or the file's host is not on this machine, and
            downloads are not allowed (:mod:`llava_forgery.downloads`).
        ImportError: As :func:`load_host`.
        ValueError: As :func:`load_host`.
    """
    if host is not None:
        return load_host(file.parent, host, quantization, **options)
    name = read_json(file)["host"]["name_or_path"]
    with named_by(file, {"host": name}):
        return load_host(file.parent, name, quantization, **options)


def load_pretrained(
    directory: str | PathLike,
    base_model: str | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = "auto",
    quantization: str | None = None,
    allow_download: bool = False,
    trainable: bool = False,
    placement: str | None = None,
    crop: str | None = None,
) -> ForgeryVLM:
    """:meth:`llava_forgery.hosts.auto.AutoForgeryModel.from_pretrained` of transformers; further
    options as for :func:`load_adapter`."""
    directory = local_folder(directory)
    read_adapter_config(directory)
    with allow_downloads(allow_download):
        model, processor = load_named_host(
            Path(directory) / CONFIG, base_model, quantization, dtype=dtype, **device_map_of(device)
        )
        return load_adapter(
            directory,
            place_host(model, device, dtype),
            processor,
            trainable,
            placement=placement,
            crop=crop,
        )


@quiet()
def load_adapter(
    directory: str | PathLike,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    trainable: bool = False,
    placement: str | None = None,
    crop: str | None = None,
) -> ForgeryVLM:
    """Attach a saved adapter to a loaded host.

    Args:
        directory: The adapter's.
        model: The bare host.
        processor: Its processor.
        trainable: Whether FPL and LoRA are to be trained further.
        placement: As for ``attach_forgery``; None takes the adapter's, as does ``crop``.
        crop: Likewise.

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
    kfd = KnowledgeGuidedForgeryDetector.from_pretrained(
        (directory / KFD).absolute(), with_tower=False
    )
    fpl = ForgeryPromptLearner(FPLConfig.from_dict(config["fpl"]))
    fill_learner(fpl, directory)
    vlm = attach_forgery(
        model,
        processor,
        kfd,
        fpl,
        # Adapters that are older than the two have neither.
        placement=placement or config.get("placement", PLACEHOLDERS),
        crop=crop or config.get("crop", WHOLE),
    )
    if config["lora"]:
        if not trainable and takes_frozen(model, directory):
            vlm.frozen_lora = FrozenLora(model, directory)
        else:
            vlm.host = load_lora(model, directory, trainable)
    fpl.requires_grad_(trainable)
    if (directory / TRAINABLES).is_file():
        vlm.projector = TrainedProjector(model, vlm.family.projector)
        vlm.projector.fill(directory)
        if trainable:
            vlm.projector.unfreeze()
    vlm.training_facts = config["training"]
    return vlm.eval()


def spared_modules(config: Any) -> list[str]:
    """Names of the linear layers outside the language model's blocks, for any family."""
    with torch.device("meta"):
        host = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    decoder = set(host.get_decoder().modules())
    return [
        name
        for name, module in host.named_modules()
        if isinstance(module, nn.Linear) and module not in decoder
    ]
