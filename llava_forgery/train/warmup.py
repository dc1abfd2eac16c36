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
from dataclasses import dataclass
from itertools import islice
from typing import Any

import datasets
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from llava_forgery.constants import FAKE, LABEL_NAMES, REGION_NAMES
from llava_forgery.fpl.learner import FPLInput
from llava_forgery.hosts.base import ForgeryModel
from llava_forgery.hosts.llava.tower import KFDImageProcessor
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.progress import progress
from llava_forgery.qa.templates import join_regions
from llava_forgery.simulate.degrade import DegradeConfig
from llava_forgery.simulate.pairs import FacePairs
from llava_forgery.tensors import from_bytes, to_bytes
from llava_forgery.train.dialogues import DialogueSource

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
def word_vectors(vlm: ForgeryModel) -> dict[str, torch.Tensor]:
    """(C,) float32 for each word: the mean of the host's embeddings of its opening tokens."""
    # Through the module, not its weight: Gemma's families multiply the rows.
    embedding = vlm.host.get_input_embeddings()
    tokens = opening_tokens(vlm.prompts.tokenizer)
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
    """Forgeries of the detector's size for :attr:`WarmUp.pairs`.

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


@dataclass(frozen=True)
class WarmUp:
    """How the FPL is warmed up."""

    steps: int = 400
    """Optimiser steps, of the FPL alone."""
    seed: int = 0
    """Of the batches."""
    pairs: FacePairs | None = None
    """Whose forged images are learned from as well, from :func:`further_forgeries`. To name regions
    well takes more forgeries than stage 2 has time to talk about."""
    workers: int = 0
    """Processes that make ``pairs``."""
    batch_size: int = 32
    """Images for each step."""
    learning_rate: float = 3e-3
    """Highest value of a one-cycle schedule."""
    max_dialogues: int = 2048
    """Dialogues whose detections are kept in memory: about 20 KB each for a ``lite`` FPL, half a
    megabyte for a ``paper`` one."""

    def describe(self) -> dict[str, Any]:
        """All that the result depends on, as JSON takes it."""
        more = None if self.pairs is None else self.pairs.describe()
        return {"steps": self.steps, "more": more}


def warm_up_fpl(vlm: ForgeryModel, dialogues: DialogueSource, how: WarmUp | None = None) -> float:
    """Draw the FPL's embeddings to words; see the module.

    Args:
        vlm: With a new FPL.
        dialogues: Those with a label are learned from.
        how: Steps and the like; the defaults if None.

    Returns:
        The last loss: weighted mean squared distance as a share of the words' own mean square.

    Raises:
        ValueError: Fewer placeholders than regions and verdict together need, no labelled dialogue,
            or as :func:`opening_tokens`.
    """
    how = how or WarmUp()
    if vlm.n_forgery < SLOTS:
        raise ValueError(
            f"the warm start needs n_forgery of at least {SLOTS}, got {vlm.n_forgery}; leave it "
            "out with 0 steps"
        )
    vectors = word_vectors(vlm)
    inputs, labels, regions = _read(vlm, dialogues, how)
    words = alignment_words(labels, regions)
    targets = torch.stack([torch.stack([vectors[word] for word in row]) for row in words])
    generator = torch.Generator().manual_seed(how.seed)
    # Most regions of most images are untouched: without more weight on the forged ones, all would
    # shrink towards the dash.
    weights = torch.tensor(
        [[[1.0 if word == ABSENT else FORGED_WEIGHT] for word in row] for row in words],
        device=targets.device,
    )
    optimiser = torch.optim.AdamW(
        vlm.fpl.parameters(), lr=how.learning_rate, weight_decay=0.0, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, how.learning_rate, total_steps=how.steps
    )
    scale = targets.pow(2).mean()
    vlm.fpl.train()
    for _ in (bar := progress(range(how.steps), "FPL warm-up", "step")):
        chosen = torch.randint(len(words), (min(how.batch_size, len(words)),), generator=generator)
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
    vlm: ForgeryModel, dialogues: DialogueSource, how: WarmUp
) -> tuple[FPLInput, list[int], list[list[str]]]:
    """What the FPL reads of all images, on the CPU, with their labels and forged regions."""
    pictures = KFDImageProcessor(vlm.kfd.config.encoder.image_size)

    def labelled() -> Iterator[tuple[torch.Tensor, int, list[str]]]:
        for row in (row for row, general in enumerate(dialogues.general) if not general):
            dialogue = dialogues[row]
            if dialogue.label is not None:
                (image,) = pictures([dialogue.images[0]])["pixel_values"]
                yield image, dialogue.label, list(dialogue.regions)

    def images() -> Iterator[tuple[torch.Tensor, int, list[str]]]:
        yield from islice(labelled(), how.max_dialogues)
        # Whatever the workers, the loader keeps the order.
        more = how.pairs
        loader = () if more is None else DataLoader(more, batch_size=None, num_workers=how.workers)
        for pair in loader:
            # In eight bits, as the conversations' images are.
            yield from_bytes(to_bytes(pair.forged)), FAKE, list(pair.regions)

    inputs, labels, regions = [], [], []
    with torch.no_grad():
        for batch in _batched(
            iter(progress(images(), "detector on the warm-up's images", "image"))
        ):
            stacked = torch.stack([image for image, _, _ in batch])
            inputs.append([tensor.cpu() for tensor in vlm.fpl.read(vlm.detect(stacked))])
            labels += [label for _, label, _ in batch]
            regions += [named for _, _, named in batch]
    if not labels:
        raise ValueError(
            "the warm start needs dialogues with a label and the forged regions, the data have "
            "none; leave it out with 0 steps"
        )
    return FPLInput(*(torch.cat(parts) for parts in zip(*inputs, strict=True))), labels, regions


def _batched(items: Iterator[Any]) -> Iterator[list[Any]]:
    while batch := list(islice(items, _DETECTED_AT_ONCE)):
        yield batch
