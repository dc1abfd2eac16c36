"""Loading a host of transformers, perhaps in 4 or 8 bits, and an adapter onto it.

Of a quantised host (bitsandbytes) only the language model's linear layers are: they are nearly all
of it, and its embedding, by which an adapter knows its host, its head and its vision tower stay as
they are. Adapters are trained on top in full precision (QLoRA, arXiv:2305.14314).
"""

from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from llava_forgery.downloads import named_by
from llava_forgery.files import read_json, resolve_name
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.fpl.learner import ForgeryPromptLearner
from llava_forgery.hosts.adapter import CONFIG, KFD, fill_learner, read_adapter_config
from llava_forgery.hosts.fingerprint import check_fingerprint
from llava_forgery.hosts.lora import load_lora
from llava_forgery.hosts.transformers.model import ForgeryVLM, attach_forgery
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.noise import quiet
from llava_forgery.optional import require

KINDS = ("4bit", "8bit")
# Of bitsandbytes' Linear4bit.
_PACKS = "support_avx512bf16_for_cpu"


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
            options["quantization_config"] = quantization_config(
                source, quantization, options.get("dtype", "auto")
            )
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
        model, report = AutoModelForImageTextToText.from_pretrained(
            source, trust_remote_code=False, output_loading_info=True, **options
        )
        leave_unpacked(model)
    except OSError as error:
        raise FileNotFoundError(
            f"the host {name_or_path!r} could not be loaded ({str(error).splitlines()[0]}); give "
            "its folder or hub name (host=..., or --host)"
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


def pick_device(device: str | torch.device | None = None) -> str | torch.device:
    """The device that is asked for; by default a GPU if there is one."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def place_host(model: PreTrainedModel, device: str | torch.device | None) -> PreTrainedModel:
    """Bring a host to a device, a GPU if there is one by default.

    A quantised host lies where it was loaded: transformers has placed it.
    """
    return model if getattr(model, "is_quantized", False) else model.to(pick_device(device))


@quiet()
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
        vlm.host = load_lora(model, directory, trainable)
    fpl.requires_grad_(trainable)
    vlm.training_facts = config["training"]
    return vlm.eval()


def quantization_config(
    name_or_path: str, kind: str, dtype: torch.dtype | str = "auto"
) -> BitsAndBytesConfig:
    """What ``from_pretrained`` takes to quantise a host while it loads.

    Args:
        name_or_path: The host, whose configuration says which modules to spare.
        kind: "4bit" (NF4, scales quantised again) or "8bit" (LLM.int8).
        dtype: In which 4-bit layers compute; "auto" takes the configuration's.

    Raises:
        ImportError: bitsandbytes is not installed; the message names the extra.
        ValueError: Another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"quantization must be one of {', '.join(KINDS)} or None, got {kind!r}")
    require("bitsandbytes", extra="quantization", feature=f"a host in {kind}")
    config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    spared = spared_modules(config)
    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=spared)
    if dtype == "auto":
        dtype = config.dtype or config.get_text_config().dtype or torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=spared,
    )


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


def leave_unpacked(model: nn.Module) -> None:
    """Keep bitsandbytes from packing 4-bit weights for a processor's bfloat16 instructions.

    Release 0.50.2 does so at the first pass in eval mode on a CPU that has them. A model that is
    trained afterwards gets no gradient through such layers, without a word, and layers narrower
    than 64 fail.
    """
    for module in model.modules():
        if hasattr(module, _PACKS):
            setattr(module, _PACKS, False)
