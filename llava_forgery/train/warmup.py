"""A warm start for the FPL: E_forgery is trained towards words of the host with the same meaning.

A host would have to learn the meaning of a new FPL's embeddings by training through all its layers.
It already knows words, so before stage 2 each of the first placeholders is trained towards the
host's own embedding of the token with which answers name a region, if that region is forged, or of
a dash if it is not; the next placeholder towards that of "fake" or "real". A host repeats words of
its prompt without training, so stage 2 only has to teach when. The host is not run, so this takes
seconds. It is not in the paper; stage 2 then trains FPL and LoRA as in the paper.
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

# Of fourteen neutral tokens tried on an untrained SmolLM2, the one with which it repeats the forged
# regions most clearly: a real word among the placeholders has a meaning of its own.
ABSENT = "-"
FORGED_WEIGHT = 3.0
SLOTS = len(REGION_NAMES) + 1
_DETECTED_AT_ONCE = 16


def opening_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Tokens with which the words of the warm start begin within a sentence.

    Args:
        tokenizer: Tokenizer of the host.

    Returns:
        Ids for each region as answers name it, for the labels and for ``ABSENT``: the first one, or
        as many as are needed to distinguish them.

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
        f"the warm start needs words that the tokenizer tells apart, this one gives {ids}; "
        "disable the warm start with 0 steps"
    )


@torch.no_grad()
def word_vectors(vlm: ForgeryModel) -> dict[str, torch.Tensor]:
    """(C,) float32 for each word: the mean of the host's embeddings of its opening tokens."""
    # Through the module, not its weight, as Gemma's families scale the rows.
    embedding = vlm.host.get_input_embeddings()
    tokens = opening_tokens(vlm.prompts.tokenizer)
    return {
        name: embedding(torch.tensor(ids, device=vlm.device)).float().mean(dim=0)
        for name, ids in tokens.items()
    }


def alignment_words(labels: list[int], regions: list[list[str]]) -> list[list[str]]:
    """Target words of the first ``SLOTS`` placeholders of each of N images."""
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
        faces: Faces of the people for training.
        count: Number of forgeries; detecting on one takes as long as on a conversation's image.
        detector: Detector, which determines the size.
        seed: Seed of everything; conversations of the same seed use other forgeries, because of
            their role.

    Raises:
        ValueError: There are no faces, or some are labelled fake.
    """
    size = detector.config.encoder.image_size
    return FacePairs(faces, count, size, seed, degradation=DegradeConfig(), role="warmup")


@dataclass(frozen=True)
class WarmUp:
    """Settings of the FPL's warm start."""

    steps: int = 400
    """Number of optimiser steps, which only train the FPL."""
    seed: int = 0
    """Seed of the batches."""
    pairs: FacePairs | None = None
    """Pairs whose forged images are also learned from, from :func:`further_forgeries`. Naming
    regions well takes more forgeries than stage 2 has time for."""
    workers: int = 0
    """Number of processes that make ``pairs``."""
    batch_size: int = 32
    """Number of images per step."""
    learning_rate: float = 3e-3
    """Peak of a one-cycle schedule."""
    max_dialogues: int = 2048
    """Maximum number of dialogues whose detections are kept in memory: about 20 KB each for a
    ``lite`` FPL, half a megabyte for a ``paper`` one."""

    def describe(self) -> dict[str, Any]:
        """Everything that the result depends on, JSON-serializable."""
        more = None if self.pairs is None else self.pairs.describe()
        return {"steps": self.steps, "more": more}


def warm_up_fpl(vlm: ForgeryModel, dialogues: DialogueSource, how: WarmUp | None = None) -> float:
    """Train the FPL's embeddings towards words; see the module's docstring.

    Args:
        vlm: Model with a new FPL.
        dialogues: Dialogues, of which those with a label are used.
        how: Settings; the defaults if None.

    Returns:
        The last loss: weighted mean squared distance relative to the mean square of the words.

    Raises:
        ValueError: As for :func:`opening_tokens`; or there are fewer placeholders than regions and
            verdict need, or no labelled dialogues.
    """
    how = how or WarmUp()
    if vlm.n_forgery < SLOTS:
        raise ValueError(
            f"the warm start needs n_forgery of at least {SLOTS}, got {vlm.n_forgery}; disable it "
            "with 0 steps"
        )
    vectors = word_vectors(vlm)
    inputs, labels, regions = _read(vlm, dialogues, how)
    words = alignment_words(labels, regions)
    targets = torch.stack([torch.stack([vectors[word] for word in row]) for row in words])
    generator = torch.Generator().manual_seed(how.seed)
    # Most regions of most images are untouched: without a larger weight on the forged ones, all
    # would shrink towards the dash.
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
    """Mirror half of the images horizontally, which does not change the names of the regions."""
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
    """Inputs of the FPL for all images, on the CPU, with their labels and forged regions."""
    pictures = KFDImageProcessor(vlm.kfd.config.encoder.image_size)

    def labelled() -> Iterator[tuple[torch.Tensor, int, list[str]]]:
        for row in (row for row, general in enumerate(dialogues.general) if not general):
            dialogue = dialogues[row]
            if dialogue.label is not None:
                (image,) = pictures([dialogue.images[0]])["pixel_values"]
                yield image, dialogue.label, list(dialogue.regions)

    def images() -> Iterator[tuple[torch.Tensor, int, list[str]]]:
        yield from islice(labelled(), how.max_dialogues)
        # The loader keeps the order whatever the number of workers.
        more = how.pairs
        loader = () if more is None else DataLoader(more, batch_size=None, num_workers=how.workers)
        for pair in loader:
            # In eight bits, like the images of conversations.
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
            "none; disable it with 0 steps"
        )
    return FPLInput(*(torch.cat(parts) for parts in zip(*inputs, strict=True))), labels, regions


def _batched(items: Iterator[Any]) -> Iterator[list[Any]]:
    while batch := list(islice(items, _DETECTED_AT_ONCE)):
        yield batch
