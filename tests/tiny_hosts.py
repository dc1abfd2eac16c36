"""The twelve transformers families at the smallest sizes, with their real processor classes.

Everything is made in code: random weights, a byte-level tokenizer, no file and no network. The
weights have unit gain, so that a wrong row, mask or position shows in the logits.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers as hf

from tests import tiny

WIDTH = 32
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
MROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}

# An image stands where the message has it, as in the templates of most families.
INTERLEAVED = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# All images of a message, then all its texts, as in the templates of LLaVA's families.
IMAGES_FIRST = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}IMAGE"
    "{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class TinyHost:
    """How a family is built."""

    build: Callable[[Any], tuple[hf.PreTrainedModel, hf.ProcessorMixin]]
    """Takes the tokenizer."""
    tokens: dict[str, str] = field(default_factory=dict)
    """Named special tokens of the family."""
    more_tokens: tuple[str, ...] = ()
    """Unnamed ones."""


def build(model_type: str, seed: int = 0) -> tuple[hf.PreTrainedModel, hf.ProcessorMixin]:
    """A host with unit-gain random weights, and its processor."""
    family = FAMILIES[model_type]
    words = tiny.tokenizer()
    words = hf.PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        extra_special_tokens=family.tokens,
    )
    words.add_tokens(list(family.more_tokens), special_tokens=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        host, processor = family.build(words)
        with torch.no_grad():
            for name, weight in host.named_parameters():
                if weight.dim() > 1:
                    gain = 1.0 if "embed_tokens" in name else weight[0].numel() ** -0.5
                    weight.normal_(std=gain)
    host.generation_config.eos_token_id = words.eos_token_id
    host.generation_config.pad_token_id = words.pad_token_id
    return host.eval(), processor


def _text(words, kind: Callable = hf.LlamaConfig, **changes):
    ids = {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id}
    return kind(vocab_size=len(words), bos_token_id=None, **ids, **{**TEXT, **changes})


def _id(words, token: str) -> int:
    return words.convert_tokens_to_ids(token)


def _square(kind: Callable, side: int = 32, **options):
    return kind(size={"height": side, "width": side}, **options)


def _clip_processor():
    return hf.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )


def _llava(words):
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VISION, projection_dim=16),
        text_config=_text(words),
        image_token_index=_id(words, "<image>"),
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
    processor = hf.LlavaProcessor(
        image_processor=_clip_processor(),
        tokenizer=words,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=IMAGES_FIRST.replace("IMAGE", "<image>\n"),
    )
    return hf.LlavaForConditionalGeneration(config), processor


PINPOINTS = [[32, 64], [64, 32], [64, 64]]


def _llava_next(words):
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**VISION, projection_dim=16),
        text_config=_text(words),
        image_token_index=_id(words, "<image>"),
        image_grid_pinpoints=PINPOINTS,
        tie_word_embeddings=False,
    )
    processor = hf.LlavaNextProcessor(
        image_processor=hf.LlavaNextImageProcessorPil(
            size={"shortest_edge": 32},
            crop_size={"height": 32, "width": 32},
            image_grid_pinpoints=PINPOINTS,
        ),
        tokenizer=words,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=IMAGES_FIRST.replace("IMAGE", "<image>\n"),
    )
    return hf.LlavaNextForConditionalGeneration(config), processor


def _llava_onevision(words):
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=_text(words, hf.Qwen2Config),
        image_token_index=_id(words, "<image>"),
        video_token_index=_id(words, "<video>"),
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    processor = hf.LlavaOnevisionProcessor(
        image_processor=_square(hf.LlavaOnevisionImageProcessorPil, image_grid_pinpoints=PINPOINTS),
        tokenizer=words,
        video_processor=hf.LlavaOnevisionVideoProcessor(),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=IMAGES_FIRST.replace("IMAGE", "<image>\n"),
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


QWEN_VISION = {
    "depth": 2,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}


def _qwen_ids(words) -> dict[str, int]:
    return {
        "image_token_id": _id(words, "<|image_pad|>"),
        "video_token_id": _id(words, "<|video_pad|>"),
        "vision_start_token_id": _id(words, "<|vision_start|>"),
        "vision_end_token_id": _id(words, "<|vision_end|>"),
    }


def _qwen_processor(words, kind, video, **options):
    sizes = {"shortest_edge": 16 * 16, "longest_edge": 32 * 32}
    return kind(
        image_processor=hf.Qwen2VLImageProcessorPil(
            size=sizes, patch_size=4, merge_size=2, temporal_patch_size=2
        ),
        tokenizer=words,
        video_processor=video(),
        chat_template=INTERLEAVED.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )


def _qwen2_vl(words):
    config = hf.Qwen2VLConfig(
        vision_config={**QWEN_VISION, "embed_dim": 16, "hidden_size": WIDTH, "mlp_ratio": 2},
        text_config=_text(words, hf.Qwen2VLTextConfig, rope_parameters=MROPE).to_dict(),
        **_qwen_ids(words),
        tie_word_embeddings=False,
    )
    processor = _qwen_processor(words, hf.Qwen2VLProcessor, hf.Qwen2VLVideoProcessor)
    return hf.Qwen2VLForConditionalGeneration(config), processor


def _qwen2_5_vl(words):
    config = hf.Qwen2_5_VLConfig(
        vision_config={
            **QWEN_VISION, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": WIDTH,
            "window_size": 16, "fullatt_block_indexes": [1],
        },
        text_config=_text(words, hf.Qwen2_5_VLTextConfig, rope_parameters=MROPE).to_dict(),
        **_qwen_ids(words),
        tie_word_embeddings=False,
    )  # fmt: skip
    processor = _qwen_processor(words, hf.Qwen2_5_VLProcessor, hf.Qwen2VLVideoProcessor)
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen3_vl(words):
    config = hf.Qwen3VLConfig(
        vision_config={
            **QWEN_VISION, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": WIDTH,
            "num_position_embeddings": 64, "deepstack_visual_indexes": [0],
        },
        text_config=_text(words, hf.Qwen3VLTextConfig, head_dim=8, rope_parameters=MROPE).to_dict(),
        **_qwen_ids(words),
        tie_word_embeddings=False,
    )  # fmt: skip
    processor = _qwen_processor(words, hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor)
    return hf.Qwen3VLForConditionalGeneration(config), processor


def _internvl(words):
    config = hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(
            **{**VISION, "image_size": [32, 32], "patch_size": [8, 8]}
        ),
        text_config=_text(words, hf.Qwen2Config),
        image_token_id=_id(words, "<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    processor = hf.InternVLProcessor(
        image_processor=_square(hf.GotOcr2ImageProcessorPil, crop_to_patches=True, max_patches=3),
        tokenizer=words,
        video_processor=hf.InternVLVideoProcessor(),
        image_seq_length=4,
        chat_template=INTERLEAVED.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )
    return hf.InternVLForConditionalGeneration(config), processor


def _idefics_vision(kind: Callable):
    return kind(**{**VISION, "patch_size": 8})


IDEFICS = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def _idefics3(words):
    config = hf.Idefics3Config(
        vision_config=_idefics_vision(hf.Idefics3VisionConfig).to_dict(),
        text_config=_text(words),
        image_token_id=_id(words, "<image>"),
        scale_factor=2,
        pad_token_id=words.pad_token_id,
        tie_word_embeddings=False,
    )
    processor = hf.Idefics3Processor(
        image_processor=hf.Idefics3ImageProcessorPil(
            size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
        ),
        tokenizer=words,
        image_seq_len=4,
        chat_template=IDEFICS,
    )
    return hf.Idefics3ForConditionalGeneration(config), processor


def _smolvlm(words):
    config = hf.SmolVLMConfig(
        vision_config=_idefics_vision(hf.SmolVLMVisionConfig).to_dict(),
        text_config=_text(words),
        image_token_id=_id(words, "<image>"),
        scale_factor=2,
        pad_token_id=words.pad_token_id,
        tie_word_embeddings=False,
    )
    processor = hf.SmolVLMProcessor(
        image_processor=hf.SmolVLMImageProcessorPil(
            size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
        ),
        tokenizer=words,
        video_processor=hf.SmolVLMVideoProcessor(),
        image_seq_len=4,
        chat_template=IDEFICS,
    )
    return hf.SmolVLMForConditionalGeneration(config), processor


def _gemma3(words):
    config = hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(**{**VISION, "patch_size": 8}, vision_use_head=False),
        text_config=_text(
            words, hf.Gemma3TextConfig, head_dim=8, sliding_window=1024, query_pre_attn_scalar=8,
            layer_types=["sliding_attention", "full_attention"],
        ),
        mm_tokens_per_image=4,
        image_token_index=_id(words, "<image_soft_token>"),
        boi_token_index=_id(words, "<start_of_image>"),
        eoi_token_index=_id(words, "<end_of_image>"),
        tie_word_embeddings=False,
    )  # fmt: skip
    processor = hf.Gemma3Processor(
        image_processor=_square(hf.Gemma3ImageProcessorPil),
        tokenizer=words,
        image_seq_length=4,
        chat_template="<|im_start|>" + INTERLEAVED.replace("IMAGE", "<start_of_image>"),
    )
    return hf.Gemma3ForConditionalGeneration(config), processor


def _paligemma(words):
    image_processor = _square(hf.SiglipImageProcessorPil)
    image_processor.image_seq_length = 4
    # The processor adds a thousand location tokens: the vocabulary comes after it.
    processor = hf.PaliGemmaProcessor(image_processor=image_processor, tokenizer=words)
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**VISION, vision_use_head=False, projection_dim=WIDTH),
        text_config=_text(words, hf.GemmaConfig, head_dim=8),
        image_token_index=_id(words, "<image>"),
        projection_dim=WIDTH,
        tie_word_embeddings=False,
    )
    return hf.PaliGemmaForConditionalGeneration(config), processor


def _instructblip(words):
    qformer_words = tiny.tokenizer()
    processor = hf.InstructBlipProcessor(
        image_processor=_square(hf.BlipImageProcessorPil),
        tokenizer=words,
        qformer_tokenizer=qformer_words,
        num_query_tokens=4,
    )
    config = hf.InstructBlipConfig(
        vision_config=hf.InstructBlipVisionConfig(**VISION).to_dict(),
        qformer_config=hf.InstructBlipQFormerConfig(
            vocab_size=len(qformer_words), hidden_size=16, num_hidden_layers=2,
            num_attention_heads=2, intermediate_size=24, encoder_hidden_size=16,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        ).to_dict(),
        text_config=_text(words).to_dict(),
        num_query_tokens=4,
        image_token_index=_id(words, "<image>"),
    )  # fmt: skip
    return hf.InstructBlipForConditionalGeneration(config), processor


QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
IDEFICS_TOKENS = (
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)
FAMILIES = {
    "llava": TinyHost(_llava),
    "llava_next": TinyHost(_llava_next),
    "llava_onevision": TinyHost(_llava_onevision, more_tokens=("<video>",)),
    "qwen2_vl": TinyHost(_qwen2_vl, more_tokens=QWEN_TOKENS),
    "qwen2_5_vl": TinyHost(_qwen2_5_vl, more_tokens=QWEN_TOKENS),
    "qwen3_vl": TinyHost(_qwen3_vl, more_tokens=QWEN_TOKENS),
    "internvl": TinyHost(
        _internvl,
        tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    ),
    "idefics3": TinyHost(_idefics3, more_tokens=IDEFICS_TOKENS),
    "smolvlm": TinyHost(_smolvlm, more_tokens=IDEFICS_TOKENS),
    "gemma3": TinyHost(
        _gemma3,
        tokens={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
    ),
    "paligemma": TinyHost(_paligemma),
    "instructblip": TinyHost(_instructblip),
}

# One of each kind for the fast tests: plain images, packed patches, tiles, a prefix that sees
# itself, a Q-Former. All twelve run with `-m slow`.
SMOKE = ("llava", "qwen2_5_vl", "idefics3", "paligemma", "instructblip")


def family_params() -> list:
    """All families for ``parametrize``, those outside ``SMOKE`` marked as slow."""
    return [
        name if name in SMOKE else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES
    ]
