"""A warm start for the FPL: E_forgery drawn to words of the host that say the same.

A new FPL speaks a language that the host has yet to learn, through the whole of it and at its cost.
Words it knows: before stage 2, each of the first placeholders is drawn to the host's own embedding
of the token with which its answer names a region, where that region is forged, and of a dash where
it is not; the next one to that of "fake" or "real". A host repeats words of its prompt by itself,
so what stage 2 has left to teach is when. The host is not run, so this takes seconds. It is not in
the paper; stage 2 then trains FPL and LoRA as the paper has it.
"""

import logging
from collections.abc import Iterator

import datasets
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm, trange
from transformers import PreTrainedTokenizerBase

from llava_forgery.constants import FAKE, LABEL_NAMES, REGION_NAMES
from llava_forgery.faces.records import image_pixels
from llava_forgery.fpl.learner import FPLInput
from llava_forgery.hosts.transformers.model import ForgeryVLM
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.qa.templates import join_regions
from llava_forgery.rows import embedded
from llava_forgery.simulate.degrade import DegradeConfig
from llava_forgery.simulate.pairs import FacePairs
from llava_forgery.tensors import from_bytes, to_bytes

logger = logging.getLogger(__name__)

# Of fourteen neutral tokens tried on SmolLM2, untrained, the one beside which it repeats the forged
# regions most clearly: a word that stands in the placeholders says something of its own.
ABSENT = "-"
FORGED_WEIGHT = 3.0
SLOTS = len(REGION_NAMES) + 1
_DETECTED_AT_ONCE = 16


def opening_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """With which tokens the words of the warm start begin inside a sentence.

    Args:
        tokenizer: The host's.

    Returns:
        Ids for each region as answers name it, for the labels and for ``ABSENT``: the first one,
        or as many as it takes to tell all of them apart.

    Raises:
        ValueError: The tokenizer cannot tell two of them apart.
    """
    words = {name: join_regions((name,)) for name in REGION_NAMES}
    words |= {name: name for name in (ABSENT, *LABEL_NAMES)}
    before = tokenizer("at the", add_special_tokens=False)["input_ids"]
    ids = {}
    for name, word in words.items():
        sentence = tokenizer(f"at the {word}", add_special_tokens=False)["input_ids"]
        start = next(i for i, token in enumerate(sentence) if before[i : i + 1] != [token])
        ids[name] = sentence[start:]
    for count in range(1, max(map(len, ids.values())) + 1):
        opening = {name: tokens[:count] for name, tokens in ids.items()}
        if len(set(map(tuple, opening.values()))) == len(opening):
            return opening
    raise ValueError(
        f"the warm start needs words that the tokenizer tells apart, this one gives {ids}; leave "
        "the warm start out with 0 steps"
    )


@torch.no_grad()
def word_vectors(vlm: ForgeryVLM) -> dict[str, torch.Tensor]:
    """(C,) float32 for each word: the mean of the host's embeddings of its opening tokens."""
    # Through the module, not its weight: Gemma's families multiply the rows.
    embedding = vlm.host.get_input_embeddings()
    tokens = opening_tokens(vlm.processor.tokenizer)
    return {
        name: embedding(torch.tensor(ids, device=vlm.device)).float().mean(dim=0)
        for name, ids in tokens.items()
    }


def alignment_words(labels: list[int], regions: list[list[str]]) -> list[list[str]]:
    """What the first ``SLOTS`` placeholders of each of N images are to say."""
    return [
        [name if name in named else ABSENT for name in REGION_NAMES] + [LABEL_NAMES[label]]
        for label, named in zip(labels, regions, strict=True)
    ]


def further_forgeries(
    faces: datasets.Dataset,
    count: int,
    detector: KnowledgeGuidedForgeryDetector,
    seed: int = 0,
) -> FacePairs:
    """Forgeries of the detector's size for ``more`` of :func:`warm_up_fpl`.

    Args:
        faces: Of people who are for training.
        count: How many; detecting on one takes as long as on a conversation's image.
        detector: Whose size they have.
        seed: Of everything; conversations of the same seed are about other forgeries, by their
            role.

    Raises:
        ValueError: No faces, or faces labelled fake.
    """
    size = detector.config.encoder.image_size
    return FacePairs(faces, count, size, seed, degradation=DegradeConfig(), role="warmup")


def warm_up_fpl(
    vlm: ForgeryVLM,
    conversations: datasets.Dataset,
    *,
    steps: int = 400,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
    seed: int = 0,
    max_rows: int = 2048,
    more: FacePairs | None = None,
    workers: int = 0,
) -> float:
    """Draw the FPL's embeddings to words; see the module.

    Args:
        vlm: From ``attach_forgery``, with a new FPL.
        conversations: From ``build_conversations``.
        steps: Optimiser steps, of the FPL alone.
        batch_size: Images for each step.
        learning_rate: Highest value of a one-cycle schedule.
        seed: Of the batches.
        max_rows: Conversations whose detections are kept in memory: about 20 KB each for a
            ``lite`` FPL, half a megabyte for a ``paper`` one.
        more: Pairs whose forged images are learned from as well, from
            :func:`further_forgeries`. To name regions well takes more forgeries than stage 2 has
            time to talk about.
        workers: Processes that make ``more``.

    Returns:
        The last loss: weighted mean squared distance as a share of the words' own mean square.

    Raises:
        ValueError: Fewer placeholders than regions and verdict together need; or as
            :func:`opening_tokens`.
    """
    if vlm.n_forgery < SLOTS:
        raise ValueError(
            f"the warm start needs n_forgery of at least {SLOTS}, got {vlm.n_forgery}; leave it "
            "out with 0 steps"
        )
    rows = conversations.select(range(min(max_rows, len(conversations))))
    vectors = word_vectors(vlm)
    inputs, labels, regions = _read(vlm, rows, more, workers)
    words = alignment_words(labels, regions)
    targets = torch.stack([torch.stack([vectors[word] for word in row]) for row in words])
    generator = torch.Generator().manual_seed(seed)
    # Most regions of most images are untouched: without more weight on the forged ones, all would
    # shrink towards the dash.
    weights = torch.tensor(
        [[[1.0 if word == ABSENT else FORGED_WEIGHT] for word in row] for row in words],
        device=targets.device,
    )
    optimiser = torch.optim.AdamW(
        vlm.fpl.parameters(), lr=learning_rate, weight_decay=0.0, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    scale = targets.pow(2).mean()
    vlm.fpl.train()
    for _ in (bar := trange(steps, desc="align", unit="step")):
        chosen = torch.randint(len(words), (min(batch_size, len(words)),), generator=generator)
        batch = FPLInput(*(tensor[chosen].to(vlm.device) for tensor in inputs))
        prompts = vlm.fpl.embed(_mirrored(batch, generator))[:, :SLOTS].float()
        distance = (prompts - targets[chosen]).pow(2) * weights[chosen]
        loss = distance.mean() / scale
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    vlm.fpl.eval()
    return loss.item()


def _mirrored(inputs: FPLInput, generator: torch.Generator) -> FPLInput:
    """Half of the images left and right exchanged: the regions are named alike on both sides."""
    mask, maps, probabilities = inputs
    turned = (torch.rand(len(maps), generator=generator) < 0.5).to(maps.device)
    turned = turned.view(-1, 1, 1, 1)
    return FPLInput(
        torch.where(turned, mask.flip(-1), mask),
        torch.where(turned, maps.flip(-1), maps),
        probabilities,
    )


def _read(
    vlm: ForgeryVLM, rows: datasets.Dataset, more: FacePairs | None, workers: int
) -> tuple[FPLInput, list[int], list[list[str]]]:
    """What the FPL reads of all images, on the CPU, with their labels and forged regions."""

    def images() -> Iterator[tuple[torch.Tensor, int, list[str]]]:
        for row in embedded(rows, "the conversations"):
            yield from_bytes(image_pixels(row["image"], "RGB")), row["label"], row["regions"]
        # Whatever the workers, the loader keeps the order.
        loader = () if more is None else DataLoader(more, batch_size=None, num_workers=workers)
        for pair in loader:
            # In eight bits, as the conversations' images are.
            yield from_bytes(to_bytes(pair.forged)), FAKE, list(pair.regions)

    inputs, labels, regions, waiting = [], [], [], []
    total = len(rows) + (0 if more is None else len(more))
    with torch.no_grad():
        for image, label, named in tqdm(images(), total=total, desc="detect", unit="image"):
            waiting.append(image)
            labels.append(label)
            regions.append(named)
            if len(waiting) == _DETECTED_AT_ONCE or len(labels) == total:
                read = vlm.fpl.read(vlm.detect(torch.stack(waiting)))
                inputs.append([tensor.cpu() for tensor in read])
                waiting = []
    return FPLInput(*(torch.cat(parts) for parts in zip(*inputs, strict=True))), labels, regions
