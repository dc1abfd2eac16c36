"""How much a dialogue's second turn costs, on the cache and computed anew.

    python scripts/bench_dialogue.py

The host is a LLaVA with random weights, built in code: LLaVA-1.5's vision tower at its real shape
(CLIP ViT-L/14 at 336 pixels, 24 blocks, 576 image tokens) and a small language model. What is
measured depends on shapes alone. The greedy answers of both ways are compared over three turns; the
exit status is 1 where they differ or the second turn costs a fifth of the first or more.
"""

import statistics
import time
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.generation.streamers import BaseStreamer

from llava_forgery.constants import IMAGE_TOKEN
from llava_forgery.hosts.small_llava import CHAT_TEMPLATE
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.hosts.transformers.vlm import ForgeryVLM
from llava_forgery.infer.dialogue import Dialogue
from llava_forgery.kfd.config import EncoderConfig, KFDConfig
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.qa import templates

QUESTIONS = ("Is this a deepfake image?", "Where is the artifact?", "Which parts are untouched?")
SIDE, PATCH = 336, 14
GOAL = 0.2


@dataclass(frozen=True)
class Turn:
    """What one question cost."""

    first_token: float
    """Seconds to the answer's first token."""
    whole: float
    """Seconds to its last."""
    answer: str


class FirstToken(BaseStreamer):
    """Notes when the first token is written."""

    def __init__(self) -> None:
        self.calls, self.at = 0, 0.0

    def put(self, value: torch.Tensor) -> None:
        # The first call hands over the prompt, once it is tokenised.
        self.calls += 1
        if self.calls == 2:
            self.at = time.perf_counter()

    def end(self) -> None:
        pass


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, trained on the project's wordings: prompts get about their usual length."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator((str(value) for value in vars(templates).values()), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    return tokenizer


def build_host(blocks: int, layers: int) -> ForgeryVLM:
    """The host with the skill; see the module."""
    tokenizer = build_tokenizer()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=blocks,
            num_attention_heads=16, image_size=SIDE, patch_size=PATCH, projection_dim=768,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=512, intermediate_size=1408,
            num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=4,
            bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    host = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        # With transformers' small initial weights a host says the same whatever it reads.
        for name, weight in host.named_parameters():
            if "language_model" in name and weight.dim() == 2:
                weight.normal_(std=1.0 if "embed_tokens" in name else weight.shape[1] ** -0.5)
    # An end after a few tokens would make the turns unlike each other.
    host.generation_config.eos_token_id = None
    host.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    encoder = EncoderConfig("timm", "test_efficientnet", None, (1, 2, 3), 16, 64)
    kfd = KnowledgeGuidedForgeryDetector.from_config(KFDConfig(encoder=encoder), seed=0)
    return attach_forgery(host, processor, kfd).eval()


def ask_all(vlm: ForgeryVLM, tokens: int, reuse_cache: bool) -> list[Turn]:
    """A dialogue of three turns."""
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    dialogue = Dialogue(vlm, image, max_new_tokens=tokens, reuse_cache=reuse_cache)
    turns = []
    for question in QUESTIONS:
        streamer, start = FirstToken(), time.perf_counter()
        answer = dialogue.ask(question, streamer)
        end = time.perf_counter()
        turns.append(Turn(streamer.at - start, end - start, answer))
    return turns


def median(turns: list[Turn]) -> Turn:
    """The turn's medians over the repeats."""
    first = statistics.median(turn.first_token for turn in turns)
    return Turn(first, statistics.median(turn.whole for turn in turns), turns[0].answer)


def main(
    blocks: Annotated[int, typer.Option(help="Blocks of the vision tower.")] = 24,
    layers: Annotated[int, typer.Option(help="Layers of the language model.")] = 8,
    tokens: Annotated[int, typer.Option(help="Tokens of each answer.")] = 16,
    repeats: Annotated[int, typer.Option(help="Dialogues of each kind; medians count.")] = 2,
) -> None:
    vlm = build_host(blocks, layers)
    kept = [ask_all(vlm, tokens, reuse_cache=True) for _ in range(repeats)]
    anew = [ask_all(vlm, tokens, reuse_cache=False) for _ in range(repeats)]
    rows = (
        ("first", median([turns[0] for turns in kept])),
        ("second, on the cache", median([turns[1] for turns in kept])),
        ("second, computed anew", median([turns[1] for turns in anew])),
    )
    first = rows[0][1]
    print("| turn | first token (s) | of the first turn's | whole (s) | of the first turn's |")
    print("|---|---|---|---|---|")
    for name, turn in rows:
        print(
            f"| {name} | {turn.first_token:.2f} | {turn.first_token / first.first_token:.3f} | "
            f"{turn.whole:.2f} | {turn.whole / first.whole:.3f} |"
        )
    said = [[turn.answer for turn in turns] for turns in (*kept, *anew)]
    equal = all(answers == said[0] for answers in said)
    reached = rows[1][1].whole < GOAL * first.whole
    print(f"greedy answers of {len(QUESTIONS)} turns equal: {'yes' if equal else 'NO'}")
    print(f"second turn under {GOAL} of the first: {'yes' if reached else 'NO'}")
    raise typer.Exit(0 if equal and reached else 1)


if __name__ == "__main__":
    typer.run(main)
