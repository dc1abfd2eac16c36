"""How likely a host is to give each of several answers, read off one forward pass.

``ForgeryPredictor`` compares the first tokens of "Yes" and "No" in the pass that goes on to write
the answer: with :func:`llava_forgery.hosts.transformers.prompts.candidate_ids` having shown that
every answer begins with one of the two, that is the likelihood of all answers that begin so. Where
an answer is longer than a token ("real" against "fake" in many vocabularies, whole sentences), the
functions here score it whole.

Source: AntifakePrompt (official code at 957c1e1) ranks its two answers by likelihood as well.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from llava_forgery.constants import IGNORE_INDEX
from llava_forgery.hosts.transformers.chat import Processor, special_tokens, tokenizer_of
from llava_forgery.hosts.transformers.model import ForgeryVLM
from llava_forgery.hosts.transformers.prompts import collate, encode
from llava_forgery.kfd.detector import KFDOutput
from llava_forgery.qa.conversation import Conversation, Message


@torch.inference_mode()
def answer_log_likelihoods(
    model: nn.Module,
    processor: Processor,
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
        model: A host with the skill, or any bare transformers model that gives ``logits``; in eval
            mode.
        processor: The host's.
        prompt: A conversation that ends with a question.
        answers: Candidates, not empty.
        image: What the prompt is about; None for a prompt without one.
        detection: The detector's output for this one image (batch of 1), for a model with the
            skill, which has its placeholders in the prompt.
        include_end: Count the token that ends the turn. Without it "No" also stands for all
            answers that begin with it; with it each candidate is complete.
        per_token: Mean over the tokens instead of the sum: short answers are no longer favoured.

    Returns:
        (K,) float32, natural logarithms.

    Raises:
        ValueError: No candidate, a prompt that is none, or a detection that is missing, not wanted
            or of several images.
    """
    if isinstance(answers, str) or not answers:
        raise ValueError(f"expected a non-empty list of candidate answers, got {answers!r}")
    if not prompt.is_prompt:
        raise ValueError("expected a conversation that ends with a question")
    if model.training:
        raise ValueError("call eval() on the model first: dropout would change the likelihoods")
    skilled = isinstance(model, ForgeryVLM)
    if skilled != (detection is not None):
        raise ValueError(
            "a model with the skill needs the detection of the image"
            if skilled
            else "a bare model takes no detection"
        )
    samples = [
        encode(
            Conversation((*prompt.messages, Message("assistant", answer)), label=None),
            processor,
            images=None if image is None else [image],
            n_forgery_tokens=model.n_forgery if skilled else 0,
        )
        for answer in answers
    ]
    tokenizer = tokenizer_of(processor)
    ends = {tokenizer.convert_tokens_to_ids(token) for token in special_tokens(tokenizer)}
    # Padded behind, so that every token has the position that it has alone.
    batch = collate(samples, tokenizer.pad_token_id, padding_side="right")
    labels = _answer_labels(batch.pop("labels"), include_end, ends)
    inputs: dict[str, Any] = {name: tensor.to(_device(model)) for name, tensor in batch.items()}
    if detection is not None:
        inputs["detection"] = _repeat(detection, len(answers))
    found = label_log_likelihoods(model(**inputs).logits[:, :-1], labels[:, 1:])
    total = found.sum(dim=1).cpu()
    return total / (labels != IGNORE_INDEX).sum(dim=1) if per_token else total


def label_log_likelihoods(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-likelihood of each label.

    Args:
        logits: (B, T, V), those that predict the labels.
        labels: (B, T), -100 where nothing is asked.

    Returns:
        (B, T) float32, natural logarithms, 0 where nothing is asked.
    """
    return -F.cross_entropy(
        logits.transpose(1, 2).float(),
        labels.to(logits.device),
        ignore_index=IGNORE_INDEX,
        reduction="none",
    )


def first_token_p_yes(logits: torch.Tensor, candidates: tuple[int, int]) -> list[float]:
    """P(yes) against "No", in [0, 1], where each answer is told by its first token.

    Args:
        logits: (B, V) of the answers' first tokens.
        candidates: The two tokens, "Yes" first.

    Raises:
        ValueError: One is not finite.
    """
    p_yes = logits[:, list(candidates)].float().softmax(dim=1)[:, 0]
    if not bool(p_yes.isfinite().all()):
        raise ValueError(
            "the language model's P(yes) is not finite. That is not the picture's fault: the "
            "host's weights are damaged, or too large for float16; load it in bfloat16 or float32"
        )
    return p_yes.tolist()


def answer_probabilities(*arguments: Any, **options: Any) -> torch.Tensor:
    """(K,) probabilities of the candidates against each other, which sum to 1.

    Arguments and errors as :func:`answer_log_likelihoods`.
    """
    return answer_log_likelihoods(*arguments, **options).softmax(dim=0)


def _answer_labels(labels: torch.Tensor, include_end: bool, ends: set[int]) -> torch.Tensor:
    """(K, T): the ids of the last answer's tokens, -100 elsewhere."""
    labels = labels.clone()
    for row in labels:
        places = (row != IGNORE_INDEX).nonzero()[:, 0]
        # Earlier answers of the dialogue stand before a gap of questions.
        gaps = (places.diff() > 1).nonzero()[:, 0]
        first = int(places[gaps[-1] + 1]) if len(gaps) else int(places[0])
        row[:first] = IGNORE_INDEX
        if not include_end:
            row[torch.isin(row, torch.tensor(sorted(ends)))] = IGNORE_INDEX
    return labels


def _repeat(detection: KFDOutput, times: int) -> KFDOutput:
    if len(detection.class_logits) != 1:
        raise ValueError(f"expected the detection of one image, got {len(detection.class_logits)}")
    tensors = {f.name: getattr(detection, f.name) for f in fields(detection)}
    return KFDOutput(**{name: t.expand(times, *t.shape[1:]) for name, t in tensors.items()})


def _device(model: nn.Module) -> torch.device:
    return getattr(model, "device", None) or next(model.parameters()).device
