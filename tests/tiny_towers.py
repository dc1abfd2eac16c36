"""Tiny LLaVAs whose vision tower can feed a detector: four blocks, 8 x 8 patches."""

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from llava_forgery.constants import IMAGE_TOKEN
from llava_forgery.hosts.small_llava import CHAT_TEMPLATE
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.kfd.host_config import host_config
from tests import tiny

SIDE, PATCH, LAYERS = 32, 4, 4
VISION = {
    "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH,
}  # fmt: skip
KINDS = ("clip", "siglip")


def llava(
    kind: str = "clip", seed: int = 0, **vision
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA with a CLIP tower (a class token, the last block but one) or a SigLIP tower."""
    words = tiny.tokenizer()
    sizes = {**VISION, **vision}
    side = sizes["image_size"]
    clip = kind == "clip"
    text = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024,
        pad_token_id=words.pad_token_id, eos_token_id=words.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes)
        if clip
        else SiglipVisionConfig(**sizes, vision_use_head=False),
        text_config=text,
        image_token_index=words.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_feature_layer=-2 if clip else -1,
        vision_feature_select_strategy="default" if clip else "full",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        host = LlavaForConditionalGeneration(config).eval()
        # As large as trained weights' effect: with transformers' 0.02 all patches look alike.
        with torch.no_grad():
            for parameter in host.get_encoder(modality="image").parameters():
                if parameter.ndim > 1:
                    parameter.mul_(8)
    host.generation_config.eos_token_id = words.eos_token_id
    host.generation_config.pad_token_id = words.pad_token_id
    if clip:
        images = CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
    else:
        images = SiglipImageProcessorPil(size={"height": side, "width": side})
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=words,
        patch_size=sizes["patch_size"],
        vision_feature_select_strategy="default" if clip else "full",
        num_additional_image_tokens=int(clip),
        chat_template=CHAT_TEMPLATE,
    )
    return host, processor


def saved(folder: Path, kind: str = "clip", seed: int = 0, **vision) -> str:
    """The folder of such a host on disk."""
    host, processor = llava(kind, seed, **vision)
    host.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def kfd(host: str, seed: int = 0, **changes) -> KnowledgeGuidedForgeryDetector:
    """A new detector on the tower of a host on disk."""
    config = host_config(host, context_length=2, **changes)
    return KnowledgeGuidedForgeryDetector.from_config(config, seed).eval()


OPEN_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 4},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def save_open_clip(folder: Path) -> Path:
    """A tiny CLIP as open_clip reads it from a folder."""
    folder.mkdir(exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**OPEN_CLIP)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": OPEN_CLIP, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder
