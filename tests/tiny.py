"""The smallest configurations of every part, made in code: no weights, no network."""

import json
from unittest.mock import patch

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from llava_forgery.constants import IMAGE_TOKEN
from llava_forgery.faces.records import FaceCrop
from llava_forgery.hosts.small_llava import assemble_llava
from llava_forgery.kfd.config import EncoderConfig, KFDConfig
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.qa import templates
from llava_forgery.rows import write_rows

SIZE = 64


def kfd_config(**changes) -> KFDConfig:
    """A detector of 0.1 M parameters on images of 64 pixels."""
    values = {
        "encoder": EncoderConfig("timm", "test_efficientnet", None, (1, 2, 3), 16, SIZE),
        "context_length": 2,
        "temperature": 10.0,
    }
    return KFDConfig(**{**values, **changes})


def kfd(seed: int = 0, **changes) -> KnowledgeGuidedForgeryDetector:
    return KnowledgeGuidedForgeryDetector.from_config(kfd_config(**changes), seed).eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, so that any text survives; trained on the project's own wordings."""
    # Not functions and modules, whose text holds an address: another vocabulary in each process.
    texts = [str(value) for name, value in vars(templates).items() if name.isupper()]
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=model, eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    fast.add_tokens([IMAGE_TOKEN], special_tokens=True)
    return fast


def llava(seed: int = 0) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA with a language model of two layers, 32 wide, and four image tokens."""
    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        host, processor = assemble_llava(LlamaForCausalLM(config), words, side=32, patch=16)
    return host.eval(), processor


def landmarks(size: int = SIZE) -> np.ndarray:
    """68 landmarks of a frontal face that fills the middle of a picture."""
    angle = np.linspace(np.pi, 0, 17)
    jaw = np.stack([0.5 - 0.32 * -np.cos(angle), 0.45 + 0.38 * np.sin(angle)], axis=1)
    brows = [(x, 0.34 - 0.02 * (i % 5 == 2)) for i, x in enumerate(np.linspace(0.24, 0.44, 5))]
    brows += [(1 - x, y) for x, y in reversed(brows)]
    nose = [(0.5, y) for y in np.linspace(0.42, 0.55, 4)]
    nose += [(x, 0.59) for x in np.linspace(0.44, 0.56, 5)]
    turn = np.pi - np.arange(6) * np.pi / 3
    eye = np.stack([0.06 * np.cos(turn), -0.025 * np.sin(turn)], axis=1)
    eyes = [tuple(point + [x, 0.42]) for x in (0.35, 0.65) for point in eye]
    turn = np.pi - np.arange(12) * np.pi / 6
    lips = [(0.5 + 0.11 * np.cos(t), 0.7 - 0.045 * np.sin(t)) for t in turn]
    turn = np.pi - np.arange(8) * np.pi / 4
    lips += [(0.5 + 0.08 * np.cos(t), 0.7 - 0.015 * np.sin(t)) for t in turn]
    points = [*map(tuple, jaw), *brows, *nose, *eyes, *lips]
    return (np.array(points) * size).astype(np.float32)


def picture(seed: int = 0, size: int = SIZE) -> np.ndarray:
    """(size, size, 3) uint8: smooth colours with some texture."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0.2, 0.8, size)
    image = np.stack([ramp[None] + 0 * ramp[:, None], ramp[:, None] + 0 * ramp[None],
                      0.5 * (ramp[None] + ramp[:, None])], axis=2)  # fmt: skip
    image = image + rng.normal(0, 0.05, image.shape) + rng.uniform(-0.15, 0.15, 3)
    return (image.clip(0, 1) * 255).astype(np.uint8)


def edit_json(path, **changes) -> None:
    """Change values of a JSON file; ``a__b`` stands for ``["a"]["b"]``."""
    values = json.loads(path.read_text())
    for name, value in changes.items():
        *parents, last = name.split("__")
        place = values
        for parent in parents:
            place = place[parent]
        place[last] = value
    path.write_text(json.dumps(values))


def write_linked(rows, features, folder) -> None:
    """A data set whose pictures may be paths; ``save_to_disk`` would put the files in."""
    with patch("llava_forgery.rows._without_paths", lambda row, features: row):
        write_rows(lambda: iter(rows), features, folder)


def face(index: int = 0, split: str = "train", size: int = 96) -> FaceCrop:
    return FaceCrop(
        image=picture(index, size),
        landmarks=landmarks(size),
        box=(0.0, 0.0, float(size), float(size)),
        video_id=f"p{index}",
        identity=f"id{index}",
        label=0,
        source=f"p{index}.png",
        split=split,
    )


def tell_apart(learner: torch.nn.Module, factor: float) -> None:
    """Let maps and mask count for more: a new learner hardly tells two images apart."""
    with torch.no_grad():
        for grid in (learner.mask_grid, learner.map_grid):
            grid.head[-1].weight.mul_(factor)
