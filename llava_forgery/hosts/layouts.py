"""Converting an adapter between the ``llava`` package and transformers, or to the current format.

FPL and detector are the same files in both layouts. LoRA's tensors have the names of their host's
layers, which are in different modules; nothing else changes, so that the logits are equal if
language model, vision tower and projector are.
"""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from llava_forgery.downloads import allow_downloads
from llava_forgery.files import check_output_folder, read_json, resolve_name, some_names, write_json
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.fpl.learner import ForgeryPromptLearner
from llava_forgery.hosts.adapter import convert_format, read_adapter_config, save_adapter
from llava_forgery.hosts.fingerprint import (
    TOLERANCE,
    check_parts,
    embedding_probe,
    host_fingerprint,
    probe_difference,
)
from llava_forgery.hosts.llava.checkpoint import CONFIG as LLAVA_CONFIG
from llava_forgery.hosts.llava.checkpoint import (
    holds_model,
    read_skill_config,
    save_llava_adapter,
)
from llava_forgery.hosts.llava.model import attach_to_llava, llava_lora_config
from llava_forgery.hosts.llava.names import CROP_KEY, PLACEMENT_KEY, TEMPLATE_KEY, TRAINING_KEY
from llava_forgery.hosts.llava.register import import_llava
from llava_forgery.hosts.lora import LORA_CONFIG, LORA_WEIGHTS, LoraSettings, lora_state
from llava_forgery.hosts.names import CONFIG, FPL, KFD
from llava_forgery.hosts.placement import PLACEHOLDERS, WHOLE, check_crop, check_placement
from llava_forgery.hosts.projector import TRAINABLES
from llava_forgery.hosts.transformers.loading import load_host
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.hub import local_folder
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.noise import quiet
from llava_forgery.optional import lazy
from llava_forgery.weights import compare_tensors, load_tensors, read_tensors

peft = lazy("peft")

LAYER = re.compile(r"(base_model\.model\.)(.*?)(layers\.\d+\..*)")


@quiet()
def convert_adapter(
    source: str | PathLike,
    directory: str | PathLike,
    base_model: str | None = None,
    template: str | None = None,
    allow_download: bool = False,
) -> str:
    """Convert an adapter to the other backend's class of the same language model, or to the current
    format.

    Args:
        source: Adapter, in LLaVA's layout or in transformers'.
        directory: Output folder.
        base_model: Folder or hub name of the host in the other backend: a transformers model for
            an adapter in LLaVA's layout, a checkpoint of the ``llava`` package for the other. None
            keeps the backend and converts an adapter of format 1 to the current format.
        template: For a result in LLaVA's layout: the name in LLaVA's ``conv_templates`` that
            corresponds to the host's chat template.
        allow_download: Whether the encoder that the detector's files name may be downloaded.

    Returns:
        The backend of the result, "transformers" or "llava".

    Raises:
        FileNotFoundError: A file or a host is missing.
        ValueError: The hosts' language models differ, the adapter cannot be converted, or there is
            nothing to do.
    """
    source = local_folder(source)
    values = read_skill_config(source)
    if base_model is None:
        if values is not None:
            raise ValueError(
                f"{source} is in LLaVA's layout, which is the same in every format; to convert it "
                "for transformers, name the host there (--base-model)"
            )
        convert_format(source, directory)
        return "transformers"
    check_output_folder(directory, FPL)
    with allow_downloads(allow_download):
        if values is None:
            return _to_llava(source, base_model, directory, template)
        return _to_transformers(source, values, base_model, directory)


def change_placement(
    directory: str | PathLike, placement: str | None = None, crop: str | None = None
) -> None:
    """Change the position of E_forgery in the prompts of an adapter or a whole model, and what its
    detector sees of a client's pictures; in place, since no weight depends on it.

    Args:
        directory: Folder of either layout.
        placement: As for :func:`~llava_forgery.hosts.placement.check_placement`; None keeps it.
        crop: As for :func:`~llava_forgery.hosts.placement.check_crop`; None keeps it.

    Raises:
        FileNotFoundError: The folder holds no adapter.
        ValueError: There is nothing to change, or a value is unknown.
    """
    if placement is None and crop is None:
        raise ValueError("nothing is to be changed: give a placement (--placement) or --crop")
    changes = {
        "placement": placement and check_placement(placement),
        "crop": crop and check_crop(crop),
    }
    values = read_skill_config(directory)
    if values is None:
        path, values, names = Path(directory) / CONFIG, read_adapter_config(directory), {}
    else:
        path = Path(directory) / LLAVA_CONFIG
        names = {"placement": PLACEMENT_KEY, "crop": CROP_KEY}
    for name, value in changes.items():
        if value is not None:
            values[names.get(name, name)] = value
    write_json(path, values)


def _to_transformers(
    source: Path, values: dict[str, Any], host: str, directory: str | PathLike
) -> str:
    if holds_model(source):
        raise ValueError(f"{source} is a whole model, expected an adapter: only LoRA and FPL")
    if (source / TRAINABLES).is_file():
        names = some_names(read_tensors(source / TRAINABLES))
        raise ValueError(
            f"{source} also trained weights of its host ({names}), which have other names and "
            "shapes in transformers; only FPL and LoRA can be moved"
        )
    lora = (source / LORA_CONFIG).is_file()
    settings, tensors = _read_lora(source) if lora else (None, {})
    model, processor = load_host(source, host, dtype="auto")
    _check_host(model, values["mm_forgery_host"], source)
    fpl = _read_learner(source, values["mm_forgery_fpl"])
    kfd = KnowledgeGuidedForgeryDetector.from_pretrained(
        (source / KFD).absolute(), with_tower=False
    )
    vlm = attach_forgery(
        model,
        processor,
        kfd,
        fpl,
        settings,
        placement=values.get(PLACEMENT_KEY, PLACEHOLDERS),
        crop=values.get(CROP_KEY, WHOLE),
    )
    if lora:
        _fill_lora(vlm.host, tensors, source)
    vlm.training_facts = values.get(TRAINING_KEY, {})
    save_adapter(vlm, directory)
    return "transformers"


def _to_llava(source: Path, host: str, directory: str | PathLike, template: str | None) -> str:
    config = read_adapter_config(source)
    settings, tensors = _read_lora(source) if config["lora"] else (None, {})
    import_llava("an adapter for the llava package", "llava.model")
    try:
        name = resolve_name(host, source)
        model = AutoModelForCausalLM.from_pretrained(name, dtype="auto", trust_remote_code=False)
        if not model.get_vision_tower().is_loaded:
            model.get_vision_tower().load_model()
    except OSError as error:
        raise FileNotFoundError(
            f"the host {host!r} could not be loaded ({str(error).splitlines()[0]}); give the "
            "folder or hub name of a checkpoint of the llava package"
        ) from error
    _check_host(model, config["host"], source)
    attach_to_llava(
        model,
        source / KFD,
        _read_learner(source, config["fpl"]),
        placement=config.get("placement", PLACEHOLDERS),
        crop=config.get("crop", WHOLE),
    )
    setattr(model.config, TRAINING_KEY, config["training"])
    if template is not None:
        setattr(model.config, TEMPLATE_KEY, template)
    if config["lora"]:
        model = peft.get_peft_model(model, llava_lora_config(model, settings))
        _fill_lora(model, tensors, source)
    save_llava_adapter(model, directory)
    return "llava"


def _read_learner(source: Path, sizes: dict[str, Any]) -> ForgeryPromptLearner:
    learner = ForgeryPromptLearner(FPLConfig.from_dict(sizes))
    learner.load_state_dict(load_tensors(source / FPL, learner.state_dict()))
    return learner


def _read_lora(directory: Path) -> tuple[LoraSettings, dict[str, torch.Tensor]]:
    """LoRA's sizes and tensors."""
    for name in (LORA_CONFIG, LORA_WEIGHTS):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory} holds no {name}")
    values = read_json(directory / LORA_CONFIG)
    changed = [
        k for k in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern") if values.get(k)
    ]
    if values.get("bias", "none") != "none":
        changed.append("bias")
    if changed:
        raise ValueError(f"{directory} uses LoRA's {', '.join(changed)}, which cannot be moved")
    tensors = read_tensors(directory / LORA_WEIGHTS)
    projections = sorted({name.split(".")[-3] for name in tensors})
    settings = LoraSettings(
        values["r"], values["lora_alpha"], values["lora_dropout"], tuple(projections)
    )
    return settings, tensors


def _fill_lora(model: peft.PeftModel, tensors: dict[str, torch.Tensor], source: Path) -> None:
    """Fill a new LoRA from tensors with the names of another host's layers, strictly."""
    expected = lora_state(model)
    first = LAYER.fullmatch(next(iter(expected)))
    renamed = {}
    for name, tensor in tensors.items():
        found = LAYER.fullmatch(name)
        if found is None or "vision" in name:
            raise ValueError(
                f"{source} holds {name}, which is not a layer of the language model and has no "
                "counterpart in the other package"
            )
        renamed[found[1] + first[2] + found[3]] = tensor
    compare_tensors(renamed, expected, str(source))
    peft.set_peft_model_state_dict(model, renamed)


def _check_host(model: torch.nn.Module, known: dict[str, Any], source: Path) -> None:
    """Compare the new host's input embedding and parts with the old one's: sizes and some values.

    The vocabularies may differ at the end, where each package adds its own tokens.
    """
    weight = model.get_input_embeddings().weight
    layers = model.config.get_text_config().num_hidden_layers
    if (weight.shape[1], layers) != (known["hidden_size"], known["num_hidden_layers"]):
        raise ValueError(
            f"{source} belongs to a language model of width {known['hidden_size']} with "
            f"{known['num_hidden_layers']} layers, this host's has {weight.shape[1]} and {layers}"
        )
    # The probe's rows are at shares of the vocabulary that it was taken from.
    rows = known["vocab_size"]
    padded = weight.detach()
    if rows > len(weight):
        padded = torch.cat([padded, padded.new_zeros(rows - len(weight), weight.shape[1])])
    difference = probe_difference(known["embedding_probe"], embedding_probe(padded[:rows]))
    if difference > TOLERANCE:
        raise ValueError(
            f"{source} was trained on another language model than this host's: input embeddings "
            f"differ by {difference:.2g} of their size"
        )
    # LLaVA-NeXT omits the last block of some towers, which then cannot be compared.
    have = host_fingerprint(model)["parts"]
    parts = known.get("parts", {})
    other = {n for n in parts if n not in have or have[n]["matrices"] != parts[n]["matrices"]}
    check_parts(model, known, str(source), skip=other)
