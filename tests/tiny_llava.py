"""Checkpoints of the ``llava`` package at the smallest sizes, on disk as LLaVA has them.

The weights have unit gain, so that a wrong row, mask or position shows in the logits.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import processors

from llava_forgery.hosts.small_llava import CHAT_TEMPLATE
from llava_forgery.kfd.config import EncoderConfig, HostTower, KFDConfig
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from tests import tiny

WIDTH = 32
SIDE, PATCH = 32, 16
"""Of the CLIP tower: four patches for each image."""
PINPOINTS = [[32, 64], [64, 32], [64, 64]]


def require_llava() -> Any:
    """The ``llava`` package, or the test is skipped."""
    return pytest.importorskip(
        "llava", reason="the llava package is not installed: pip install --no-deps llava-torch"
    )


def tokenizer() -> hf.PreTrainedTokenizerFast:
    """Llama's conventions: ``<s>`` before every text, ``</s>`` ends a turn, ``<unk>`` pads."""
    words = tiny.tokenizer().backend_tokenizer
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        pad_token="<unk>", model_max_length=2048,
    )  # fmt: skip
    fast.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    bos = fast.convert_tokens_to_ids("<s>")
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", bos)]
    )
    return fast


def save_clip(folder: Path, seed: int = 0) -> Path:
    """A CLIP tower with its image processor, as ``mm_vision_tower`` names it."""
    config = hf.CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        image_size=SIDE, patch_size=PATCH, projection_dim=16,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = hf.CLIPVisionModel(config)
        unit_gain(tower)
    tower.save_pretrained(folder)
    hf.CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    ).save_pretrained(folder)
    return folder


def vision_values(clip: Path, aspect: str) -> dict[str, Any]:
    """What LLaVA's configuration says of images."""
    values = {
        "mm_vision_tower": str(clip),
        "mm_hidden_size": 16,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_projector_type": "mlp2x_gelu",
        "mm_patch_merge_type": "spatial_unpad" if aspect == "anyres" else "flat",
        "image_aspect_ratio": aspect,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "tokenizer_padding_side": "right",
        "use_mm_proj": True,
    }
    if aspect == "anyres":
        values["image_grid_pinpoints"] = PINPOINTS
    return values


def save_llava(
    folder: Path, seed: int = 0, aspect: str = "square", with_tower: bool = False, **changes: Any
) -> Path:
    """A LLaVA with a language model of two layers, 32 wide, and its tokenizer.

    Args:
        folder: Its name must hold "llava" for LLaVA's loader. The CLIP tower is written beside
            it, into ``clip``.
        seed: Of the weights.
        aspect: "square", "pad" or "anyres"; the last merges its tiles as ``spatial_unpad``.
        with_tower: Whether the checkpoint holds the tower's weights, as those of LLaVA 1.6 do.
        changes: Of the model's configuration.
    """
    require_llava()
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

    clip = folder.parent / "clip"
    if not clip.is_dir():
        save_clip(clip)
    words = tokenizer()
    config = LlavaConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    values = vision_values(clip, aspect)
    for name, value in {**values, **changes}.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaLlamaForCausalLM(config)
        if with_tower:
            model.get_vision_tower().load_model()
        unit_gain(model)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def load_llava(folder: Path) -> tuple[hf.PreTrainedTokenizerFast, hf.PreTrainedModel, Any]:
    """Tokenizer, model and image processor of a folder, in float32 and eval mode.

    LLaVA's own ``load_pretrained_model`` brings everything to float16.
    """
    from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM

    words = hf.AutoTokenizer.from_pretrained(folder)
    model = LlavaLlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tower = model.get_vision_tower()
    if not tower.is_loaded:
        tower.load_model()
    return words, model, tower.image_processor


def save_kfd(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A detector's folder, for ``kfd:DIR``."""
    KnowledgeGuidedForgeryDetector.from_config(tiny.kfd_config(**changes), seed).eval(
    ).save_pretrained(folder)  # fmt: skip
    return folder


def save_tower_kfd(folder: Path, clip: Path, seed: int = 0) -> Path:
    """A detector that reads the CLIP tower of :func:`save_clip`, for ``kfd:DIR``."""
    tower = hf.CLIPVisionModel.from_pretrained(clip)
    processor = hf.CLIPImageProcessor.from_pretrained(clip)
    likeness = HostTower(
        tower.config.model_type, tower.config.hidden_size, tower.config.num_hidden_layers, PATCH,
        tuple(processor.image_mean), tuple(processor.image_std),
    )  # fmt: skip
    encoder = EncoderConfig("host", str(clip), None, (1, 2, 3), 16, SIDE, tower=likeness)
    # The lite heads want a finer grid than 2 x 2.
    config = KFDConfig(encoder, context_length=2, heads="paper", temperature=10.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = KnowledgeGuidedForgeryDetector(config, with_tower=False).eval()
    detector.encoder.adopt(tower)
    detector.save_pretrained(folder)
    return folder


def unit_gain(model: torch.nn.Module) -> None:
    """Draw weights anew, from torch's global generator."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(std=1.0 if "embed_tokens" in name else weight[0].numel() ** -0.5)
            elif "image_newline" in name:
                weight.normal_()


def save_twin(llava: Path, folder: Path) -> Path:
    """The transformers model with the weights of a flat LLaVA, and its processor.

    Its vocabulary has three rows more, as conversions of LLaVA have rows for further tokens.
    """
    words, model, _ = load_llava(llava)
    inner = model.get_model()
    text = hf.LlamaConfig(
        **{
            name: value
            for name, value in model.config.to_dict().items()
            if name in hf.LlamaConfig().to_dict() and name not in ("model_type", "architectures")
        }
    )
    config = hf.LlavaConfig(
        vision_config=inner.vision_tower.vision_tower.config,
        text_config=text,
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        image_seq_length=(SIDE // PATCH) ** 2,
        tie_word_embeddings=False,
    )
    twin = hf.LlavaForConditionalGeneration(config).eval()
    twin.model.vision_tower = inner.vision_tower.vision_tower
    projector = {
        name.replace("0.", "linear_1.").replace("2.", "linear_2."): tensor
        for name, tensor in inner.mm_projector.state_dict().items()
    }
    twin.model.multi_modal_projector.load_state_dict(projector)
    language = {
        name: tensor
        for name, tensor in inner.state_dict().items()
        if name.startswith(("embed_tokens", "layers", "norm"))
    }
    twin.model.language_model.load_state_dict(language)
    twin.lm_head.load_state_dict(model.lm_head.state_dict())
    twin.resize_token_embeddings(len(words) + 3, mean_resizing=False)
    twin.save_pretrained(folder)
    hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        tokenizer=words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    return folder
