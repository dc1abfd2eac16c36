"""Likelihoods of several answers of a host.

P(yes) compares the first tokens of "Yes" and "No" in the pass that also generates the answer
(:func:`first_token_p_yes`): the likelihood of all answers with that beginning. If answers are
longer than a token ("real" against "fake" in many vocabularies, whole sentences),
:func:`answer_log_likelihoods` scores them as a whole.

Source: AntifakePrompt (official code at 957c1e1) ranks its two answers by likelihood as well.
"""

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from llava_forgery.constants import IGNORE_INDEX
from llava_forgery.hosts.base import CandidateIds, ForgeryModel
from llava_forgery.kfd.detector import KFDOutput
from llava_forgery.qa.conversation import Conversation, Message
from llava_forgery.tensors import to_device


class AnswerLikelihood(NamedTuple):
    """Likelihood of one answer."""

    log_likelihood: float
    """Sum over its tokens, natural logarithm."""
    tokens: int
    greedy: bool
    """Whether each token is the most likely one at its position."""


def first_token_p_yes(logits: torch.Tensor, candidates: CandidateIds) -> list[float]:
    """P(yes) against "No", in [0, 1], from the first token of the answer.

    Args:
        logits: (B, V) logits of the answers' first tokens.
        candidates: The two tokens.

    Raises:
        ValueError: A value is not finite.
    """
    p_yes = logits[:, [candidates.yes, candidates.no]].float().softmax(dim=1)[:, 0]
    if not bool(p_yes.isfinite().all()):
        raise ValueError(
            "the language model's P(yes) is not finite. That is not the picture's fault: the "
            "host's weights are damaged, or too large for float16; load it in bfloat16 or float32"
        )
    return p_yes.tolist()


def tell_apart(
    head: Sequence[int], continued: Callable[[str], list[int]], special: Collection[int] = ()
) -> CandidateIds:
    """The tokens that tell "Yes" from "No", however either continues.

    Some tokenizers begin both words with the same token, such as a space, which is then shared.

    Args:
        head: Ids of the prompt.
        continued: Returns the ids of the prompt with an answer.
        special: Tokens with which no answer may begin.

    Raises:
        ValueError: The answers do not continue the prompt's tokens, or begin alike.
    """
    found = []
    for word in ("Yes", "No"):
        said = []
        for answer in (word, f"{word}.", f"{word}, it"):
            ids = continued(answer)
            if ids[: len(head)] != list(head) or len(ids) == len(head):
                raise ValueError(
                    f"the answer {answer!r} does not continue the tokens of the prompt: they end "
                    f"with {list(head[-5:])}, with the answer with {ids[-8:]}"
                )
            said.append(ids[len(head) :])
        found.append(_common(said))
    shared = _common(found)
    rests = [ids[len(shared) :] for ids in found]
    if not all(rests) or {*shared, rests[0][0], rests[1][0]} & set(special):
        raise ValueError(
            f"Yes and No cannot be told apart by ordinary tokens that they begin with: {found}"
        )
    return CandidateIds(tuple(shared), rests[0][0], rests[1][0])


def _common(sequences: Sequence[Sequence[int]]) -> list[int]:
    """Common beginning of all sequences."""
    shared = []
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        shared.append(tokens[0])
    return shared


def labelled_logits(
    model: Callable[..., Any], host: nn.Module, labels: torch.Tensor, **inputs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """:meth:`ForgeryModel.labelled_logits` of what calls a host of transformers.

    Before the first answer stand the image and the question: with a large vocabulary their logits
    cost a fifth of a small host's training step, and are left out where the host can.

    Args:
        model: Called with ``inputs``.
        host: What it calls, without peft's wrapper.
        labels: (B, T), -100 for tokens without a label.
        inputs: Of the model.

    Returns:
        (B, K, V) and (B, K) on the logits' device.
    """
    # Nothing predicts the first token.
    first = 1 + int((labels[:, 1:] != IGNORE_INDEX).any(dim=0).nonzero()[0])
    labels = labels[:, first:]
    # Each token is predicted by the logits of the place before it.
    kept = labels.shape[1] + 1
    if "logits_to_keep" in inspect.signature(host.forward).parameters:
        inputs["logits_to_keep"] = kept
    logits = model(**inputs).logits[:, -kept:-1]
    return logits, labels.to(logits.device)


def label_log_likelihoods(
    model: ForgeryModel, labels: torch.Tensor, **inputs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-likelihood of each label, and whether it is the most likely token.

    Args:
        model: Model in eval or training mode.
        labels: (B, T), -100 for tokens without a label.
        inputs: Inputs of the model.

    Returns:
        (B, K) float32, natural logarithms, 0 for tokens without a label; and (B, K) bool, True
        there. K counts from the first label on.
    """
    logits, labels = model.labelled_logits(labels, **inputs)
    asked = labels != IGNORE_INDEX
    found = -F.cross_entropy(
        logits.transpose(1, 2).float(), labels, ignore_index=IGNORE_INDEX, reduction="none"
    )
    return found, (logits.argmax(dim=2) == labels) | ~asked


@torch.inference_mode()
def answer_likelihoods(
    model: ForgeryModel,
    prompts: Sequence[Conversation],
    answers: Sequence[str],
    images: Sequence[Image.Image | None],
    detection: KFDOutput | None = None,
    *,
    include_end: bool = True,
) -> list[AnswerLikelihood]:
    """Likelihoods of whole answers to their own prompts, in one batch.

    Args:
        model: Model in eval mode.
        prompts: N conversations that end with a question.
        answers: N answers.
        images: Image of each prompt; None for one without a picture.
        detection: The detector's output for the N images, for a model with the skill.
        include_end: Whether to include the end of the turn. Without it "No" also stands for all
            answers that begin with it; with it each answer is complete.

    Raises:
        ValueError: A conversation is not a prompt, the model is in training mode, or the detection
            is missing or superfluous.
    """
    if not all(prompt.is_prompt for prompt in prompts):
        raise ValueError("expected a conversation that ends with a question")
    if model.training:
        raise ValueError("call eval() on the model first: dropout would change the likelihoods")
    if bool(model.n_forgery) != (detection is not None):
        raise ValueError(
            "a model with the skill needs the detection of the image"
            if model.n_forgery
            else "a host without the skill takes no detection"
        )
    samples = [
        model.prompts.encode(
            Conversation((*prompt.messages, Message("assistant", answer)), label=None),
            None if image is None else [image],
            label_end=include_end,
        )
        for prompt, answer, image in zip(prompts, answers, images, strict=True)
    ]
    # Padded on the right, so that every token has the same position as without a batch.
    batch = to_device(model.prompts.collate(samples, padding_side="right"), model.device)
    labels = last_answers(batch.pop("labels"))
    if detection is not None:
        batch["detection"] = detection
    found, greedy = label_log_likelihoods(model, labels, **batch)
    counts = (labels != IGNORE_INDEX).sum(dim=1)
    rows = zip(found.sum(dim=1).tolist(), counts.tolist(), greedy.all(dim=1).tolist(), strict=True)
    return [AnswerLikelihood(*row) for row in rows]


def answer_log_likelihoods(
    model: ForgeryModel,
    prompt: Conversation,
    answers: Sequence[str],
    image: Image.Image | None = None,
    *,
    detection: KFDOutput | None = None,
    include_end: bool = True,
    per_token: bool = False,
) -> torch.Tensor:
    """Log-likelihoods of whole answers to one prompt, all in one batch.

    Args:
        model: Host with the skill, or a :class:`~llava_forgery.hosts.baseline.BaselineVLM`.
        prompt: Conversation that ends with a question.
        answers: Candidate answers, not empty.
        image: Image of the prompt; None for a prompt without one.
        detection: The detector's output for this one image (batch of 1), for a model with the
            skill.
        include_end: As for :func:`answer_likelihoods`.
        per_token: Whether to take the mean over the tokens instead of the sum, so that short
            answers are not favoured.

    Returns:
        (K,) float32, natural logarithms.

    Raises:
        ValueError: As for :func:`answer_likelihoods`; or there are no candidates, or the detection
            is of several images.
    """
    if isinstance(answers, str) or not answers:
        raise ValueError(f"expected a non-empty list of candidate answers, got {answers!r}")
    count = len(answers)
    if detection is not None:
        if len(detection.class_logits) != 1:
            raise ValueError(
                f"expected the detection of one image, got {len(detection.class_logits)}"
            )
        detection = detection.select([0] * count)
    found = answer_likelihoods(
        model, [prompt] * count, answers, [image] * count, detection, include_end=include_end
    )
    return torch.tensor([f.log_likelihood / (f.tokens if per_token else 1) for f in found])


def answer_probabilities(*arguments: Any, **options: Any) -> torch.Tensor:
    """(K,) probabilities of the candidates relative to each other, which sum to 1.

    Arguments and errors as for :func:`answer_log_likelihoods`.
    """
    return answer_log_likelihoods(*arguments, **options).softmax(dim=0)


def last_answers(labels: torch.Tensor) -> torch.Tensor:
    """(N, T): only the labels of the last answer of each dialogue."""
    labels = labels.clone()
    for row in labels:
        places = (row != IGNORE_INDEX).nonzero()[:, 0]
        gaps = (places.diff() > 1).nonzero()[:, 0]
        if len(gaps):
            row[: int(places[gaps[-1] + 1])] = IGNORE_INDEX
    return labels
