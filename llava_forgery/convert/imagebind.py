"""ImageBind's image and text towers as an open_clip model.

    llava-forgery convert imagebind imagebind_huge.pth --out DIR

ImageBind-Huge's two towers are open_clip's ViT-H-14 with other names and another epsilon in the
layer norms. The output folder loads as ``local-dir:DIR``, with the epsilon in its configuration.
LVLM-DFD's fork of ImageBind adds LoRA to the MLPs and heads of the towers, which is merged.

Source: facebookresearch/ImageBind at 53680b0; botianzhe/LVLM-DFD at 589b036.
"""

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import open_clip
import torch

from llava_forgery.convert.sources import (
    TensorSource,
    check_tensor_sources,
    convert_sources,
    read_checkpoint,
)
from llava_forgery.files import atomic_path, check_output_folder, write_json
from llava_forgery.noise import quiet
from llava_forgery.weights import save_tensors

MODEL = "ViT-H-14"
EPSILON = 1e-6
# The fork's loralib layers: rank 32 and loralib's default alpha of 1.
LORA_RANK, LORA_ALPHA = 32, 1
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
# Any folder of open_clip holds the other two: this file identifies ours.
SUMMARY = "imagebind.json"

_LORA_LAYERS = re.compile(
    r"modality_(trunks\.(vision|text)\.blocks\.\d+\.mlp\.fc[12]"
    r"|heads\.(vision\.2|text\.proj\.1))\.weight$"
)
# Other modalities, and the causal mask of the text, which open_clip builds itself.
_NOT_NEEDED = re.compile(
    r"modality_(preprocessors|trunks|heads|postprocessors)\.(audio|depth|thermal|imu|point)\..+"
    r"|modality_preprocessors\.text\.mask"
)
_PREFIXES = (
    ("visual.ln_pre.", "trunks.vision.pre_transformer_layer.0."),
    ("visual.ln_post.", "heads.vision.0."),
    ("ln_final.", "heads.text.proj.0."),
)
_BLOCK_PARTS = (
    ("ln_1.", "norm_1."),
    ("ln_2.", "norm_2."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
)


def tower_config(model: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """open_clip's configuration with ImageBind's epsilon.

    Args:
        model: open_clip's configuration for the same sizes; by default that of ViT-H-14.
    """
    config = deepcopy(dict(model)) if model is not None else open_clip.get_model_config(MODEL)
    for part in ("vision_cfg", "text_cfg"):
        config[part]["norm_kwargs"] = {"eps": EPSILON}
    return config


@quiet()
def import_imagebind(
    checkpoint: str | PathLike,
    target: str | PathLike,
    model: Mapping[str, Any] | None = None,
    rank: int = LORA_RANK,
) -> None:
    """Write the towers of an ImageBind checkpoint as an open_clip folder.

    Args:
        checkpoint: ``imagebind_huge.pth``, or the same with the fork's LoRA.
        target: Output folder, written as a whole or not at all.
        model: open_clip's configuration of the sizes; by default that of ViT-H-14.
        rank: Rank of the fork's LoRA, if the checkpoint holds it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Names, shapes or values are not as expected (``compare_tensors``); the file is
            not a checkpoint of only tensors; or the target holds something else.
    """
    check_output_folder(target, SUMMARY, entries=(CONFIG, WEIGHTS, SUMMARY))
    tensors = needed_tensors(read_checkpoint(checkpoint))
    sources = tower_sources(model)
    factors = factor_sources(sources, tensors, rank)
    check_tensor_sources(tensors, [*sources.values(), *factors], str(checkpoint))
    with atomic_path(target) as temporary:
        write_towers(temporary, convert_towers(tensors, sources, rank), model)
        write_json(temporary / SUMMARY, {"checkpoint": Path(checkpoint).name, "rank": rank})


def needed_tensors(
    tensors: Mapping[str, torch.Tensor], prefix: str = ""
) -> dict[str, torch.Tensor]:
    """A checkpoint without the tensors of ImageBind's other modalities.

    Args:
        tensors: Tensors by name.
        prefix: Prefix of ImageBind's names.
    """
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not (name.startswith(prefix) and _NOT_NEEDED.fullmatch(name.removeprefix(prefix)))
    }


def is_factor(name: str) -> bool:
    """Whether a name is that of one of loralib's two factors."""
    return name.endswith((".lora_A", ".lora_B"))


def tower_sources(
    model: Mapping[str, Any] | None = None, prefix: str = ""
) -> dict[str, TensorSource]:
    """Sources of open_clip's tensors by name.

    Args:
        model: As for :func:`import_imagebind`.
        prefix: Prefix of ImageBind's names in the checkpoint.
    """
    with torch.device("meta"):
        state = open_clip.CLIP(**tower_config(model)).state_dict()
    return {name: _source(name, tuple(tensor.shape), prefix) for name, tensor in state.items()}


def factor_sources(
    sources: Mapping[str, TensorSource], names: Iterable[str], rank: int = LORA_RANK
) -> list[TensorSource]:
    """Sources of the fork's LoRA: all of its factors if the checkpoint has one of them, else none.

    Args:
        sources: Output of :func:`tower_sources`.
        names: Names in the checkpoint.
        rank: Rank of the factors.
    """
    factors = []
    for source in sources.values():
        if _LORA_LAYERS.search(source.name):
            first, second = _factors(source.name)
            factors.append(TensorSource(first, (rank, source.shape[1])))
            factors.append(TensorSource(second, (source.shape[0], rank)))
    return factors if {factor.name for factor in factors}.intersection(names) else []


def convert_towers(
    tensors: Mapping[str, torch.Tensor], sources: Mapping[str, TensorSource], rank: int = LORA_RANK
) -> dict[str, torch.Tensor]:
    """The state of the open_clip model, from a checked checkpoint.

    Args:
        tensors: Tensors of the checkpoint.
        sources: Output of :func:`tower_sources`.
        rank: Rank of the fork's LoRA, which is merged if the checkpoint holds it.
    """
    towers = convert_sources(tensors, sources)
    for name, source in sources.items():
        first, second = _factors(source.name)
        if first in tensors:
            weight = tensors[source.name]
            update = tensors[second].float() @ tensors[first].float()
            merged = weight.float() + update * (LORA_ALPHA / rank)
            towers[name] = source.convert(merged.to(weight.dtype))
    return towers


def write_towers(
    directory: Path, towers: Mapping[str, torch.Tensor], model: Mapping[str, Any] | None = None
) -> None:
    """Write a folder that open_clip reads as ``local-dir:FOLDER``."""
    directory.mkdir()
    save_tensors(directory / WEIGHTS, towers)
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    write_json(directory / CONFIG, {"model_cfg": tower_config(model), "preprocess_cfg": preprocess})


def _factors(weight: str) -> tuple[str, str]:
    """loralib's names of A and B for a weight, to which B A alpha / r is added."""
    layer = weight.removesuffix("weight")
    return f"{layer}lora_A", f"{layer}lora_B"


def _source(name: str, shape: tuple[int, ...], prefix: str) -> TensorSource:
    """Source of an open_clip tensor with this name and shape."""
    reshape = partial(torch.reshape, shape=shape)
    special = {
        "visual.class_embedding": ("preprocessors.vision.cls_token", (1, 1, *shape), reshape),
        "visual.positional_embedding": (
            "preprocessors.vision.pos_embedding_helper.pos_embed", (1, *shape), reshape,
        ),
        "visual.conv1.weight": (
            "preprocessors.vision.rgbt_stem.proj.1.weight",
            (*shape[:2], 2, *shape[2:]),
            _add_frames,
        ),
        "visual.proj": ("heads.vision.2.weight", shape[::-1], torch.t),
        "token_embedding.weight": ("preprocessors.text.token_embedding.weight", shape, reshape),
        "positional_embedding": ("preprocessors.text.pos_embed", (1, *shape), reshape),
        "text_projection": ("heads.text.proj.1.weight", shape[::-1], torch.t),
        "logit_scale": ("postprocessors.text.1.log_logit_scale", shape, reshape),
    }  # fmt: skip
    if name in special:
        source, *rest = special[name]
        return TensorSource(f"{prefix}modality_{source}", *rest)
    for ours, theirs in _PREFIXES:
        if name.startswith(ours):
            return TensorSource(f"{prefix}modality_{theirs}{name.removeprefix(ours)}", shape)
    sense = "vision" if name.startswith("visual.") else "text"
    block = name.removeprefix("visual.").removeprefix("transformer.resblocks.")
    for ours, theirs in _BLOCK_PARTS:
        block = block.replace(ours, theirs)
    return TensorSource(f"{prefix}modality_trunks.{sense}.blocks.{block}", shape)


def _add_frames(kernel: torch.Tensor) -> torch.Tensor:
    """Sum the kernel over its two frames, as an image is shown as two equal frames."""
    return kernel.float().sum(dim=2).to(kernel.dtype)
