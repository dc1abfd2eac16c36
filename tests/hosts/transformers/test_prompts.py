"""Exact loss masks through chat templates of several kinds."""

import random

import pytest
from PIL import Image
from transformers import LlavaProcessor

from llava_forgery.constants import FORGERY_TOKEN, IGNORE_INDEX, REAL
from llava_forgery.hosts.transformers.prompts import (
    ProcessorEncoder,
    encode,
)
from llava_forgery.qa.build import build_conversation, build_prompt
from tests.hosts.transformers.rendering import (
    HOSTS,
    IMAGE,
    LLAVA_15,
    SMOLLM2,
    THINKING,
    VICUNA,
    Host,
    answers,
    byte_level,
    conversation,
    processor_of,
    said,
    supervised_runs,
    word_pieces,
)

OTHER = Image.new("RGB", (40, 50), (20, 50, 120))


@pytest.mark.parametrize("images", [[IMAGE], None], ids=["image", "no_image"])
@pytest.mark.parametrize("seed", range(3))
def test_exactly_the_answers_are_supervised(host, images, seed):
    item = conversation(seed=seed)
    processor = host.processor()
    sample = encode(item, processor, images)
    runs = supervised_runs(sample)
    expected = [answer + host.end for answer in answers(item)]
    if host.template == LLAVA_15:
        expected = [*answers(item)[:-1], expected[-1]]
    assert [said(processor.tokenizer, run) for run in runs] == expected
    tokens = sample["input_ids"].tolist()
    assert tokens.count(processor.image_token_id) == (0 if images is None else 4)
    assert tokens.count(processor.tokenizer.convert_tokens_to_ids(FORGERY_TOKEN)) == 9
    assert sample["attention_mask"].tolist() == [1] * len(tokens)


def test_the_image_goes_along():
    sample = encode(conversation(), processor_of("small_llava"), [IMAGE])
    assert set(sample) == {"input_ids", "attention_mask", "labels", "pixel_values"}
    assert sample["pixel_values"].shape == (1, 3, 32, 32)


def test_a_prompt_is_what_training_continues(host):
    """Tokens of the prompt at inference are those before the first answer in training."""
    processor = host.processor()
    item = build_conversation(REAL, (), rng=random.Random(0), score=0.4, vary=False)
    trained = encode(item, processor, [IMAGE])
    prompt = encode(build_prompt(0.4), processor, [IMAGE])
    assert set(prompt) == {"input_ids", "attention_mask", "pixel_values"}
    first = int((trained["labels"] != IGNORE_INDEX).nonzero()[0, 0])
    before = trained["input_ids"][:first].tolist()
    if host.template == THINKING:
        assert before[: len(prompt["input_ids"])] == prompt["input_ids"].tolist()
        assert len(before) > len(prompt["input_ids"])
    else:
        assert prompt["input_ids"].tolist() == before


def test_first_tokens_are_not_doubled():
    for name in ("vicuna", "mistral", "llama_3"):
        processor = processor_of(name)
        tokens = encode(conversation(), processor, [IMAGE])["input_ids"].tolist()
        assert tokens[0] == processor.tokenizer.bos_token_id
        assert tokens.count(processor.tokenizer.bos_token_id) == 1


def test_plain_tokenizer():
    words = HOSTS["smollm2"]().tokenizer
    words.chat_template = SMOLLM2
    item = conversation(follow_ups=1)
    sample = encode(item, words, n_forgery_tokens=0)
    runs = [words.decode(run) for run in supervised_runs(sample)]
    assert runs == [answer + "<|im_end|>" for answer in answers(item)]
    with pytest.raises(ValueError, match="a tokenizer cannot take images"):
        encode(item, words, [IMAGE], n_forgery_tokens=0)


def test_nothing_is_cut():
    processor = processor_of("small_llava")
    length = len(encode(conversation(), processor, [IMAGE])["input_ids"])
    assert len(encode(conversation(), processor, [IMAGE], max_length=length)["input_ids"]) == length
    with pytest.raises(ValueError, match=f"has {length} tokens, more than max_length {length - 1}"):
        encode(conversation(), processor, [IMAGE], max_length=length - 1)


def test_several_images_have_their_own_placeholders(host):
    item = conversation()
    processor = host.processor()
    one = encode(item, processor, [IMAGE], n_forgery_tokens=3)
    two = encode(item, processor, [IMAGE, OTHER], n_forgery_tokens=3)
    image = processor.image_token_id
    forgery = processor.tokenizer.convert_tokens_to_ids(FORGERY_TOKEN)
    found = [i for i in two["input_ids"].tolist() if i in (image, forgery)]
    assert found == ([image] * 4 + [forgery] * 3) * 2
    assert two["pixel_values"].shape == (2, 3, 32, 32)
    assert two["pixel_values"][0].equal(one["pixel_values"][0])
    assert not two["pixel_values"][1].equal(one["pixel_values"][0])
    assert supervised_runs(two) == supervised_runs(one)


def test_no_images():
    with pytest.raises(ValueError, match="images is empty"):
        encode(conversation(), processor_of("small_llava"), [])


def test_unknown_placeholder():
    words = HOSTS["smollm2"]().tokenizer
    words.chat_template = SMOLLM2
    with pytest.raises(ValueError, match="left 0 of 9 placeholders <forgery>"):
        encode(conversation(), words)


def test_special_tokens_in_what_is_said():
    prompt = build_prompt(0.5, question="Fake?<|im_end|>")
    with pytest.raises(ValueError, match="holds the special tokens"):
        encode(prompt, processor_of("small_llava"), [IMAGE])


def replaced(name, template):
    processor = processor_of(name)
    processor.chat_template = template
    return processor


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "neither the processor nor its tokenizer has a chat template"),
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "gave 0 times <image>"),
        (
            "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}{{ messages | count }}",
            "holds no special token|does not show where the answer",
        ),
        (
            "{% for m in messages %}{% if loop.first %}{{ m['content'] }}{% else %}"
            "{{ m['content'] | replace('e', 'E') }}{% endif %}<|im_end|>{% endfor %}",
            "does not show where the answer",
        ),
        (
            "{% for m in messages %}{{ m['content'] }}\n{% endfor %}End.",
            "does not show where the answer|holds no special token",
        ),
    ],
    ids=["none", "loses_image", "counts_turns", "changes_answers", "text_behind"],
)
def test_unfit_templates_are_refused(template, message):
    with pytest.raises(ValueError, match=message):
        encode(conversation(), replaced("small_llava", template), [IMAGE])


def test_answer_glued_to_the_prompt():
    """A token that writes the end of the prompt and the beginning of the answer."""
    words = byte_level(["<|im_end|>"], eos_token="<|im_end|>")
    # "assistantYes" is one token.
    words.add_tokens(["assistantYes"])
    template = (
        "{% for m in messages %}{{ m['role'] }}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}assistant{% endif %}"
    )
    host = Host(template, "<|im_end|>", words)
    with pytest.raises(ValueError, match="cannot separate the answers"):
        encode(conversation(), host.processor(), [IMAGE])
    with pytest.raises(ValueError, match="does not continue the tokens of the prompt"):
        ProcessorEncoder(host.processor(), 9).candidate_ids(build_prompt(0.5))


def test_expansion_that_changes_the_answers():
    class Meddling(LlavaProcessor):
        def __call__(self, images=None, text=None, **options):
            return super().__call__(images=images, text=[text[0].replace("Yes", "No")], **options)

    processor = processor_of("small_llava")
    processor.__class__ = Meddling
    with pytest.raises(ValueError, match="expansion of the image changed the tokens"):
        encode(conversation(), processor, [IMAGE])


def test_tokenizer_that_ends_every_text():
    host = Host(VICUNA, "</s>", word_pieces(add_eos=True))
    with pytest.raises(ValueError, match="add_eos_token=False"):
        encode(build_prompt(0.5), host.processor(), [IMAGE])
