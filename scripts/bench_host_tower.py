"""What the forgery skill adds to a host's prefill, with an encoder of its own and on the host's.

    python scripts/bench_host_tower.py [--layers 2] [--device cpu] [--dtype float32]

A LLaVA-1.5-7B of random weights at its real widths (CLIP ViT-L/14 at 336 pixels, 576 image tokens,
a language model 4096 wide), with as many language layers as asked for. All variants run in turn in
one process; the table gives the median and the ratio to the first, the bare host. Beside the time
that passed stands, on CPU, the time that the process was busy: other work on the machine leaves it
nearly as it is. --placement runs only the skill, with written placeholders and without. --tiny
checks that the script runs; its figures say nothing.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from bench_timing import measure
from tokenizers import Tokenizer, models
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.initialization import no_init_weights
from transformers.utils import logging

from llava_forgery.cli.app import run
from llava_forgery.constants import IMAGE_TOKEN
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.hosts.transformers.vlm import ForgeryVLM
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.kfd.host_config import host_config

# Tokens of the prompt beside the image: the question, and the sentence with the score.
QUESTION, SCORE_SENTENCE = 48, 16
SHARED = "skill, the host's tower shared"
PLACED = "  placed by the model in a client's prompt"


@dataclass(frozen=True)
class Sizes:
    """Widths of the host."""

    vocabulary: int
    width: int
    inner: int
    heads: int
    vision: dict[str, int]


LLAVA_7B = Sizes(
    vocabulary=32064,
    width=4096,
    inner=11008,
    heads=32,
    vision={
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
    },
)  # fmt: skip
SMALL = Sizes(
    vocabulary=49152,
    width=576,
    inner=1536,
    heads=9,
    vision={
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "image_size": 224, "patch_size": 14,
    },
)  # fmt: skip
"""A SmolLM2-135M (30 layers) behind a CLIP ViT-B with 256 image tokens."""
TINY = Sizes(
    vocabulary=256,
    width=32,
    inner=64,
    heads=4,
    vision={
        "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 4,
    },
)  # fmt: skip


def main(
    layers: Annotated[int, typer.Option(help="Language layers, of 32.")] = 32,
    device: Annotated[str, typer.Option(help="cpu, cuda ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    rounds: Annotated[int, typer.Option(help="Runs of each variant.")] = 5,
    warm_up: Annotated[int, typer.Option(help="Runs before them that do not count.")] = 1,
    threads: Annotated[int | None, typer.Option(help="torch's CPU threads.")] = None,
    placement: Annotated[
        bool, typer.Option("--placement", help="Only with written placeholders and without.")
    ] = False,
    small: Annotated[
        bool, typer.Option("--small", help="A host of 0.2 billion weights, with --layers 30.")
    ] = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="Tiny sizes, to see that it runs.")] = False,
) -> None:
    """Print the table."""
    if threads is not None:
        torch.set_num_threads(threads)
    # The weights are random: transformers' remarks on them help nobody.
    logging.set_verbosity_error()
    torch.manual_seed(0)
    sizes = TINY if tiny else SMALL if small else LLAVA_7B
    with torch.inference_mode():
        variants = build(sizes, layers, torch.device(device), getattr(torch, dtype))
        if placement:
            variants = {name: variants[name] for name in (SHARED, PLACED)}
        times = measure(variants, rounds, warm_up, torch.device(device))
    print(
        f"{layers} language layers of width {sizes.width}, {device}, {dtype}, "
        f"{torch.get_num_threads()} CPU threads, batch 1, median of {rounds}\n"
    )
    print(f"{'':<50}{'ms':>10}{'ratio':>8}{'busy ms':>12}{'ratio':>8}")
    bare = times[next(iter(times))]
    for name, (passed, busy) in times.items():
        print(f"{name:<50}{1000 * passed:>10.1f}{passed / bare[0]:>8.3f}", end="")
        print(f"{1000 * busy:>12.1f}{busy / bare[1]:>8.3f}")


def build(
    sizes: Sizes, layers: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Callable[[], None]]:
    """The variants to run, the bare host first."""
    host, processor = make_host(sizes, layers, dtype)
    host.to(device)
    side = sizes.vision["image_size"]
    images = torch.rand(1, 3, side, side, device=device)
    # An encoder of its own, as large as the host's. Its weights are the host's, which halves the
    # memory and changes no time: what counts is that it runs once more.
    own_detector = detector(host, processor).to(device)
    skilled = attach_forgery(host, processor, detector(host, processor)).eval()
    image_tokens = (side // sizes.vision["patch_size"]) ** 2
    pixels = skilled.kfd.encoder.normalise(images)
    image_id = host.config.image_token_id
    bare_ids = prompt(image_id, image_tokens, QUESTION, device)
    skill = [skilled.token_id] * skilled.n_forgery
    skill_ids = prompt(image_id, image_tokens, QUESTION + SCORE_SENTENCE, device, skill)
    client_ids = prompt(image_id, image_tokens, QUESTION + SCORE_SENTENCE, device)
    long_ids = prompt(image_id, image_tokens, QUESTION + SCORE_SENTENCE + skilled.n_forgery, device)
    detection = skilled.detect(images)
    taps = [
        torch.rand(1, width, *detection.consistency_maps.shape[-2:], device=device, dtype=dtype)
        for width in skilled.kfd.encoder.widths
    ]

    def own() -> None:
        seen = own_detector(images)
        run_skilled(skilled, skill_ids, seen, pixels)

    def shared() -> None:
        seen = skilled.detect(images)
        run_skilled(skilled, skill_ids, seen, pixels)

    def placed() -> None:
        seen = skilled.detect(images)
        run_skilled(skilled, client_ids, seen, pixels)

    return {
        "bare host": lambda: run_host(host, bare_ids, pixels),
        "bare host, prompt as long as the skill's": lambda: run_host(host, long_ids, pixels),
        "skill, own encoder as large as the host's": own,
        SHARED: shared,
        PLACED: placed,
        "  of which linear layers, maps and heads": lambda: skilled.kfd.read_features(taps),
        "  of which FPL": lambda: skilled.fpl(detection),
    }


def make_host(
    sizes: Sizes, layers: int, dtype: torch.dtype
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA of random weights, and a processor whose words are numbers."""
    words = {f"w{i}": i for i in range(sizes.vocabulary - 64)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), pad_token="w1"
    )
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes.vision),
        text_config=LlamaConfig(
            vocab_size=sizes.vocabulary, hidden_size=sizes.width, intermediate_size=sizes.inner,
            num_hidden_layers=layers, num_attention_heads=sizes.heads,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights():
            host = LlavaForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)
    for name, parameter in host.named_parameters():
        if parameter.ndim > 1:
            parameter.uniform_(-0.03, 0.03)
        else:
            parameter.fill_(float(name.endswith("norm.weight")))
    side = sizes.vision["image_size"]
    images = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    processor = LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=sizes.vision["patch_size"],
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    return host, processor


def detector(
    host: LlavaForConditionalGeneration, processor: LlavaProcessor
) -> KnowledgeGuidedForgeryDetector:
    """A new detector of ``lite`` heads on the host's tower."""
    with tempfile.TemporaryDirectory() as folder:
        host.config.save_pretrained(folder)
        processor.save_pretrained(folder)
        config = host_config(folder)
    kfd = KnowledgeGuidedForgeryDetector(config, with_knowledge=False, with_tower=False)
    kfd.encoder.adopt(host.get_encoder(modality="image"))
    kfd.text_features.normal_()
    return kfd.eval()


def prompt(
    image_id: int, image_tokens: int, words: int, device: torch.device, skill: list[int] = ()
) -> torch.Tensor:
    """Ids (1, T): the image, the placeholders, and words."""
    return torch.tensor([[2, *[image_id] * image_tokens, *skill, *range(3, 3 + words)]]).to(device)


def run_host(host: LlavaForConditionalGeneration, ids: torch.Tensor, pixels: torch.Tensor) -> None:
    """Prefill: the whole prompt into the cache, the logits of its last token."""
    host(input_ids=ids, pixel_values=pixels, use_cache=True, logits_to_keep=1)


def run_skilled(vlm: ForgeryVLM, ids: torch.Tensor, seen, pixels: torch.Tensor) -> None:
    """The same with the skill."""
    vlm(input_ids=ids, detection=seen, pixel_values=pixels, use_cache=True, logits_to_keep=1)


if __name__ == "__main__":
    run(lambda: typer.run(main))
