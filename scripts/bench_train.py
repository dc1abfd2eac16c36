"""What the forgery skill adds to a training step of stage 2, against the host's plain LoRA step.

    python scripts/bench_train.py [--layers 2] [--device cuda] [--dtype bfloat16]

A LLaVA-1.5-7B of random weights at its real widths, with as many language layers as asked for; see
scripts/bench_host_tower.py, whose host this is. A step is forward, backward and AdamW on LoRA (and
the FPL). All variants run in turn in one process; the table gives medians and the ratio to plain
LoRA. What the skill adds hardly grows with the layers while the plain step does: figures of few
layers overstate the ratio. --tiny checks that the script runs; its figures say nothing.
"""

from collections.abc import Callable
from typing import Annotated

import torch
import typer
from bench_host_tower import LLAVA_7B, TINY, Sizes, detector, make_host, prompt
from bench_timing import measure
from transformers.utils import logging

from llava_forgery.cli.app import run
from llava_forgery.constants import IGNORE_INDEX
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.transformers.model import attach_forgery

# Tokens of a sample beside the image: the question, the sentence with the score, the answer.
QUESTION, SCORE_SENTENCE, ANSWER = 48, 16, 32
# LLaVA's targets: all linear layers of the language model.
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def main(
    layers: Annotated[int, typer.Option(help="Language layers, of 32.")] = 32,
    batch_size: Annotated[int, typer.Option(help="Samples of a step.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    rounds: Annotated[int, typer.Option(help="Steps of each variant.")] = 5,
    warm_up: Annotated[int, typer.Option(help="Steps before them that do not count.")] = 1,
    threads: Annotated[int | None, typer.Option(help="torch's CPU threads.")] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option(help="As scripts/finetune_lora.sh trains.")
    ] = True,
    tiny: Annotated[bool, typer.Option("--tiny", help="Tiny sizes, to see that it runs.")] = False,
) -> None:
    """Print the table."""
    if threads is not None:
        torch.set_num_threads(threads)
    # The weights are random: transformers' remarks on them help nobody.
    logging.set_verbosity_error()
    torch.manual_seed(0)
    sizes, place = TINY if tiny else LLAVA_7B, torch.device(device)
    steps = build(sizes, layers, batch_size, place, getattr(torch, dtype), gradient_checkpointing)
    times = measure(steps, rounds, warm_up, place)
    print(
        f"{layers} language layers of width {sizes.width}, {device}, {dtype}, batch {batch_size}, "
        f"gradient checkpointing {'on' if gradient_checkpointing else 'off'}, "
        f"{torch.get_num_threads()} CPU threads, median of {rounds}\n"
    )
    print(f"{'':<50}{'ms':>10}{'ratio':>8}{'busy ms':>12}{'ratio':>8}")
    plain = next(iter(times.values()))
    for name, (passed, busy) in times.items():
        print(f"{name:<50}{1000 * passed:>10.1f}{passed / plain[0]:>8.3f}", end="")
        print(f"{1000 * busy:>12.1f}{busy / plain[1]:>8.3f}")


def build(
    sizes: Sizes,
    layers: int,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    gradient_checkpointing: bool,
) -> dict[str, Callable[[], None]]:
    """The steps to measure, the plain one first."""
    with torch.no_grad():
        host, processor = make_host(sizes, layers, dtype)
        # An encoder of its own, as large as the host's. Its weights are the host's, which halves
        # the memory and changes no time: what counts is that it runs once more.
        own_detector = detector(host, processor).to(device)
        shared_detector = detector(host, processor)
    host.to(device)
    lora = LoraSettings(r=32, alpha=32, dropout=0.1, projections=LINEAR)
    vlm = attach_forgery(host, processor, shared_detector, lora=lora).train()
    if gradient_checkpointing:
        # Without it the layers would not be recomputed: their inputs have no gradient in plain
        # LoRA.
        vlm.host.enable_input_require_grads()
        host.activation_checkpointing_enable()
    side = sizes.vision["image_size"]
    images = torch.rand(batch_size, 3, side, side, device=device)
    pixels = own_detector.encoder.normalise(images)
    image_id, image_tokens = host.config.image_token_id, (side // sizes.vision["patch_size"]) ** 2
    skill = [vlm.token_id] * vlm.n_forgery

    def sample(words: int, placeholders: list[int]) -> dict[str, torch.Tensor]:
        ids = prompt(image_id, image_tokens, words + ANSWER, device, placeholders)
        ids = ids.repeat(batch_size, 1)
        labels = torch.full_like(ids, IGNORE_INDEX)
        labels[:, -ANSWER:] = ids[:, -ANSWER:]
        return {"input_ids": ids, "labels": labels, "pixel_values": pixels}

    bare, told = sample(QUESTION, []), sample(QUESTION + SCORE_SENTENCE, skill)
    of_lora = [p for p in vlm.host.parameters() if p.requires_grad]
    optimisers = [
        torch.optim.AdamW(parameters, lr=1e-6)
        for parameters in (of_lora, [p for p in vlm.parameters() if p.requires_grad])
    ]

    def plain() -> None:
        vlm.host(**bare).loss.backward()
        finish(optimisers[0])

    def own() -> None:
        with torch.no_grad():
            seen = own_detector(images)
        vlm(detection=seen, **told).loss.backward()
        finish(optimisers[1])

    def shared() -> None:
        vlm(**told).loss.backward()
        finish(optimisers[1])

    return {
        "plain LoRA": plain,
        "skill, own encoder as large as the host's": own,
        "skill, the host's tower shared": shared,
    }


def finish(optimiser: torch.optim.Optimizer) -> None:
    """Take the step."""
    optimiser.step()
    optimiser.zero_grad()


if __name__ == "__main__":
    run(lambda: typer.run(main))
