"""Answers and likelihoods of any dialogue about a face, in batches."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from llava_forgery.hosts.transformers.chat import special_tokens
from llava_forgery.hosts.transformers.likelihood import first_token_p_yes
from llava_forgery.hosts.transformers.model import ForgeryVLM
from llava_forgery.hosts.transformers.prompts import candidate_ids, collate, encode
from llava_forgery.integrations.lmms_eval.prompts import cite_score, is_detection_prompt
from llava_forgery.kfd.detector import KFDOutput
from llava_forgery.qa.conversation import Conversation, Message
from llava_forgery.tensors import from_bytes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """A dialogue about one face that waits for an answer."""

    face: np.ndarray
    """(S, S, 3) uint8, S the detector's."""
    messages: tuple[Message, ...]
    """They end with the user's."""


@dataclass(frozen=True)
class Answer:
    """What host and detector say."""

    text: str
    score: float
    """The detector's, in [0, 1]."""
    p_yes: float | None
    """Probability of "Yes" against "No", in [0, 1]; None where the dialogue is not training's
    first question."""


@dataclass(frozen=True)
class Settings:
    """Generation arguments of a task; hashable, so that requests can be grouped by them."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float | None = None
    num_beams: int = 1
    until: tuple[str, ...] = ()
    """The answer is cut before the first of these."""
    report: bool = False
    """Whether P(yes) and score are written behind the answer."""

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
        """Read a task's ``generation_kwargs``; what is not known here is left out with a warning.

        ``do_sample: false`` outweighs a temperature, as it does in transformers.
        """
        values = {key: value for key, value in kwargs.items() if value is not None}
        until = values.pop("until", ())
        sample = values.pop("do_sample", True)
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            logger.warning("generation arguments that are not used: %s", ", ".join(unknown))
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
def answer(vlm: ForgeryVLM, questions: Sequence[Question], settings: Settings) -> list[Answer]:
    """Answer dialogues in one batch.

    A first question of training's form gets the detector's result written into it, once; the
    likelihoods of the first token then give P(yes), as in ``ForgeryPredictor``.

    Args:
        vlm: In eval mode.
        questions: About one face each.
        settings: For all of them.
    """
    detection, scores = _detect(vlm, questions)
    prompts = _prompts(questions, scores)
    batch = _batch(vlm, questions, prompts, padding_side="left")
    length = batch["input_ids"].shape[1]
    output = vlm.generate(
        detection=detection,
        **batch,
        **settings.for_generate(),
        return_dict_in_generate=True,
        output_logits=True,
    )
    # Beams stand together, and in the first step all of a sample's are alike.
    first = output.logits[0].float()[:: settings.num_beams]
    texts = vlm.processor.tokenizer.batch_decode(
        output.sequences[:, length:], skip_special_tokens=True
    )
    p_yes = _p_yes(vlm, questions, prompts, first)
    return [
        Answer(_cut(text.strip(), settings.until).strip(), score, p)
        for text, score, p in zip(texts, scores, p_yes, strict=True)
    ]


@torch.inference_mode()
def likelihood(
    vlm: ForgeryVLM, questions: Sequence[Question], continuations: Sequence[str]
) -> list[tuple[float, bool]]:
    """How likely given answers are.

    Args:
        vlm: In eval mode.
        questions: N dialogues.
        continuations: N answers to them; the token that ends the turn does not count.

    Returns:
        For each the mean negative log-likelihood of its tokens, and whether it is what the host
        would write. lmms-eval's base class speaks of a log-likelihood, but its models return this
        loss, and its tasks take the smallest.
    """
    detection, scores = _detect(vlm, questions)
    prompts = _prompts(questions, scores)
    said = [
        Conversation((*prompt.messages, Message("assistant", text.strip())), label=None)
        for prompt, text in zip(prompts, continuations, strict=True)
    ]
    heads = [_encode(vlm, *pair)["input_ids"] for pair in zip(questions, prompts, strict=True)]
    batch = _batch(vlm, questions, said, padding_side="right")
    labels = batch.pop("labels")
    tokenizer = vlm.processor.tokenizer
    ends = tokenizer.convert_tokens_to_ids(sorted(special_tokens(tokenizer)))
    labels = labels.masked_fill(torch.isin(labels, torch.tensor(ends, device=labels.device)), -100)
    log_p = vlm(detection=detection, **batch).logits[:, :-1].float().log_softmax(dim=-1)
    results = []
    for row, head in enumerate(heads):
        start = len(head)
        if not torch.equal(batch["input_ids"][row, :start].cpu(), head):
            raise ValueError(
                f"the answer {continuations[row]!r} does not continue the tokens of its prompt; "
                "this chat template gives no likelihoods"
            )
        places = torch.nonzero(labels[row, start:] >= 0)[:, 0] + start
        ids = labels[row, places]
        found = log_p[row, places - 1]
        loss = -found.gather(1, ids[:, None]).mean()
        results.append((float(loss), bool((found.argmax(dim=1) == ids).all())))
    return results


def _detect(vlm: ForgeryVLM, questions: Sequence[Question]) -> tuple[KFDOutput, list[float]]:
    detection = vlm.detect(torch.stack([from_bytes(question.face) for question in questions]))
    return detection, detection.score.tolist()


def _prompts(questions: Sequence[Question], scores: Sequence[float]) -> list[Conversation]:
    prompts = []
    for question, score in zip(questions, scores, strict=True):
        first, *others = question.messages
        cited = Message(first.role, cite_score(first.text, score))
        prompts.append(Conversation((cited, *others), label=None))
    return prompts


def _encode(
    vlm: ForgeryVLM, question: Question, conversation: Conversation
) -> dict[str, torch.Tensor]:
    return encode(
        conversation,
        vlm.processor,
        images=[Image.fromarray(question.face)],
        n_forgery_tokens=vlm.n_forgery,
    )


def _batch(
    vlm: ForgeryVLM,
    questions: Sequence[Question],
    conversations: Sequence[Conversation],
    padding_side: str,
) -> dict[str, torch.Tensor]:
    encoded = [_encode(vlm, *pair) for pair in zip(questions, conversations, strict=True)]
    batch = collate(encoded, vlm.processor.tokenizer.pad_token_id, padding_side)
    return {name: tensor.to(vlm.device) for name, tensor in batch.items()}


def _p_yes(
    vlm: ForgeryVLM,
    questions: Sequence[Question],
    prompts: Sequence[Conversation],
    first_logits: torch.Tensor,
) -> list[float | None]:
    """P(yes) of the questions that are training's first one, None for the others."""
    asked = [len(q.messages) == 1 and is_detection_prompt(q.messages[0].text) for q in questions]
    if not any(asked):
        return [None] * len(questions)
    candidates = candidate_ids(prompts[asked.index(True)], vlm.processor, vlm.n_forgery)
    values = first_token_p_yes(first_logits, candidates)
    return [value if known else None for value, known in zip(values, asked, strict=True)]


def _cut(text: str, until: Sequence[str]) -> str:
    for stop in until:
        text = text.split(stop)[0]
    return text
