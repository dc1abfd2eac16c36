"""A conversation in the host's own chat template: the text, and where in it the answers are.

The placeholders stand behind the image and before the text of the first question (LVLM-DFD,
section 3.3): ``<image>\\n<forgery>...<forgery>\\n[task description] [KFD result] [question]``. Of
several images each has its own placeholders behind it.
"""

import re
from dataclasses import dataclass
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from llava_forgery.constants import FORGERY_TOKEN, IMAGE_TOKEN
from llava_forgery.hosts.transformers.processors import conventions_of
from llava_forgery.qa.conversation import Conversation

Processor = ProcessorMixin | PreTrainedTokenizerBase


@dataclass(frozen=True)
class Rendered:
    """A conversation as the host's text, each image still one token."""

    text: str
    answer_spans: tuple[tuple[int, int], ...]
    """(start, end) in ``text`` of what the host writes for each answer: from the end of the
    generation prompt, so with a space where that leaves one to write, to the end of the answer."""


def chat_messages(
    conversation: Conversation, n_forgery_tokens: int, n_images: int = 1
) -> list[dict[str, Any]]:
    """Messages in transformers' content-list format.

    Args:
        conversation: What is said.
        n_forgery_tokens: n_f, placeholders behind each image of the first question; 0 for none.
        n_images: Images that the first question shows. Without any, the placeholders of one
            remain.
    """
    if n_images < 0:
        raise ValueError(f"n_images must be at least 0, got {n_images}")
    if n_forgery_tokens < 0:
        raise ValueError(f"n_forgery_tokens must be at least 0, got {n_forgery_tokens}")
    messages = [
        {"role": message.role, "content": [{"type": "text", "text": message.text}]}
        for message in conversation.messages
    ]
    placeholders = FORGERY_TOKEN * n_forgery_tokens + "\n" if n_forgery_tokens else ""
    first: list[dict[str, str]] = []
    for _ in range(n_images):
        first += [{"type": "image"}, {"type": "text", "text": placeholders}]
    if not n_images:
        first = [{"type": "text", "text": placeholders}]
    # The question goes on behind the last placeholders, in one part with them.
    first[-1]["text"] += messages[0]["content"][0]["text"]
    messages[0]["content"] = [part for part in first if part.get("text") != ""]
    return messages


def render_text(
    conversation: Conversation,
    processor: Processor,
    n_forgery_tokens: int = 9,
    *,
    n_images: int = 1,
    add_generation_prompt: bool | None = None,
) -> str:
    """The text of a conversation in the host's chat template.

    Args:
        conversation: What is said.
        processor: The host's; a bare tokenizer serves for a language model.
        n_forgery_tokens: n_f.
        n_images: Images that the first question shows.
        add_generation_prompt: Whether the head of the next answer follows; by default it does
            where the conversation ends with a question.

    Raises:
        ValueError: There is no chat template, it loses, doubles or parts images and placeholders,
            or a message holds one of the tokenizer's special tokens.
    """
    if add_generation_prompt is None:
        add_generation_prompt = conversation.is_prompt
    tokenizer = tokenizer_of(processor)
    for message in conversation.messages:
        held = [token for token in special_tokens(tokenizer) if token in message.text]
        if held:
            raise ValueError(f"the message {message.text!r} holds the special tokens {held}")
    messages = chat_messages(conversation, n_forgery_tokens, n_images)
    text = _apply_template(processor, messages, add_generation_prompt)
    image = image_token_of(processor)
    for token, expected in (
        (image, n_images),
        (FORGERY_TOKEN, n_forgery_tokens * max(n_images, 1)),
    ):
        if text.count(token) != expected:
            raise ValueError(
                f"the chat template gave {text.count(token)} times {token}, expected {expected}; "
                f"the text is {text!r}"
            )
    order = re.findall(f"{re.escape(image)}|{re.escape(FORGERY_TOKEN)}", text)
    if n_images and order != ([image] + [FORGERY_TOKEN] * n_forgery_tokens) * n_images:
        raise ValueError(
            "the chat template does not leave the placeholders behind their images; the text is "
            f"{text!r}"
        )
    return text


def render(
    conversation: Conversation,
    processor: Processor,
    n_forgery_tokens: int = 9,
    *,
    n_images: int = 1,
) -> Rendered:
    """The text and where in it the answers are; see :func:`render_text`.

    Raises:
        ValueError: As :func:`render_text`; or an answer cannot be found in the template's text.
    """
    text = render_text(conversation, processor, n_forgery_tokens, n_images=n_images)
    messages = chat_messages(conversation, n_forgery_tokens, n_images)
    spans = []
    for i, message in enumerate(conversation.messages):
        if message.role == "assistant":
            spans.append(_find_answer(text, processor, messages, i, message.text))
    return Rendered(text, tuple(spans))


def tokenizer_of(processor: Processor) -> PreTrainedTokenizerBase:
    """The processor's tokenizer; a bare tokenizer is its own."""
    return getattr(processor, "tokenizer", processor)


def image_token_of(processor: Processor) -> str:
    return str(getattr(processor, "image_token", IMAGE_TOKEN))


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Texts of all special tokens: some chat marks are not among the tokenizer's named ones."""
    added = tokenizer.added_tokens_decoder.values()
    return set(tokenizer.all_special_tokens) | {str(token) for token in added if token.special}


def _apply_template(
    processor: Processor, messages: list[dict[str, Any]], add_generation_prompt: bool
) -> str:
    owner = processor if getattr(processor, "chat_template", None) else tokenizer_of(processor)
    template = owner.chat_template or conventions_of(processor).chat_template
    if not template:
        raise ValueError("neither the processor nor its tokenizer has a chat template; set one")
    if not owner.chat_template:
        owner = tokenizer_of(processor)
    if not _takes_lists(owner, template):
        messages = [
            {"role": m["role"], "content": _as_string(m["content"], image_token_of(processor))}
            for m in messages
        ]
    text = owner.apply_chat_template(
        messages,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
    )
    return pair_placeholders(text, image_token_of(processor))


def pair_placeholders(text: str, image: str) -> str:
    """The text with each image before its own placeholders: some templates, as LLaVA's, write all
    images of a message before all its texts."""
    image, run = re.escape(image), f"(?:{re.escape(FORGERY_TOKEN)})+"
    found = re.search(rf"({image}(?:\s*{image})+)(\s*)({run}(?:\s+{run})+)", text)
    if not found:
        return text
    images, runs = re.findall(image, found[1]), re.findall(run, found[3])
    if len(images) != len(runs):
        return text
    pairs = [one + found[2] + placeholders for one, placeholders in zip(images, runs, strict=True)]
    return text[: found.start()] + "\n".join(pairs) + text[found.end() :]


def _takes_lists(owner: Processor, template: str) -> bool:
    """Whether the template reads content lists, as those of processors do; else it takes strings,
    and a list would fail or be printed as Python prints it."""
    probe = [{"role": "user", "content": [{"type": "text", "text": "probe"}]}]
    try:
        text = owner.apply_chat_template(
            probe, chat_template=template, tokenize=False, add_generation_prompt=False
        )
    except (TypeError, jinja2.TemplateError):
        return False
    return "probe" in text and "'type'" not in text


def _as_string(content: list[dict[str, str]], image_token: str) -> str:
    return "".join(
        f"{image_token}\n" if part["type"] == "image" else part["text"] for part in content
    )


def _find_answer(
    text: str, processor: Processor, messages: list[dict[str, Any]], i: int, answer: str
) -> tuple[int, int]:
    """(start, end) of the answer that is message ``i``."""
    prompt = _apply_template(processor, messages[:i], True)
    if text.startswith(prompt):
        start = len(text) - len(text[len(prompt) :].lstrip())
        if text.startswith(answer, start):
            return len(prompt), start + len(answer)
    # Some templates put into the generation prompt what they leave out of, or word otherwise in,
    # a turn that was said.
    before = _apply_template(processor, messages[:i], False)
    until = _apply_template(processor, messages[: i + 1], False)
    if text.startswith(before) and text.startswith(until):
        turn = text[len(before) : len(until)]
        if turn.count(answer) == 1:
            start = len(before) + turn.index(answer)
            return start, start + len(answer)
    raise ValueError(
        f"the chat template does not show where the answer {answer!r} is: it must render earlier "
        f"turns alike whatever follows them, and answers unchanged; the text is {text!r}"
    )
