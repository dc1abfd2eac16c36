"""Prompts for models of the ``llava`` package: placeholders, tokens and the paper's template."""

import re
from typing import Any

import torch

from llava_forgery.constants import FORGERY_TOKEN, IMAGE_TOKEN
from llava_forgery.hosts.llava.hooks import FORGERY_TOKEN_INDEX, IMAGE_TOKEN_INDEX

# Name of the paper's format among LLaVA's conv_templates.
TEMPLATE = "llava_forgery"


def paper_template() -> Any:
    """LVLM-DFD's format, ``###Human: <Img>...</Img> ... ###Assistant:``, as LLaVA's record.

    It is the ``v0`` style without its sample dialogue; the system text is the same.
    """
    from llava.conversation import conv_templates

    template = conv_templates["llava_v0"].copy()
    template.version = TEMPLATE
    return template


def forgery_prefix(n_forgery: int, n_images: int = 1, tags: bool = False) -> str:
    """Prefix of the first question.

    Args:
        n_forgery: n_f, number of placeholders after each image.
        n_images: Number of images of the prompt.
        tags: Whether each image is enclosed in ``<Img>...</Img>``, as in the paper's format.

    Returns:
        For each image ``<image>``, a line break, its ``<forgery>`` tokens and a line break; with
        tags ``<Img><image></Img>`` directly followed by the tokens.
    """
    if n_forgery < 1 or n_images < 1:
        raise ValueError(
            f"expected at least one placeholder and one image, got {n_forgery} and {n_images}"
        )
    placeholders = FORGERY_TOKEN * n_forgery
    if tags:
        return f"<Img>{IMAGE_TOKEN}</Img>{placeholders} " * n_images
    return f"{IMAGE_TOKEN}\n{placeholders}\n" * n_images


def tokenizer_forgery_token(
    prompt: str,
    tokenizer: Any,
    image_token_index: int = IMAGE_TOKEN_INDEX,
    return_tensors: str | None = None,
) -> list[int] | torch.Tensor:
    """LLaVA's ``tokenizer_image_token`` for prompts with ``<forgery>`` placeholders.

    A prompt without any gives the same ids. A run of placeholders splits the text like ``<image>``:
    the pieces are tokenised separately, and only the first has begin-of-text tokens.

    Args:
        prompt: Text of the prompt.
        tokenizer: Tokenizer of LLaVA.
        image_token_index: Id for ``<image>``.
        return_tensors: "pt" for a tensor (T,), None for a list.

    Raises:
        ValueError: ``return_tensors`` is neither None nor "pt".
    """
    if return_tensors not in (None, "pt"):
        raise ValueError(f"return_tensors must be None or 'pt', got {return_tensors!r}")
    marks = {IMAGE_TOKEN: image_token_index, FORGERY_TOKEN: FORGERY_TOKEN_INDEX}
    pieces = re.split(f"({re.escape(IMAGE_TOKEN)}|(?:{re.escape(FORGERY_TOKEN)})+)", prompt)
    chunks = [tokenizer(text).input_ids for text in pieces[::2]]
    starts = bool(chunks[0]) and chunks[0][0] == tokenizer.bos_token_id
    ids = list(chunks[0])
    for mark, chunk in zip(pieces[1::2], chunks[1:], strict=True):
        token = IMAGE_TOKEN if mark == IMAGE_TOKEN else FORGERY_TOKEN
        ids += [marks[token]] * mark.count(token)
        ids += chunk[1:] if starts else chunk
    return ids if return_tensors is None else torch.tensor(ids, dtype=torch.long)
