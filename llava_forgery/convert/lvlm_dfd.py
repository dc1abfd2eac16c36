"""Conversion of the official LVLM-DFD checkpoint to our formats.

    llava-forgery convert lvlm-dfd ckpt.pth --out DIR

writes::

    DIR/encoder/                  ImageBind's towers for open_clip, with the fork's LoRA merged
    DIR/kfd/                      the detector on that encoder
    DIR/fpl.safetensors           the learner, of ``paper`` sizes
    DIR/adapter_*                 the language model's LoRA in peft's format, for Vicuna-7B only
    DIR/llama_proj.safetensors    ImageBind's embedding to the language model, not used here
    DIR/lvlm_dfd.json             sizes

:func:`attach_lvlm_dfd` puts the parts on a transformers host of the same widths.

Source: botianzhe/LVLM-DFD at commit 589b036.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path

import torch
from peft import LoraConfig, set_peft_model_state_dict
from transformers import PreTrainedModel, ProcessorMixin

from llava_forgery.convert.imagebind import (
    convert_towers,
    factor_sources,
    is_factor,
    needed_tensors,
    tower_config,
    tower_sources,
    write_towers,
)
from llava_forgery.convert.lvlm_dfd_keys import (
    TEMPERATURE,
    LvlmDfdSizes,
    detector_sources,
    language_lora_sources,
    learner_sources,
    projection_sources,
)
from llava_forgery.convert.sources import (
    check_tensor_sources,
    convert_sources,
    read_checkpoint,
)
from llava_forgery.files import atomic_path, check_output_folder, read_json, write_json
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.fpl.learner import ForgeryPromptLearner
from llava_forgery.hosts.adapter import fill_learner
from llava_forgery.hosts.lora import LORA_WEIGHTS, LoraSettings, lora_state
from llava_forgery.hosts.names import FPL, KFD
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.hosts.transformers.vlm import ForgeryVLM
from llava_forgery.kfd.config import EncoderConfig, KFDConfig
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.noise import quiet
from llava_forgery.weights import compare_tensors, read_tensors, save_tensors

INFO, ENCODER, PROJECTION = "lvlm_dfd.json", "encoder", "llama_proj.safetensors"
# Format 1 had peft's files in a separate folder.
FORMAT = 2
LANGUAGE_MODEL = "lmsys/vicuna-7b-v1.5-16k"
TOWERS = "visual_encoder."
# The official code passes a string where a list is expected, so each letter is a separate text. Its
# context of 16 vectors was never saved and changes the features by cosine 0.001.
DESCRIPTIONS_REAL, DESCRIPTIONS_FAKE = tuple("real"), tuple("fake")


@quiet()
def import_lvlm_dfd(
    checkpoint: str | PathLike,
    target: str | PathLike,
    imagebind: str | PathLike | None = None,
    sizes: LvlmDfdSizes | None = None,
) -> None:
    """Write the parts of an official checkpoint.

    Args:
        checkpoint: ``ckpt.pth``.
        target: Output folder, written as a whole or not at all.
        imagebind: ``imagebind_huge.pth``, for a checkpoint that holds only ImageBind's LoRA, or
            nothing of ImageBind.
        sizes: Sizes of the checkpoint; by default the official ones.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Names, shapes or values are not as expected (``compare_tensors``); the file is
            not a checkpoint of only tensors; or the target holds something else.
    """
    sizes = sizes or LvlmDfdSizes()
    check_output_folder(target, INFO)
    tensors = read_checkpoint(checkpoint)
    where = str(checkpoint)
    if imagebind is not None:
        tensors, where = _add_towers(tensors, imagebind, where)
    elif not any(name.startswith(TOWERS) for name in tensors):
        raise ValueError(
            f"{where} holds no {TOWERS}*, the image and text towers; give ImageBind's own "
            "checkpoint as well (--imagebind imagebind_huge.pth)"
        )
    parts = _take_parts(tensors, sizes, where)
    # Only the heads are copied: the other tensors and the mapped file are released before the
    # towers are built.
    heads = {name: tensor.clone() for name, tensor in parts.pop("kfd").items()}
    del tensors
    with atomic_path(target) as temporary:
        temporary.mkdir()
        write_towers(temporary / ENCODER, parts.pop("encoder"), sizes.towers)
        save_tensors(temporary / FPL, parts.pop("fpl"))
        _save_lora(temporary, parts.pop("lora"), sizes)
        save_tensors(temporary / PROJECTION, parts.pop("llama_proj"))
        _save_detector(temporary, heads, sizes)
        info = {"format": FORMAT, "fpl": sizes.fpl.to_dict(), "lora": asdict(sizes.lora)}
        write_json(temporary / INFO, info)


def attach_lvlm_dfd(
    model: PreTrainedModel, processor: ProcessorMixin, directory: str | PathLike
) -> ForgeryVLM:
    """Attach imported detector, learner and LoRA to a host.

    The official model is not a transformers host: it gives Vicuna-7B a single embedding of
    ImageBind and uses a different prompt. On another host of these widths the parts are an
    initialisation for stage 2.

    Args:
        model: Host whose language model has the checkpoint's width and number of layers.
        processor: Processor of the host.
        directory: Folder written by :func:`import_lvlm_dfd`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The host's sizes differ.
    """
    directory = Path(directory)
    if not (directory / INFO).is_file():
        raise FileNotFoundError(
            f"{directory} holds no {INFO}: llava-forgery convert lvlm-dfd writes such folders"
        )
    info = read_json(directory / INFO)
    if info.get("format") != FORMAT:
        raise ValueError(
            f"{directory / INFO} has format {info.get('format')}, not {FORMAT}; "
            "import the checkpoint again"
        )
    fpl = ForgeryPromptLearner(FPLConfig.from_dict(info["fpl"]))
    fill_learner(fpl, directory)
    kfd = KnowledgeGuidedForgeryDetector.from_pretrained((directory / KFD).absolute())
    settings = info["lora"]
    lora = LoraSettings(**{**settings, "projections": tuple(settings["projections"])})
    vlm = attach_forgery(model, processor, kfd, fpl, lora)
    saved = read_tensors(directory / LORA_WEIGHTS)
    own = lora_state(vlm.host)
    places = {_in_layer(name): name for name in own}
    renamed = {places.get(_in_layer(n), _in_layer(n)): tensor for n, tensor in saved.items()}
    compare_tensors(renamed, own, f"{directory / LORA_WEIGHTS} on this host")
    set_peft_model_state_dict(vlm.host, renamed)
    return vlm.eval()


def _in_layer(name: str) -> str:
    """A weight's name from ``layers.N`` on; the preceding part differs between hosts."""
    return re.sub(r"^.*?\.(?=layers\.\d+\.)", "", name)


def _add_towers(
    tensors: dict[str, torch.Tensor], imagebind: str | PathLike, where: str
) -> tuple[dict[str, torch.Tensor], str]:
    """The checkpoint with ImageBind's own weights added, of which it must hold none."""
    twice = [n for n in tensors if n.startswith(TOWERS) and not is_factor(n)]
    if twice:
        raise ValueError(
            f"{where} already holds ImageBind's weights ({twice[0]} and {len(twice) - 1} more); "
            "omit --imagebind"
        )
    towers = read_checkpoint(imagebind)
    named = {TOWERS + name: tensor for name, tensor in towers.items()}
    return {**tensors, **named}, f"{where} with {imagebind}"


def _take_parts(
    tensors: Mapping[str, torch.Tensor], sizes: LvlmDfdSizes, where: str
) -> dict[str, dict[str, torch.Tensor]]:
    """All tensors under our names, checked together so that one message lists everything."""
    tensors = needed_tensors(tensors, TOWERS)
    towers = tower_sources(sizes.towers, TOWERS)
    parts = {
        "kfd": detector_sources(sizes),
        "fpl": learner_sources(sizes),
        "lora": language_lora_sources(sizes, tensors),
        "llama_proj": projection_sources(sizes),
    }
    wanted = [*towers.values(), *factor_sources(towers, tensors, sizes.tower_rank)]
    for sources in parts.values():
        wanted += sources.values()
    check_tensor_sources(tensors, wanted, where)
    taken = {part: convert_sources(tensors, sources) for part, sources in parts.items()}
    return {"encoder": convert_towers(tensors, towers, sizes.tower_rank), **taken}


def _save_detector(directory: Path, heads: dict[str, torch.Tensor], sizes: LvlmDfdSizes) -> None:
    """Build the detector on the written towers, fill it and save it next to them."""
    towers = tower_config(sizes.towers)
    encoder = EncoderConfig(
        "open_clip",
        f"local-dir:{directory / ENCODER}",
        None,
        sizes.taps,
        towers["embed_dim"],
        towers["vision_cfg"]["image_size"],
    )
    config = KFDConfig(
        encoder, DESCRIPTIONS_REAL, DESCRIPTIONS_FAKE, 0, "paper", temperature=TEMPERATURE
    )
    detector = KnowledgeGuidedForgeryDetector.from_config(config).eval()
    state = detector.state_dict()
    with torch.no_grad():
        for name, tensor in heads.items():
            state[name].copy_(tensor)
    detector.save_pretrained(directory / KFD)


def _save_lora(directory: Path, tensors: dict[str, torch.Tensor], sizes: LvlmDfdSizes) -> None:
    """Write the LoRA in peft's layout."""
    settings = sizes.lora
    LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.projections),
        task_type="CAUSAL_LM",
        base_model_name_or_path=LANGUAGE_MODEL,
        inference_mode=True,
    ).save_pretrained(str(directory))
    save_tensors(directory / LORA_WEIGHTS, tensors)
