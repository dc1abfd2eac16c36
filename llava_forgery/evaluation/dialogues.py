"""How often the answers of a dialogue contradict each other, on people who were not in training.

Three questions are asked about each face, one after another: is it a deepfake, where is the
artifact, which parts are untouched. :mod:`llava_forgery.evaluation.turns` decides which answers
agree.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from llava_forgery.constants import FAKE, REAL
from llava_forgery.data.samples import SimulatedSamples
from llava_forgery.evaluation.leaks import people_in_training
from llava_forgery.evaluation.metrics import accuracy, agreement, auc, region_scores
from llava_forgery.evaluation.records import KeptRecords
from llava_forgery.evaluation.turns import contradictions
from llava_forgery.hosts.base import ForgeryModel
from llava_forgery.infer.answering import write_answers
from llava_forgery.infer.dialogue import NOTHING_SAID
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.kfd.calibration import Thresholds
from llava_forgery.qa import templates
from llava_forgery.qa.answers import parse_answer
from llava_forgery.qa.build import build_prompt
from llava_forgery.qa.conversation import Conversation, Message
from llava_forgery.simulate.pairs import FacePairs
from llava_forgery.tensors import from_bytes, to_bytes

FOLLOW_UPS = (templates.WHERE.questions[0], templates.UNTOUCHED.questions[0])


class HeldDialogue(NamedTuple):
    """Scores and answers of a dialogue about one face."""

    score: float
    """The detector's score, in [0, 1]."""
    p_yes: float
    """P(yes) of the first answer, in [0, 1]."""
    answers: tuple[str, ...]
    """Answers to the first question and to ``FOLLOW_UPS``."""


@torch.inference_mode()
def hold_dialogues(
    vlm: ForgeryModel, faces: Sequence[np.ndarray], max_new_tokens: int = 64
) -> list[HeldDialogue]:
    """Ask about faces in one batch; each answer is part of the prompt of the next question.

    Args:
        vlm: Host with the skill, in eval mode.
        faces: Images, (S, S, 3) uint8 each.
        max_new_tokens: Maximum number of tokens of an answer.
    """
    detection = vlm.detect(torch.stack([from_bytes(face) for face in faces]))
    scores = detection.score.tolist()
    images = [Image.fromarray(face) for face in faces]
    prompts = [build_prompt(score) for score in scores]
    first = write_answers(vlm, prompts, images, detection, max_new_tokens=max_new_tokens)
    said = [[answer.text or NOTHING_SAID] for answer in first]
    for question in FOLLOW_UPS:
        prompts = [
            Conversation(
                (*prompt.messages, Message("assistant", answers[-1]), Message("user", question)),
                label=None,
            )
            for prompt, answers in zip(prompts, said, strict=True)
        ]
        written = write_answers(
            vlm,
            prompts,
            images,
            detection,
            yes_or_no=[False] * len(faces),
            max_new_tokens=max_new_tokens,
        )
        for answers, answer in zip(said, written, strict=True):
            answers.append(answer.text or NOTHING_SAID)
    return [
        HeldDialogue(score, answer.p_yes, tuple(answers))
        for score, answer, answers in zip(scores, first, said, strict=True)
    ]


def evaluate_dialogues(
    predictor: ForgeryPredictor,
    pairs: FacePairs,
    output_dir: str | PathLike,
    *,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Hold a dialogue about the forged and the pristine image of each pair.

    Args:
        predictor: Predictor with a host.
        pairs: Pairs of people who were not in training.
        output_dir: Receives ``records.jsonl`` and ``metrics.json``. An interrupted call resumes if
            pairs and weights are the same.
        batch_size: Number of pairs asked about at once.

    Returns:
        The counts ``dialogues``, ``contradicting`` (those with a contradiction) and, by kind of
        contradiction, ``place`` and ``untouched``. For the first answers ``auc`` of P(yes),
        ``accuracy``, ``unparsed`` and ``agreement`` with the score at the detector's threshold;
        ``regions_f1`` of those about fakes; ``kfd_auc``.

    Raises:
        ValueError: An interrupted call had different settings, or there is no language model.
    """
    if predictor.vlm is None:
        raise ValueError("a detector without a host holds no dialogues; give a forgery adapter")
    output_dir = Path(output_dir)
    settings = {
        "pairs": SimulatedSamples(pairs).describe(),
        "max_new_tokens": predictor.max_new_tokens,
    }
    with KeptRecords(output_dir, settings, predictor.vlm, batch_size, each=2) as kept:
        for places in kept.batches(len(pairs), "dialogues"):
            drawn = [pairs[place] for place in places]
            faces = [to_bytes(face) for pair in drawn for face in (pair.forged, pair.pristine)]
            held = hold_dialogues(predictor.vlm, faces, predictor.max_new_tokens)
            truth = [
                (pairs.faces[pair.row]["identity"], label, list(pair.regions) if label else [])
                for pair in drawn
                for label in (FAKE, REAL)
            ]
            kept.add([_record(*known, one) for known, one in zip(truth, held, strict=True)])
        people = (record["identity"] for record in kept.records)
        metrics = {
            **summarise_dialogues(kept.records, predictor.kfd.thresholds),
            "people_in_training": people_in_training(predictor.vlm, people),
        }
        kept.finish(metrics)
    return metrics


def summarise_dialogues(
    records: Sequence[dict[str, Any]], thresholds: Thresholds | None = None
) -> dict[str, Any]:
    """The figures of :func:`evaluate_dialogues` from its records."""
    thresholds = thresholds or Thresholds()
    labels = [record["label"] for record in records]
    first = [parse_answer(record["answers"][0]) for record in records]
    found = [contradictions(*record["answers"]) for record in records]
    fakes = [i for i, label in enumerate(labels) if label == FAKE]
    p_yes = [record["p_yes"] for record in records]
    scores = [record["score"] for record in records]
    return {
        "dialogues": len(records),
        "contradicting": sum(map(bool, found)),
        **{kind: sum(kind in kinds for kinds in found) for kind in ("place", "untouched")},
        "auc": auc(labels, p_yes),
        "accuracy": accuracy(labels, [answer.label for answer in first]),
        "unparsed": sum(answer.label is None for answer in first),
        "agreement": agreement(scores, p_yes, thresholds.fake),
        "regions_f1": region_scores(
            [first[i].regions for i in fakes], [tuple(records[i]["regions"]) for i in fakes]
        ).f1,
        "kfd_auc": auc(labels, scores),
    }


def _record(identity: str, label: int, regions: list[str], held: HeldDialogue) -> dict[str, Any]:
    return {
        "identity": identity,
        "label": label,
        "regions": regions,
        "score": held.score,
        "p_yes": held.p_yes,
        "answers": list(held.answers),
    }
