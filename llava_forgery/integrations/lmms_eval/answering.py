"""Answers and likelihoods of any dialogue about a face, in batches."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from llava_forgery.hosts.base import ForgeryModel
from llava_forgery.hosts.likelihood import answer_likelihoods
from llava_forgery.infer.answering import write_answers
from llava_forgery.integrations.lmms_eval.prompts import cite_score, is_detection_prompt
from llava_forgery.kfd.detector import KFDOutput
from llava_forgery.qa.conversation import Conversation, Message
from llava_forgery.tensors import from_bytes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """A dialogue about one face that awaits an answer."""

    face: np.ndarray
    """(S, S, 3) uint8, with the detector's size S."""
    messages: tuple[Message, ...]
    """Messages, the last one from the user."""


@dataclass(frozen=True)
class Answer:
    """Answer of the host and score of the detector."""

    text: str
    score: float
    """Score of the detector, in [0, 1]."""
    p_yes: float | None
    """Probability of "Yes" against "No", in [0, 1]; None unless the dialogue is the first question
    of training."""


@dataclass(frozen=True)
class Settings:
    """Generation arguments of a task; hashable, so that requests can be grouped by them."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0 for greedy decoding."""
    top_p: float | None = None
    num_beams: int = 1
    until: tuple[str, ...] = ()
    """Strings before which the answer is cut."""
    report: bool = False
    """Whether to append P(yes) and score to the answer."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.num_beams < 1:
            raise ValueError(
                "max_new_tokens and num_beams must be at least 1, got "
                f"{self.max_new_tokens} and {self.num_beams}"
            )
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must not be negative, got {self.temperature}")

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> "Settings":
        """Parse a task's ``generation_kwargs``; unknown ones are ignored with a warning.

        ``do_sample: false`` overrides a temperature, as in transformers.
        """
        values = {key: value for key, value in kwargs.items() if value is not None}
        until = values.pop("until", ())
        sample = values.pop("do_sample", True)
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            logger.warning("generation arguments that are ignored: %s", ", ".join(unknown))
        values = {key: value for key, value in values.items() if key not in unknown}
        if not sample:
            values["temperature"] = 0.0
        until = (until,) if isinstance(until, str) else until
        return cls(**values, until=tuple(stop for stop in until if stop))

    def for_generate(self) -> dict[str, Any]:
        """Arguments of transformers' ``generate``."""
        sampling = {"do_sample": False}
        if self.temperature > 0:
            sampling = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}
        return {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            **{key: value for key, value in sampling.items() if value is not None},
        }


@torch.inference_mode()
def answer(vlm: ForgeryModel, questions: Sequence[Question], settings: Settings) -> list[Answer]:
    """Answer dialogues in one batch.

    The detector's result is inserted, once, into a first question of training's form; the
    likelihoods of the first token then give P(yes), as in ``ForgeryPredictor``.

    Args:
        vlm: Host with the skill, in eval mode.
        questions: Questions, each about one face.
        settings: Settings for all of them.
    """
    detection, prompts, images = _read(vlm, questions)
    asked = [len(q.messages) == 1 and is_detection_prompt(q.messages[0].text) for q in questions]
    written = write_answers(
        vlm, prompts, images, detection, yes_or_no=asked, **settings.for_generate()
    )
    return [
        Answer(_cut(said.text, settings.until).strip(), score, said.p_yes)
        for said, score in zip(written, detection.score.tolist(), strict=True)
    ]


def likelihood(
    vlm: ForgeryModel, questions: Sequence[Question], continuations: Sequence[str]
) -> list[tuple[float, bool]]:
    """Loss of given answers.

    Args:
        vlm: Host with the skill, in eval mode.
        questions: N dialogues.
        continuations: N answers to them; the end of the turn does not count.

    Returns:
        For each the mean negative log-likelihood of its tokens, and whether the host would generate
        it. lmms-eval's base class documents a log-likelihood, but its models return this loss, and
        its tasks choose the smallest.
    """
    detection, prompts, images = _read(vlm, questions)
    answers = [text.strip() for text in continuations]
    found = answer_likelihoods(vlm, prompts, answers, images, detection, include_end=False)
    return [(-one.log_likelihood / one.tokens, one.greedy) for one in found]


@torch.inference_mode()
def _read(
    vlm: ForgeryModel, questions: Sequence[Question]
) -> tuple[KFDOutput, list[Conversation], list[Image.Image]]:
    """Detections, prompts that cite them, and images."""
    detection = vlm.detect(torch.stack([from_bytes(question.face) for question in questions]))
    images = [Image.fromarray(question.face) for question in questions]
    return detection, _prompts(questions, detection.score.tolist()), images


def _prompts(questions: Sequence[Question], scores: Sequence[float]) -> list[Conversation]:
    prompts = []
    for question, score in zip(questions, scores, strict=True):
        first, *others = question.messages
        cited = Message(first.role, cite_score(first.text, score))
        prompts.append(Conversation((cited, *others), label=None))
    return prompts


def _cut(text: str, until: Sequence[str]) -> str:
    for stop in until:
        text = text.split(stop)[0]
    return text
