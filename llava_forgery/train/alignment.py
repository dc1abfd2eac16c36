"""A warm start for the FPL: E_forgery drawn to words of the host that say the same.

A new FPL speaks a language that the host has yet to learn, through the whole of it and at its cost.
Words it knows: before stage 2, each of the first placeholders is drawn to the host's own embedding
of a region's name where that region is forged and of "none" where it is not, the next one to that
of "fake" or "real". The host is not run, so this takes seconds. It is not in the paper; stage 2
then trains FPL and LoRA as the paper has it.
"""

import logging

import datasets
import torch
from tqdm import trange

from llava_forgery.constants import LABEL_NAMES, REGION_NAMES
from llava_forgery.hosts.transformers_vlm import ForgeryVLM
from llava_forgery.kfd.detector import KFDOutput
from llava_forgery.train.conversations import from_bytes

logger = logging.getLogger(__name__)

ABSENT = "none"
FORGED_WEIGHT = 3.0
SLOTS = len(REGION_NAMES) + 1


@torch.no_grad()
def word_embedding(vlm: ForgeryVLM, word: str) -> torch.Tensor:
    """(C,): the mean of the host's embeddings of a word's tokens inside a sentence."""
    ids = vlm.processor.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
    weight = vlm.host.get_input_embeddings().weight
    return weight[torch.tensor(ids, device=weight.device)].float().mean(dim=0)


def alignment_targets(vlm: ForgeryVLM, labels: list[int], regions: list[list[str]]) -> torch.Tensor:
    """What the first placeholders are drawn to.

    Args:
        vlm: With at least ``SLOTS`` placeholders.
        labels: N labels.
        regions: For each image the names of its forged regions.

    Returns:
        (N, SLOTS, C) float32.
    """
    words = {word: word_embedding(vlm, word) for word in (ABSENT, *REGION_NAMES, *LABEL_NAMES)}
    return torch.stack(
        [
            torch.stack(
                [words[name if name in named else ABSENT] for name in REGION_NAMES]
                + [words[LABEL_NAMES[label]]]
            )
            for label, named in zip(labels, regions, strict=True)
        ]
    )


def align_learner(
    vlm: ForgeryVLM,
    conversations: datasets.Dataset,
    *,
    steps: int = 400,
    batch_size: int = 32,
    learning_rate: float = 5e-3,
    seed: int = 0,
    max_rows: int = 1024,
) -> float:
    """Draw the FPL's embeddings to words; see the module.

    Args:
        vlm: From ``attach_forgery``, with a new FPL.
        conversations: From ``build_conversations``.
        steps: Optimiser steps, of the FPL alone.
        batch_size: Images for each step.
        learning_rate: Highest value of a one-cycle schedule.
        seed: Of the batches.
        max_rows: Images whose detections are kept in memory (about half a megabyte each).

    Returns:
        The last loss: weighted mean squared distance as a share of the words' own mean square.

    Raises:
        ValueError: Fewer placeholders than regions and verdict together need.
    """
    if vlm.n_forgery < SLOTS:
        raise ValueError(
            f"the warm start needs n_forgery of at least {SLOTS}, got {vlm.n_forgery}; leave it "
            "out with 0 steps"
        )
    rows = conversations.select(range(min(max_rows, len(conversations))))
    targets = alignment_targets(vlm, rows["label"], rows["regions"])
    detections = _detections(vlm, rows)
    generator = torch.Generator().manual_seed(seed)
    # Most regions of most images are untouched: without more weight on the forged ones, all would
    # shrink towards "none".
    none = word_embedding(vlm, ABSENT)
    forged = (targets != none).any(dim=2, keepdim=True)
    weights = torch.where(forged, FORGED_WEIGHT, 1.0)
    optimiser = torch.optim.AdamW(vlm.fpl.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    scale = targets.pow(2).mean()
    vlm.fpl.train()
    for _ in (bar := trange(steps, desc="align", unit="step")):
        chosen = torch.randint(len(rows), (min(batch_size, len(rows)),), generator=generator)
        batch = KFDOutput(*(tensor[chosen].to(vlm.device) for tensor in detections))
        vectors = vlm.fpl(batch)[:, :SLOTS].float()
        distance = (vectors - targets[chosen]).pow(2) * weights[chosen]
        loss = distance.mean() / scale
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    vlm.fpl.eval()
    return loss.item()


def _detections(vlm: ForgeryVLM, rows: datasets.Dataset) -> tuple[torch.Tensor, ...]:
    """Maps, mask logits and class logits of all rows, on the CPU."""
    outputs = []
    for start in range(0, len(rows), 16):
        images = rows[start : start + 16]["image"]
        outputs.append(vlm.detect(torch.stack([from_bytes(image) for image in images])))
    return tuple(
        torch.cat([getattr(output, name).cpu() for output in outputs])
        for name in ("consistency_maps", "mask_logits", "class_logits")
    )
