"""The tokens with which Yes and No begin."""

import random

import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from llava_forgery.constants import FAKE, REAL
from llava_forgery.hosts import small_llava
from llava_forgery.hosts.transformers.prompts import (
    ProcessorEncoder,
    encode,
)
from llava_forgery.qa.build import build_conversation, build_prompt
from tests.hosts.transformers.rendering import (
    HOSTS,
    IMAGE,
    SMOLLM2,
    THINKING,
    VICUNA,
    Host,
    answers,
    conversation,
    processor_of,
    supervised_runs,
)


def test_candidates(host):
    processor = host.processor()
    if host.template == THINKING:
        with pytest.raises(ValueError, match="generation prompt is not what its answers begin"):
            ProcessorEncoder(processor, 9).candidate_ids(build_prompt(0.93))
        return
    _, yes, no = ProcessorEncoder(processor, 9).candidate_ids(build_prompt(0.93))
    decode = processor.tokenizer.convert_ids_to_tokens
    assert "Yes".startswith(decode(yes).strip("▁Ġ"))
    assert "No".startswith(decode(no).strip("▁Ġ"))
    assert yes != no
    for seed in range(10):
        for label, expected in ((FAKE, yes), (REAL, no)):
            regions = ("chin",) if label == FAKE else ()
            item = build_conversation(label, regions, rng=random.Random(seed), score=0.4)
            sample = encode(item, processor, [IMAGE])
            assert supervised_runs(sample)[0][0] == expected


def test_candidates_need_a_prompt():
    with pytest.raises(ValueError, match="ends with a question"):
        ProcessorEncoder(processor_of("small_llava"), 9).candidate_ids(conversation())


def test_a_token_that_both_answers_begin_with_joins_the_prompt():
    """The space is a token of its own, so the words are only the second to be written."""
    words = HOSTS["vicuna"]().tokenizer
    words.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split("▁", "isolated")]
    )
    processor = Host(VICUNA, "</s>", words).processor()
    shared, yes, no = ProcessorEncoder(processor, 9).candidate_ids(build_prompt(0.5))
    assert words.convert_ids_to_tokens([*shared, yes, no]) == ["▁", "Yes", "No"]
    # Training writes that space all the same.
    sample = encode(conversation(), processor, [IMAGE])
    assert words.convert_ids_to_tokens(supervised_runs(sample)[0])[:2] == ["▁", "Yes"]


@pytest.mark.slow
def test_the_real_smollm2():
    """Its own tokenizer and template, from the package that carries the weights."""
    pytest.importorskip("gguf")
    try:
        gguf = small_llava.smollm2_file()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    words = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    assert words.chat_template == SMOLLM2
    for on_processor in (True, False):
        template = small_llava.CHAT_TEMPLATE if on_processor else SMOLLM2
        processor = Host(template, "<|im_end|>", words, on_processor).processor()
        item = conversation()
        runs = supervised_runs(encode(item, processor, [IMAGE]))
        expected = [answer + "<|im_end|>" for answer in answers(item)]
        assert [words.decode(run) for run in runs] == expected
        _, yes, no = ProcessorEncoder(processor, 9).candidate_ids(build_prompt(0.93))
        assert words.convert_ids_to_tokens([yes, no]) == ["Yes", "No"]
