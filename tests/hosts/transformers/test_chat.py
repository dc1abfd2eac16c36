"""Conversations in chat templates of several kinds: the text, and where the answers are."""

import pytest

from llava_forgery.constants import FORGERY_TOKEN, IMAGE_TOKEN, REAL
from llava_forgery.hosts.transformers.chat import (
    chat_messages,
    render,
    render_text,
)
from llava_forgery.qa.build import build_prompt
from llava_forgery.qa.conversation import Conversation, Message
from tests.hosts.transformers.rendering import (
    HOSTS,
    LLAVA_15,
    MISTRAL,
    VICUNA,
    answers,
    conversation,
    processor_of,
)


def test_chat_messages():
    prompt = Conversation((Message("user", "Fake?"), Message("assistant", "No.")), REAL)
    assert chat_messages(prompt, 2) == [
        {
            "role": "user",
            "content": [
                {"type": "image"},
                {"type": "text", "text": "<forgery><forgery>\nFake?"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "No."}]},
    ]
    plain = chat_messages(prompt, 0, n_images=0)
    assert plain[0]["content"] == [{"type": "text", "text": "Fake?"}]
    with pytest.raises(ValueError, match="n_forgery_tokens must be at least 0"):
        chat_messages(prompt, -1)
    with pytest.raises(ValueError, match="n_images must be at least 0"):
        chat_messages(prompt, 1, n_images=-1)
    image, text = {"type": "image"}, {"type": "text", "text": "<forgery>\n"}
    two = chat_messages(prompt, 1, n_images=2)
    assert two[0]["content"] == [image, text, image, {"type": "text", "text": "<forgery>\nFake?"}]
    bare = chat_messages(prompt, 0, n_images=2)
    assert bare[0]["content"] == [image, image, {"type": "text", "text": "Fake?"}]


def test_canonical_prompt_as_text():
    prompt = build_prompt(0.93)
    question = prompt.messages[0].text
    assert render_text(prompt, processor_of("small_llava"), 2) == (
        "<|im_start|>user\n<image>\n<forgery><forgery>\n"
        f"{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render_text(prompt, processor_of("vicuna"), 2) == (
        "A chat between a human and an assistant. USER: <image>\n<forgery><forgery>\n"
        f"{question} ASSISTANT:"
    )


def test_several_images_as_text():
    """LLaVA 1.5's template writes all images of a message before its texts."""
    prompt = build_prompt(0.93)
    question = prompt.messages[0].text
    pairs = "<image>\n<forgery><forgery>\n" * 2
    for name in ("small_llava", "vicuna", "llava_15"):
        text = render_text(prompt, processor_of(name), 2, n_images=2)
        assert " ".join(pairs.split() + question.split()) in " ".join(text.split())


def test_a_template_that_parts_placeholders_from_images_is_refused():
    processor = processor_of("small_llava")
    processor.chat_template = (
        "{% for m in messages %}{% for p in m['content'] | selectattr('type', 'equalto', 'text') %}"
        "{{ p['text'] }}{% endfor %}{% for p in m['content'] | selectattr('type', 'equalto', "
        "'image') %}<image>{% endfor %}{% endfor %}"
    )
    with pytest.raises(ValueError, match="does not leave the placeholders behind their images"):
        render_text(build_prompt(0.5), processor, 2)


def test_lists_and_strings_render_alike():
    """A template for strings gets the text that a processor's template makes of the list."""
    as_list = render_text(conversation(), processor_of("small_llava"), 3)
    as_string = render_text(conversation(), processor_of("smollm2"), 3)
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging"
    assert as_string.startswith(system)
    assert as_string.endswith(as_list)


def test_answer_spans(host):
    item = conversation()
    rendered = render(item, host.processor())
    written = [rendered.text[start:end] for start, end in rendered.answer_spans]
    assert [text.strip() for text in written] == answers(item)
    # The space behind "ASSISTANT:" is the host's to write.
    leading = " " if host.template in (VICUNA, LLAVA_15, MISTRAL) else ""
    assert written == [leading + answer for answer in answers(item)]
    assert rendered.text.count(IMAGE_TOKEN) == 1
    assert rendered.text.count(FORGERY_TOKEN) == 9


def test_spans_of_answers_that_repeat():
    """An answer that stands in the question as well, and twice as an answer."""
    turns = ("Is it No.?", "No.", "No.", "No.")
    roles = ("user", "assistant") * 2
    item = Conversation(tuple(map(Message, roles, turns)), REAL)
    for name in set(HOSTS) - {"thinking"}:
        rendered = render(item, processor_of(name), 1)
        starts = [start for start, _ in rendered.answer_spans]
        assert len(set(starts)) == 2
        assert starts[0] > rendered.text.index("Is it No.?") + len("Is it No.?")
        spans = rendered.answer_spans
        assert [rendered.text[start:end].strip() for start, end in spans] == ["No."] * 2
