"""Training conversations: forgeries, the detector's scores, questions and answers.

    llava-forgery data build-qa --faces FACES --kfd KFD --out QA

Everything is made in one pass: faces are forged, the trained detector scores them in batches, and
each image gets a conversation that cites its score (LVLM-DFD, section 3.3). The result is a Hugging
Face data set on disk and, in the same folder, LLaVA's JSON with its pictures::

    QA/               datasets.load_from_disk(QA)
      conversations.json images/000000.png ...
      settings.json   how it was made

Finished parts are kept in ``QA-parts`` until all are done; see :mod:`llava_forgery.data.shards`.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.utils.data import DataLoader

import llava_forgery
from llava_forgery.data.samples import Sample, SampleSource, SimulatedSamples
from llava_forgery.data.shards import SETTINGS, PartStore
from llava_forgery.files import atomic_path, check_output_folder, write_json
from llava_forgery.images import png_bytes
from llava_forgery.kfd.checkpoint import detector_digest
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.progress import progress
from llava_forgery.qa.build import build_conversation
from llava_forgery.qa.conversation import Conversation
from llava_forgery.qa.llava_json import LlavaSample, write_llava_json
from llava_forgery.rows import write_rows
from llava_forgery.simulate.pairs import FacePairs
from llava_forgery.tensors import from_bytes

CONVERSATIONS, IMAGES = "conversations.json", "images"

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


@torch.no_grad()
def score_samples(
    samples: Sequence[Sample], detector: KnowledgeGuidedForgeryDetector, batch_size: int = 16
) -> list[float]:
    """The detector's score of each image, in [0, 1].

    Args:
        samples: Samples with images of the detector's size.
        detector: Detector in eval mode.
        batch_size: Number of images per pass.
    """
    device = next(detector.consistency.parameters()).device
    scores: list[float] = []
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        images = torch.stack([from_bytes(sample.image) for sample in batch])
        scores += detector(images.to(device)).score.tolist()
    return scores


def build_conversations(
    source: FacePairs | SampleSource,
    detector: KnowledgeGuidedForgeryDetector | None,
    output_dir: str | PathLike,
    *,
    follow_ups: float = 0.3,
    max_turns: int = 4,
    task_descriptions: float = 0.25,
    kfd_results: float | None = None,
    vary: bool = True,
    seed: int = 0,
    part_size: int = 64,
    batch_size: int = 16,
    workers: int = 0,
) -> datasets.Dataset:
    """Make and write the training conversations, one for each image.

    An interrupted build resumes if it is repeated with the same arguments, with the same result as
    an uninterrupted one.

    Args:
        source: Faces of the people for training; pairs give two conversations each.
        detector: Trained detector in eval mode; None omits all scores.
        output_dir: Output folder; an existing data set is replaced once the new one is complete.
        follow_ups: Probability of follow-up turns in a conversation.
        max_turns: Maximum number of turns of a conversation, 1 to 4; the number of follow-ups is
            random.
        task_descriptions: Probability of a task description at the beginning, which programs
            unaware of the skill do not give.
        kfd_results: Probability of the sentence that cites the detector's score, which such
            programs cannot give; by default 0.75 with a detector and 0 without.
        vary: Whether to choose wordings at random instead of the canonical ones.
        seed: Seed of the wordings.
        part_size: Number of units of the source (pairs, faces) per part.
        batch_size: Number of images per pass of the detector.
        workers: Number of processes that make the images; the result does not depend on it.

    Returns:
        The data set, with rows as in ``FEATURES``; the score is None without a detector.

    Raises:
        ValueError: A probability is not in [0, 1], scores are asked for without a detector, or
            there are parts of another build next to ``output_dir``.
    """
    if isinstance(source, FacePairs):
        source = SimulatedSamples(source)
    if kfd_results is None:
        kfd_results = 0.0 if detector is None else 0.75
    wording = {
        "follow_ups": follow_ups,
        "task_descriptions": task_descriptions,
        "kfd_results": kfd_results,
    }
    for name, share in wording.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is a probability in [0, 1], got {share}")
    if not 1 <= max_turns <= 4:
        raise ValueError(f"max_turns must be 1, 2, 3 or 4, got {max_turns}")
    if detector is None and kfd_results > 0:
        raise ValueError(
            f"kfd_results is {kfd_results}, but there is no detector whose score could be cited; "
            "give one (--kfd), or set it to 0"
        )
    wording |= {"max_turns": max_turns, "vary": vary, "seed": seed}
    settings = {
        "version": llava_forgery.__version__,
        "source": source.describe(),
        "detector": None if detector is None else detector_digest(detector),
        **wording,
        "part_size": part_size,
        "batch_size": batch_size,
    }
    output_dir = Path(output_dir)
    check_output_folder(output_dir, SETTINGS, CONVERSATIONS)
    count = -(-len(source) // part_size)
    store = PartStore(output_dir.with_name(output_dir.name + "-parts"), count, FEATURES, settings)
    for number, samples in _parts(source, store.missing, part_size, workers):
        scores = (
            [None] * len(samples)
            if detector is None
            else score_samples([sample for _, sample in samples], detector, batch_size)
        )
        rows = [
            _row(place, sample, score, wording)
            for (place, sample), score in zip(samples, scores, strict=True)
        ]
        store.write(number, rows)
    _assemble(store, output_dir, settings)
    return datasets.load_from_disk(str(output_dir))


def conversation_of(row: dict) -> Conversation:
    """The neutral conversation of a row."""
    return Conversation.from_dict(
        {"messages": row["messages"], "label": row["label"], "regions": row["regions"]}
    )


def _parts(
    source: SampleSource, missing: list[int], part_size: int, workers: int
) -> Iterator[tuple[int, list[tuple[str, Sample]]]]:
    """Number and samples of each missing part; samples are named by their place in the source."""
    units = [
        range(number * part_size, min((number + 1) * part_size, len(source))) for number in missing
    ]
    order = [unit for part in units for unit in part]
    # One loader for all parts, so that workers only start once.
    made = iter(DataLoader(source, batch_size=None, sampler=order, num_workers=workers))
    with progress(title="forge, score, ask", unit="unit", total=len(order)) as bar:
        for number, part in zip(missing, units, strict=True):
            samples = []
            for unit in part:
                samples += [(f"{unit}-{i}", sample) for i, sample in enumerate(next(made))]
                bar.update()
            yield number, samples


def _row(
    place: str, sample: Sample, score: float | None, wording: dict[str, Any]
) -> dict[str, Any]:
    # Seeded by the place only: neither parts nor workers change the wordings.
    rng = random.Random(f"{wording['seed']}-{place}")
    conversation = build_conversation(
        sample.label,
        sample.regions,
        rng=rng,
        score=score if rng.random() < wording["kfd_results"] else None,
        follow_ups=_draw_follow_ups(rng, wording["follow_ups"], wording["max_turns"] - 1),
        task_description=rng.random() < wording["task_descriptions"],
        vary=wording["vary"],
    )
    return {
        "image": {"bytes": png_bytes(sample.image, sample.note), "path": None},
        "label": sample.label,
        "regions": list(sample.regions),
        "score": score,
        "messages": [message.to_dict() for message in conversation.messages],
        "identity": sample.identity,
    }


def _draw_follow_ups(rng: random.Random, share: float, most: int) -> int:
    return rng.randint(1, most) if rng.random() < share and most else 0


def _assemble(store: PartStore, output_dir: Path, settings: dict[str, Any]) -> None:
    """Assemble all parts in a folder and rename it into place."""
    # Next to the parts, so that remains of an interruption are found and removed.
    with atomic_path(store.folder / "assembled") as folder:
        write_rows(store.rows, FEATURES, folder)
        (folder / IMAGES).mkdir()

        def samples() -> Iterator[LlavaSample]:
            for index, row in enumerate(store.rows()):
                image = f"{IMAGES}/{index:06d}.png"
                (folder / image).write_bytes(row["image"]["bytes"])
                conversation = replace(conversation_of(row), image=image)
                sample = LlavaSample.from_conversation(f"{index:06d}", conversation)
                yield replace(sample, identity=row["identity"])

        write_llava_json(samples(), folder / CONVERSATIONS, folder)
        write_json(folder / SETTINGS, settings)
    with atomic_path(output_dir) as temporary:
        (store.folder / "assembled").rename(temporary)
    store.remove()
