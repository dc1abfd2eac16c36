"""A conversation in the host's own chat template: the text, and where in it the answers are.

The placeholders stand behind the image and before the text of the first question (LVLM-DFD,
section 3.3): ``<image>\\n<forgery>...<forgery>\\n[task description] [KFD result] [question]``.
"""

from dataclasses import dataclass
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from llava_forgery.constants import FORGERY_TOKEN, IMAGE_TOKEN
from llava_forgery.qa.conversation import Conversation

Processor = ProcessorMixin | PreTrainedTokenizerBase


@dataclass(frozen=True)
class Rendered:
    """A conversation as the host's text, the image still one token."""

    text: str
    answer_spans: tuple[tuple[int, int], ...]
    """(start, end) in ``text`` of what the host writes for each answer: from the end of the
    generation prompt, so with a space where that leaves one to write, to the end of the answer."""


def chat_messages(
    conversation: Conversation, n_forgery_tokens: int, with_image: bool = True
) -> list[dict[str, Any]]:
    """Messages in transformers' content-list format.

    Args:
        conversation: What is said.
        n_forgery_tokens: n_f, placeholders in the first question; 0 for none.
        with_image: Whether the first question shows the image.
    """
    if n_forgery_tokens < 0:
        raise ValueError(f"n_forgery_tokens must be at least 0, got {n_forgery_tokens}")
    messages = [
        {"role": message.role, "content": [{"type": "text", "text": message.text}]}
        for message in conversation.messages
    ]
    first = messages[0]["content"]
    if n_forgery_tokens:
        first[0]["text"] = FORGERY_TOKEN * n_forgery_tokens + "\n" + first[0]["text"]
    if with_image:
        first.insert(0, {"type": "image"})
    return messages


def render_text(
    conversation: Conversation,
    processor: Processor,
    n_forgery_tokens: int = 9,
    *,
    with_image: bool = True,
    add_generation_prompt: bool | None = None,
) -> str:
    """The text of a conversation in the host's chat template.

    Args:
        conversation: What is said.
        processor: The host's; a bare tokenizer serves for a language model.
        n_forgery_tokens: n_f.
        with_image: Whether the first question shows the image.
        add_generation_prompt: Whether the head of the next answer follows; by default it does
            where the conversation ends with a question.

    Raises:
        ValueError: There is no chat template, it loses or doubles image or placeholders, or a
            message holds one of the tokenizer's special tokens.
    """
    if add_generation_prompt is None:
        add_generation_prompt = conversation.is_prompt
    tokenizer = tokenizer_of(processor)
    for message in conversation.messages:
        held = [token for token in special_tokens(tokenizer) if token in message.text]
        if held:
            raise ValueError(f"the message {message.text!r} holds the special tokens {held}")
    messages = chat_messages(conversation, n_forgery_tokens, with_image)
    text = _apply_template(processor, messages, add_generation_prompt)
    for token, expected in (
        (_image_token(processor), int(with_image)),
        (FORGERY_TOKEN, n_forgery_tokens),
    ):
        if text.count(token) != expected:
            raise ValueError(
                f"the chat template gave {text.count(token)} times {token}, expected {expected}; "
                f"the text is {text!r}"
            )
    return text


def render(
    conversation: Conversation,
    processor: Processor,
    n_forgery_tokens: int = 9,
    *,
    with_image: bool = True,
) -> Rendered:
    """The text and where in it the answers are; see :func:`render_text`.

    Raises:
        ValueError: As :func:`render_text`; or an answer cannot be found in the template's text.
    """
    text = render_text(conversation, processor, n_forgery_tokens, with_image=with_image)
    messages = chat_messages(conversation, n_forgery_tokens, with_image)
    spans = []
    for i, message in enumerate(conversation.messages):
        if message.role == "assistant":
            spans.append(_find_answer(text, processor, messages, i, message.text))
    return Rendered(text, tuple(spans))


def tokenizer_of(processor: Processor) -> PreTrainedTokenizerBase:
    """The processor's tokenizer; a bare tokenizer is its own."""
    return getattr(processor, "tokenizer", processor)


def _image_token(processor: Processor) -> str:
    return getattr(processor, "image_token", IMAGE_TOKEN)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Texts of all special tokens: some chat marks are not among the tokenizer's named ones."""
    added = tokenizer.added_tokens_decoder.values()
    return set(tokenizer.all_special_tokens) | {str(token) for token in added if token.special}


def _apply_template(
    processor: Processor, messages: list[dict[str, Any]], add_generation_prompt: bool
) -> str:
    owner = processor if getattr(processor, "chat_template", None) else tokenizer_of(processor)
    if not owner.chat_template:
        raise ValueError("neither the processor nor its tokenizer has a chat template; set one")
    if not _takes_lists(owner):
        messages = [
            {"role": m["role"], "content": _as_string(m["content"], _image_token(processor))}
            for m in messages
        ]
    return owner.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=add_generation_prompt
    )


def _takes_lists(owner: Processor) -> bool:
    """Whether the template reads content lists, as those of processors do; else it takes strings,
    and a list would fail or be printed as Python prints it."""
    probe = [{"role": "user", "content": [{"type": "text", "text": "probe"}]}]
    try:
        text = owner.apply_chat_template(probe, tokenize=False, add_generation_prompt=False)
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
