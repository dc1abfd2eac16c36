"""A dialogue in one of LLaVA's conversation templates, with loss on the answers only.

The ids are those of LLaVA's own training (``preprocess`` and ``tokenizer_image_token``); the labels
are found from the position of each answer in the text. LLaVA counts tokens of the pieces instead,
and if the sum differs it masks the whole sample with a printed warning.

Source of the format: haotian-liu/LLaVA at c121f04, ``llava/train/train.py``, ``llava/mm_utils.py``.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from llava_forgery.constants import FORGERY_TOKEN, IGNORE_INDEX, IMAGE_TOKEN
from llava_forgery.hosts.llava.hooks import FORGERY_TOKEN_INDEX, IMAGE_TOKEN_INDEX
from llava_forgery.hosts.llava.prompts import TEMPLATE, forgery_prefix
from llava_forgery.hosts.placement import ALWAYS, PLACEHOLDERS

# Tokens that --mm_use_im_start_end puts around an image.
IM_START, IM_END = "<im_start>", "<im_end>"
MARKS = {IMAGE_TOKEN: IMAGE_TOKEN_INDEX, FORGERY_TOKEN: FORGERY_TOKEN_INDEX}


@dataclass(frozen=True)
class PromptStyle:
    """Prompt format of a checkpoint."""

    template: Any
    """One of LLaVA's ``conv_templates``."""
    n_forgery: int
    """n_f, number of placeholders after each image of the skill's samples."""
    im_start_end: bool = False
    """The checkpoint's ``mm_use_im_start_end``."""
    placement: str = PLACEHOLDERS
    """Whether placeholders are where the model inserts them itself (``always``), or where a prompt
    of the skill has them."""

    def __post_init__(self) -> None:
        if self.template.sep_style.name == "PLAIN":
            raise ValueError(
                "--version plain has no questions and belongs to LLaVA's first stage; give the "
                "version that the checkpoint was tuned with, such as v1"
            )
        if self.n_forgery < 1:
            raise ValueError(f"n_forgery must be at least 1, got {self.n_forgery}")


def encode_turns(
    turns: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    style: PromptStyle,
    *,
    skill: bool,
    max_length: int,
    image_tokens: int = 1,
) -> dict[str, torch.Tensor]:
    """Tokens and labels of one dialogue.

    Args:
        turns: Question, answer, question, answer ...; ``<image>`` at the images.
        tokenizer: Fast tokenizer of the checkpoint.
        style: Template and placeholders.
        skill: Whether placeholders follow the images.
        max_length: Maximum number of tokens, an image counted as one; the rest is cut, as in LLaVA.
        image_tokens: Minimum number of tokens that the model makes from an image. It cuts at
            ``max_length`` again after inserting them, which here only decides what is left to
            learn from.

    Returns:
        ``input_ids`` (T,) with -200 for each image and -201 for each placeholder, and ``labels``
        (T,): the ids of each answer and of the mark that ends it, -100 everywhere else.

    Raises:
        ValueError: The last question has no answer, no token is left to learn from, placeholders
            would be cut, or the tokenizer cannot separate the answers from the adjacent text.
    """
    if not turns or len(turns) % 2:
        raise ValueError(f"expected a question and an answer each, got {len(turns)} turns")
    text, spans = render_turns(turns, style, skill=skill)
    sample = label_spans(text, spans, tokenizer)
    if FORGERY_TOKEN_INDEX in sample["input_ids"][max_length : max_length + 1]:
        raise ValueError(
            f"the {max_length} tokens of --model_max_length end inside the forgery embeddings of "
            "an image; raise it or shorten the dialogue"
        )
    ids, labels = (tensor[:max_length] for tensor in sample.values())
    before = torch.cumsum(ids == IMAGE_TOKEN_INDEX, dim=0) * (image_tokens - 1)
    seen = torch.arange(len(ids)) + before < max_length
    if bool((labels[seen] == IGNORE_INDEX).all()):
        raise ValueError(
            f"no token is left to learn from: the first answer begins after the {max_length} "
            "tokens of --model_max_length; raise it or shorten the question"
        )
    return {"input_ids": ids, "labels": labels}


def label_spans(
    text: str, spans: Sequence[tuple[int, int]], tokenizer: PreTrainedTokenizerBase
) -> dict[str, torch.Tensor]:
    """``input_ids`` and ``labels`` (T,) of a text, of which the spans (start, end) are supervised.

    Raises:
        ValueError: As for :func:`encode_turns`.
    """
    ids, offsets = tokenise(text, tokenizer)
    labels = torch.full((len(ids),), IGNORE_INDEX)
    for start, end in spans:
        for i in _tokens_between(start, end, text, offsets):
            if ids[i] not in MARKS.values():
                labels[i] = ids[i]
    return {"input_ids": torch.tensor(ids), "labels": labels}


def render_turns(
    turns: Sequence[str], style: PromptStyle, *, skill: bool
) -> tuple[str, list[tuple[int, int]]]:
    """The text in the template, and (start, end) of its supervised spans.

    A span extends from the end of the prompt before an answer to the end of the mark that ends its
    turn.

    Args:
        turns: Question, answer ...; a question at the end gets the head of its answer.
        style: Template and placeholders.
        skill: Whether placeholders follow the images.

    Raises:
        ValueError: There is no turn, or the template rewrites earlier turns when later ones are
            added.
    """
    if not turns:
        raise ValueError("expected a question, got no turn")
    conversation = style.template.copy()
    conversation.messages = []
    spans, whole = [], ""
    for question, answer in zip_longest(turns[::2], turns[1::2]):
        conversation.append_message(conversation.roles[0], _place_images(question, style, skill))
        conversation.append_message(conversation.roles[1], None)
        head = conversation.get_prompt()
        if answer is None:
            whole = head
            break
        # Images in answers are not moved.
        conversation.messages[-1][1] = answer
        longer = conversation.get_prompt()
        if not (head.startswith(whole) and longer.startswith(head)):
            raise ValueError(
                f"the template {style.template.version!r} does not put an answer after its "
                f"prompt {head[-40:]!r}: labels cannot be placed"
            )
        spans.append((len(head), len(longer)))
        whole = longer
    return whole, spans


def tokenise(
    text: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids as from ``tokenizer_forgery_token``, and the position of each in the text.

    Raises:
        ValueError: The tokenizer is slow and does not give positions, or it adds an end to texts.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} does not give the positions of tokens in the text; load "
            "the fast tokenizer"
        )
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    begins, start = False, 0
    marks = "|".join(map(re.escape, MARKS))
    for i, piece in enumerate(re.split(f"((?:{marks})+)", text)):
        if i % 2:
            for mark in re.findall(marks, piece):
                ids.append(MARKS[mark])
                offsets.append((start, start + len(mark)))
                start += len(mark)
            continue
        encoded = tokenizer(piece, return_offsets_mapping=True)
        found = list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))
        if found and found[-1] == (tokenizer.eos_token_id, (0, 0)):
            raise ValueError(
                f"the tokenizer puts {tokenizer.eos_token} after every text; load it with "
                "add_eos_token=False"
            )
        # Each piece is tokenised as a separate text, but only the first keeps its beginning.
        if not i:
            begins = bool(found) and found[0][0] == tokenizer.bos_token_id
        elif begins:
            found = found[1:]
        ids += [token for token, _ in found]
        offsets += [(start + a, start + b) for _, (a, b) in found]
        start += len(piece)
    return ids, offsets


def _place_images(question: str, style: PromptStyle, skill: bool) -> str:
    """A question as in LLaVA's training, with placeholders for the skill."""
    count = question.count(IMAGE_TOKEN)
    if not count:
        return question
    version = style.template.version
    tags = version == TEMPLATE
    always = style.placement == ALWAYS
    if skill and not always:
        shown = forgery_prefix(style.n_forgery, tags=tags)
    else:
        shown = f"<Img>{IMAGE_TOKEN}</Img> " if tags else f"{IMAGE_TOKEN}\n"
    image = f"{IM_START}{IMAGE_TOKEN}{IM_END}" if style.im_start_end else IMAGE_TOKEN
    if "mmtag" in version:
        image = f"<Image>{image}</Image>"
    shown = shown.replace(IMAGE_TOKEN, image)
    if skill and always:
        # Where the model inserts them: directly after the image, before a closing tag around it.
        shown = shown.replace(IMAGE_TOKEN, IMAGE_TOKEN + FORGERY_TOKEN * style.n_forgery)
    if count == 1:
        # LLaVA shows a single image first, wherever its token was.
        return (shown + question.replace(IMAGE_TOKEN, "").strip()).strip()
    return re.sub(f"{re.escape(IMAGE_TOKEN)}\\s?", lambda _: shown, question)


def _tokens_between(
    start: int, end: int, text: str, offsets: Sequence[tuple[int, int]]
) -> list[int]:
    """Indices of the tokens of ``text[start:end]``."""
    found = [i for i, (a, b) in enumerate(offsets) if b > start and a < end]
    for i in found[:1] + found[-1:]:
        a, b = offsets[i]
        if text[a:start].strip() or text[end:b].strip():
            raise ValueError(
                f"the token {text[a:b]!r} belongs to an answer and to the adjacent text, in "
                f"{text[max(a - 20, 0) : b + 20]!r}: this tokenizer cannot separate the answers "
                "of this template"
            )
    return found
