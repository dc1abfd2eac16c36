"""Training conversations for stage 2: forgeries, the detector's scores, questions and answers.

One pass makes them all: faces are forged, the trained detector scores them in batches, and each
image gets a conversation that cites its score (LVLM-DFD, section 3.3). The result is a Hugging
Face data set on disk, so that stage 2 reads what can be looked at.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import datasets
import numpy as np
import torch
from tqdm import tqdm

from llava_forgery.constants import FAKE, REAL
from llava_forgery.files import atomic_path
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.qa.build import build_conversation
from llava_forgery.qa.conversation import Conversation
from llava_forgery.rows import write_rows
from llava_forgery.simulate.pairs import FacePair, FacePairs

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "label": datasets.Value("int8"),
        "regions": datasets.List(datasets.Value("string")),
        "score": datasets.Value("float32"),
        "messages": datasets.List(
            {"role": datasets.Value("string"), "text": datasets.Value("string")}
        ),
        "identity": datasets.Value("string"),
    }
)


@dataclass(frozen=True)
class Scored:
    """One image with the detector's score."""

    image: np.ndarray
    """(S, S, 3) uint8."""
    label: int
    regions: tuple[str, ...]
    score: float
    row: int
    """Row of the face it was made from."""


def to_bytes(image: torch.Tensor) -> np.ndarray:
    """(3, S, S) in [0, 1] to (S, S, 3) uint8."""
    return (image * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def from_bytes(image: np.ndarray) -> torch.Tensor:
    """(S, S, 3) uint8 to (3, S, S) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).float() / 255


@torch.no_grad()
def score_pairs(
    pairs: FacePairs, detector: KnowledgeGuidedForgeryDetector, batch_size: int = 8
) -> Iterator[Scored]:
    """Forged and pristine image of each pair as bytes, with the detector's score of them."""
    device = next(detector.consistency.parameters()).device
    for start in tqdm(range(0, len(pairs), batch_size), desc="forge and score", unit="batch"):
        batch: list[FacePair] = [
            pairs[i] for i in range(start, min(start + batch_size, len(pairs)))
        ]
        entries = [(pair.forged, FAKE, pair.regions, pair.row) for pair in batch]
        entries += [(pair.pristine, REAL, (), pair.row) for pair in batch]
        # The score belongs to what is stored, so to the rounded picture.
        images = [to_bytes(entry[0]) for entry in entries]
        scores = detector(torch.stack([from_bytes(i) for i in images]).to(device)).score.tolist()
        for image, score, (_, label, regions, row) in zip(images, scores, entries, strict=True):
            yield Scored(image, label, regions, score, row)


def build_conversations(
    pairs: FacePairs,
    detector: KnowledgeGuidedForgeryDetector,
    output_dir: str | PathLike,
    *,
    follow_ups: float = 0.3,
    task_descriptions: float = 1.0,
    kfd_results: float = 1.0,
    seed: int = 0,
) -> datasets.Dataset:
    """Make and write the training conversations, two for each pair.

    Args:
        pairs: Faces of people who are for training.
        detector: Trained, in eval mode.
        output_dir: A data set there is replaced.
        follow_ups: Probability of follow-up turns in a conversation.
        task_descriptions: Probability of a task description at its beginning. Shorter prompts cost
            less, and the skill then does not hang on the description.
        kfd_results: Probability of the sentence that cites the detector's score.
        seed: Of the wordings.

    Returns:
        The data set; rows as in ``FEATURES``.

    Raises:
        ValueError: A probability is not in [0, 1].
    """
    shares = {
        "follow_ups": follow_ups,
        "task_descriptions": task_descriptions,
        "kfd_results": kfd_results,
    }
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is a probability in [0, 1], got {share}")
    identities = pairs.faces["identity"]

    def rows() -> Iterator[dict]:
        for index, item in enumerate(score_pairs(pairs, detector)):
            rng = random.Random(f"{seed}-{index}")
            conversation = build_conversation(
                item.label,
                item.regions,
                rng=rng,
                score=item.score if rng.random() < kfd_results else None,
                follow_ups=rng.randint(1, 2) if rng.random() < follow_ups else 0,
                task_description=rng.random() < task_descriptions,
            )
            yield {
                "image": item.image,
                "label": item.label,
                "regions": list(item.regions),
                "score": item.score,
                "messages": [{"role": m.role, "text": m.text} for m in conversation.messages],
                "identity": identities[item.row],
            }

    output_dir = Path(output_dir)
    with atomic_path(output_dir) as temporary:
        write_rows(rows, FEATURES, temporary)
    return datasets.load_from_disk(str(output_dir))


def conversation_of(row: dict) -> Conversation:
    """The neutral record of a row."""
    return Conversation.from_dict(
        {"messages": row["messages"], "label": row["label"], "regions": row["regions"]}
    )
