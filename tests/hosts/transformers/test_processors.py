"""The processors that need more than to be called."""

import pytest
import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing

from llava_forgery.constants import FORGERY_TOKEN, IGNORE_INDEX
from llava_forgery.hosts.transformers.processors import conventions_of
from llava_forgery.hosts.transformers.prompts import encode
from llava_forgery.qa.build import build_prompt
from llava_forgery.qa.conversation import Conversation, Message
from tests import tiny, tiny_hosts

IMAGE = Image.fromarray(tiny.picture(0, 32))


def processor_of(model_type):
    _, processor = tiny_hosts.build(model_type)
    processor.tokenizer.add_tokens([FORGERY_TOKEN], special_tokens=True)
    return processor


def two_turns(processor, *answers):
    turns = ("Fake?", answers[0], "Where?", answers[1])
    messages = tuple(map(Message, ("user", "assistant") * 2, turns))
    return encode(Conversation(messages, 1, ("nose",)), processor, [IMAGE], n_forgery_tokens=2)


def test_most_processors_are_taken_as_they_are():
    assert conventions_of(processor_of("llava")).chat_template is None


def test_paligemma_prompt_is_what_its_processor_makes():
    processor = processor_of("paligemma")
    sample = encode(build_prompt(0.5, question="Fake?"), processor, [IMAGE], n_forgery_tokens=2)
    text = build_prompt(0.5, question="Fake?").messages[0].text
    official = processor(
        text="<image>" + FORGERY_TOKEN * 2 + "\n" + text, images=IMAGE, return_tensors="pt"
    )
    assert torch.equal(sample["input_ids"], official["input_ids"][0])
    assert sample["token_type_ids"].tolist() == [0] * len(sample["input_ids"])
    assert "labels" not in sample


def test_paligemma_answers_are_the_processors_suffix():
    """One turn as the processor lays it out with ``suffix``."""
    processor = processor_of("paligemma")
    item = Conversation((Message("user", "Fake?"), Message("assistant", "No.")), 0)
    sample = encode(item, processor, [IMAGE], n_forgery_tokens=2)
    official = processor(
        text="<image>" + FORGERY_TOKEN * 2 + "\nFake?", suffix="No.", images=IMAGE,
        return_tensors="pt",
    )  # fmt: skip
    for name in ("input_ids", "token_type_ids", "labels"):
        assert torch.equal(sample[name], official[name][0]), name


def test_paligemma_is_causal_from_the_first_answer_on():
    sample = two_turns(processor_of("paligemma"), "Yes.", "Nose.")
    first = int((sample["labels"] != IGNORE_INDEX).nonzero()[0])
    length = len(sample["input_ids"])
    assert sample["token_type_ids"].tolist() == [0] * first + [1] * (length - first)


def test_instructblip_image_stands_where_its_processor_puts_it():
    processor = processor_of("instructblip")
    # The words begin with a token that is put in front, as Vicuna's do.
    bos = processor.tokenizer.bos_token
    processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, processor.tokenizer.bos_token_id)]
    )
    prompt = Conversation((Message("user", "Fake?"),), None)
    sample = encode(prompt, processor, [IMAGE], n_forgery_tokens=0)
    official = processor(text="Fake?\n", images=IMAGE, return_tensors="pt")
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(sample[name], official[name][0]), name
    assert torch.equal(sample["pixel_values"], official["pixel_values"])


def test_instructblip_qformer_reads_the_first_question_alone():
    processor = processor_of("instructblip")
    expected = processor.qformer_tokenizer(["Fake?"])["input_ids"]
    assert two_turns(processor, "Yes.", "Nose.")["qformer_input_ids"].tolist() == expected
    two = encode(build_prompt(0.5), processor, [IMAGE, IMAGE], n_forgery_tokens=2)
    assert len(two["qformer_input_ids"]) == len(two["pixel_values"]) == 2
    assert (
        int((two["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<image>")).sum()) == 8
    )


@pytest.mark.parametrize("model_type", ["paligemma", "instructblip"])
def test_a_template_of_ones_own_goes_before_the_fallback(model_type):
    processor = processor_of(model_type)
    processor.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    sample = two_turns(processor, "Yes.", "Nose.")
    text = processor.tokenizer.decode(sample["input_ids"])
    assert "user: " in text
    said = sample["input_ids"][sample["labels"] != IGNORE_INDEX]
    assert processor.tokenizer.decode(said) == "Yes.<|im_end|>Nose.<|im_end|>"
