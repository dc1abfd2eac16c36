"""Loading a model of the ``llava`` package with its skill, in any dtype; merging its LoRA.

LLaVA's own ``load_pretrained_model`` casts everything to float16 and depends on the folder's name;
it reads the same folders after ``register()``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llava_forgery.call_state import lock_of
from llava_forgery.downloads import allow_downloads, named_by
from llava_forgery.files import atomic_path, check_output_folder, resolve_name
from llava_forgery.hosts.llava.checkpoint import (
    CONFIG,
    check_tower,
    holds_model,
    read_skill_config,
)
from llava_forgery.hosts.llava.names import CROP_KEY, PLACEMENT_KEY
from llava_forgery.hosts.llava.register import import_llava, register, registered, unregister
from llava_forgery.hosts.llava.vlm import LlavaForgeryVLM
from llava_forgery.hosts.lora import LORA_CONFIG
from llava_forgery.hosts.names import FPL
from llava_forgery.hosts.placement import check_crop, check_placement
from llava_forgery.hosts.quantized import (
    device_map_of,
    leave_unpacked,
    place_host,
    quantization_config,
)
from llava_forgery.hub import local_folder
from llava_forgery.noise import quiet
from llava_forgery.optional import lazy

peft = lazy("peft")

# Modules that are not quantised, LLaVA's choice.
SPARED = ["model.mm_projector", "model.vision_tower", "lm_head"]
# Keys of LLaVA's configurations that name further models.
_TOWERS = ("mm_vision_tower", "vision_tower", "vision_tower_pretrained")


@quiet()
def load_llava(
    directory: str | PathLike,
    base: str | None = None,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    quantization: str | None = None,
    merge: bool = True,
    allow_download: bool = False,
    placement: str | None = None,
    crop: str | None = None,
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel | peft.PeftModel]:
    """A model with the skill, in eval mode, and its tokenizer.

    Args:
        directory: An adapter or a whole model in LLaVA's layout
            (:mod:`llava_forgery.hosts.llava.checkpoint`): its folder or hub name.
        base: Folder or hub name of an adapter's host; by default the one that it names.
        dtype: Dtype of the host's weights.
        device: Device to load onto; by default a GPU if there is one; "auto" spreads the host over
            all.
        quantization: "4bit" or "8bit" for the language model's linear layers; None does not
            quantise them.
        merge: Whether to merge LoRA into the host's weights, unless they are quantised; False keeps
            peft's wrapper around the model.
        allow_download: Whether models that the folder's files name, such as the host and its vision
            tower, may be downloaded. A base that is passed here always may, with its own tower.
        placement: Placement of E_forgery (:mod:`llava_forgery.hosts.placement`); None for that of
            the folder.
        crop: Whether faces are cut out of pictures that are given without ``forgery_images``; None
            for the setting of the folder.

    Raises:
        FileNotFoundError: Adapter or host are missing.
        ImportError: The ``llava`` package is not installed.
        ValueError: The folder is not one of ours, or does not match the host.
    """
    directory = local_folder(directory)
    values = read_skill_config(directory)
    if values is None:
        raise ValueError(
            f"{directory} is not a forgery adapter in LLaVA's layout: its config.json names no "
            "mm_forgery_tower; one of transformers is read by that backend, and converted with "
            "llava-forgery convert adapter"
        )
    whole = holds_model(directory)
    source = str(directory) if whole else base or values["mm_forgery_host"]["name_or_path"]
    if whole and base is not None:
        raise ValueError(f"{directory} is a whole model and takes no base, got {base!r}")
    source = resolve_name(source, directory)
    import_llava("loading this model", "llava.model")
    with allow_downloads(allow_download), _known_by_user(directory, values, source, base):
        tokenizer, model = _load(
            directory,
            source,
            quantization,
            {
                PLACEMENT_KEY: placement and check_placement(placement),
                CROP_KEY: crop and check_crop(crop),
            },
            dtype=dtype,
            **device_map_of(device),
        )
    check_tower(model, directory)
    place_host(model, device, dtype)
    model.get_vision_tower().to(model.device, model.dtype)
    if (directory / LORA_CONFIG).is_file():
        model = peft.PeftModel.from_pretrained(model, directory)
        # The sum would be rounded to 4 or 8 bits again.
        if merge and quantization is None:
            model = model.merge_and_unload()
    return tokenizer, model.eval()


def load_pretrained(
    directory: str | PathLike,
    base_model: str | None = None,
    *,
    template: str | None = None,
    **options: Any,
) -> LlavaForgeryVLM:
    """:meth:`llava_forgery.hosts.auto.AutoForgeryModel.from_pretrained` of the ``llava`` package.

    Args:
        directory: Folder of an adapter or a whole model in LLaVA's layout.
        base_model: As for ``AutoForgeryModel``, like the other options.
        template: Name in LLaVA's ``conv_templates``; by default the one of the skill's training.
        options: Options of :func:`load_llava`.
    """
    tokenizer, model = load_llava(directory, base_model, merge=False, **options)
    return LlavaForgeryVLM(model, tokenizer, template).eval()


@quiet()
def merge_llava(
    adapter: str | PathLike,
    directory: str | PathLike,
    base: str | None = None,
    dtype: str | torch.dtype = "auto",
    allow_download: bool = False,
) -> None:
    """Write a whole model: the host with LoRA merged into its weights, and the skill.

    LLaVA's loader reads it without a base, after ``register()``.

    Args:
        adapter: Folder in LLaVA's layout (:mod:`llava_forgery.hosts.llava.checkpoint`).
        directory: Output folder; its name must contain "llava" for LLaVA's loader, and not "lora".
        base: Folder or hub name of the host; by default the one that the adapter names.
        dtype: Dtype of the host's weights.
        allow_download: As for :func:`load_llava`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The folder is not an adapter, does not match the host, or LLaVA's loader would
            not accept such a name.
    """
    directory = Path(directory)
    name = directory.name.lower()
    if "llava" not in name or "lora" in name:
        raise ValueError(
            f"LLaVA's loader depends on a folder's name: {directory.name!r} must hold 'llava' and, "
            "for a whole model, not 'lora'"
        )
    # Not config.json, which a host's own folder holds as well.
    check_output_folder(directory, FPL)
    tokenizer, model = load_llava(
        adapter, base, dtype=dtype, device="cpu", allow_download=allow_download
    )
    with atomic_path(directory) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def _known_by_user(
    directory: Path, values: dict[str, Any], source: str, base: str | None
) -> AbstractContextManager[None]:
    """No guard for a base given by the user with its own tower; otherwise the guard for names in
    the folder's configuration."""
    towers = {name: tower for name, tower in values.items() if name in _TOWERS and tower}
    if base is not None:
        try:
            own, _ = PreTrainedConfig.get_config_dict(source)
        except OSError as error:
            raise _no_host(source, error) from error
        if all(own.get(name) == tower for name, tower in towers.items()):
            return nullcontext()
    names = {"vision tower": ", ".join(dict.fromkeys(map(str, towers.values())))}
    if base is None and source != str(directory):
        names = {"host": source, **names}
    return named_by(directory / CONFIG, names)


def _no_host(source: str, error: OSError) -> FileNotFoundError:
    return FileNotFoundError(
        f"the host {source!r} could not be loaded ({str(error).splitlines()[0]}); give its folder "
        "or hub name (--base-model)"
    )


def _load(
    directory: Path,
    source: str,
    quantization: str | None,
    changes: dict[str, str | None],
    **options: Any,
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and model with its vision tower, loaded by LLaVA's classes."""
    # Only while loading, unless the user has asked for it; threads load one after the other, or
    # the first to finish would end it for all.
    with lock_of(register):
        before = registered()
        register()
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
            for key, value in changes.items():
                if value is not None:
                    setattr(config, key, value)
            if quantization is not None:
                options["quantization_config"] = quantization_config(
                    config, quantization, options["dtype"], SPARED
                )
            model = AutoModelForCausalLM.from_pretrained(
                source, config=config, trust_remote_code=False, **options
            )
            leave_unpacked(model)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise _no_host(source, error) from error
        finally:
            if not before:
                unregister()
    tower = model.get_vision_tower()
    if not tower.is_loaded:
        tower.load_model()
    return tokenizer, model
