"""Later turns on the cache: the same answers as everything computed anew."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from llava_forgery.hosts.transformers.prompts import collate, encode
from llava_forgery.hosts.transformers.vlm import ForgeryVLM
from llava_forgery.infer.dialogue import Dialogue
from llava_forgery.qa.build import build_prompt
from tests import tiny, tiny_hosts
from tests.hosts.transformers.contract import attach, perturb

QUESTIONS = ("Is this a deepfake image?", "Where is the artifact?", "Why?")


@pytest.fixture(scope="module", params=tiny_hosts.family_params())
def vlm(request) -> ForgeryVLM:
    return perturb(attach(request.param))


class Pixels:
    """Counts the calls that give a module of the host's vision tower pixels."""

    def __init__(self, host: torch.nn.Module) -> None:
        self.calls = 0
        convolution = next(
            m for m in host.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Conv3d))
        )
        self._handle = convolution.register_forward_hook(self._count)

    def _count(self, *_) -> None:
        self.calls += 1

    def __enter__(self) -> "Pixels":
        return self

    def __exit__(self, *_) -> None:
        self._handle.remove()


def test_three_turns_equal_the_recompute(vlm):
    image = tiny.picture(3)
    kept = Dialogue(vlm, image, max_new_tokens=8)
    anew = Dialogue(vlm, image, max_new_tokens=8, reuse_cache=False)
    with Pixels(vlm.host) as pixels:
        answers = [kept.ask(question) for question in QUESTIONS[:1]]
        once = pixels.calls
        assert once > 0
        answers += [kept.ask(question) for question in QUESTIONS[1:]]
        assert pixels.calls == once
    assert kept.reused_tokens > 0
    assert answers == [anew.ask(question) for question in QUESTIONS]
    assert anew.reused_tokens == 0


def use_otherwise(vlm: ForgeryVLM) -> None:
    """A prompt with two images of another shape."""
    image = Image.fromarray(tiny.picture(5)).resize((192, 32))
    sample = encode(
        build_prompt(0.4), vlm.processor, images=[image] * 2, n_forgery_tokens=vlm.n_forgery
    )
    batch = collate([sample], vlm.processor.tokenizer.pad_token_id)
    faces = torch.rand(2, 3, tiny.SIZE, tiny.SIZE, generator=torch.Generator().manual_seed(0))
    vlm.generate(
        **batch, forgery_images=faces, images_per_sample=[2], max_new_tokens=2, do_sample=False
    )


def test_logits_of_a_later_turn_equal_the_recompute(vlm):
    """A finer measure than answers. The host has another use between the turns: some remember the
    positions of their last prompt, whosever it was."""
    found = []
    for reuse in (True, False):
        dialogue = Dialogue(vlm, tiny.picture(3), max_new_tokens=6, reuse_cache=reuse)
        dialogue.ask(QUESTIONS[0])
        use_otherwise(vlm)
        seen = []
        head = vlm.host.get_output_embeddings()
        handle = head.register_forward_hook(lambda m, i, o, seen=seen: seen.append(o[0, -1]))
        dialogue.ask(QUESTIONS[1])
        handle.remove()
        assert bool(dialogue.reused_tokens) == reuse
        found.append(torch.stack(seen))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


def test_a_template_that_changes_earlier_turns_keeps_the_first_prompt():
    vlm = attach("llava")
    template = vlm.processor.chat_template
    # An answer that was said reads otherwise than it was written.
    vlm.processor.chat_template = template.replace(
        "<|im_end|>\n{% endfor %}", "{% if message['role'] == 'assistant' %} {% endif %}<|im_end|>"
        "\n{% endfor %}"
    )  # fmt: skip
    assert vlm.processor.chat_template != template
    kept = Dialogue(vlm, tiny.picture(3), max_new_tokens=40)
    anew = Dialogue(vlm, tiny.picture(3), max_new_tokens=40, reuse_cache=False)
    for question in QUESTIONS:
        assert kept.ask(question) == anew.ask(question)
    # Whatever the host wrote, its first prompt stands.
    assert kept.reused_tokens >= kept._first_prompt


def test_a_prompt_that_begins_otherwise_is_computed_anew():
    vlm = attach("llava")
    kept = Dialogue(vlm, tiny.picture(3), max_new_tokens=6)
    anew = Dialogue(vlm, tiny.picture(3), max_new_tokens=6, reuse_cache=False)
    for question in QUESTIONS:
        assert kept.ask(question) == anew.ask(question)
        assert kept.reused_tokens == 0
        # As if the template had written the first token otherwise.
        kept._cached_ids = kept._cached_ids.clone()
        kept._cached_ids[0] += 1


def test_a_full_sliding_window_is_computed_anew():
    """Gemma 3's local layers forget; a cache that must be cut then is of no use."""
    vlm = attach("gemma3")
    for layer in vlm.host.get_base_model().model.language_model.layers:
        if layer.self_attn.is_sliding:
            layer.self_attn.sliding_window = 16
    vlm.host.config.text_config.sliding_window = 16
    kept = Dialogue(vlm, tiny.picture(3), max_new_tokens=6)
    anew = Dialogue(vlm, tiny.picture(3), max_new_tokens=6, reuse_cache=False)
    for question in QUESTIONS:
        assert kept.ask(question) == anew.ask(question)


def test_families_without_the_cache_compute_anew():
    vlm = attach("llava")
    vlm.family = replace(vlm.family, cache_mode="recompute")
    dialogue = Dialogue(vlm, tiny.picture(3), max_new_tokens=6)
    other = Dialogue(attach("llava"), tiny.picture(3), max_new_tokens=6)
    for question in QUESTIONS:
        assert dialogue.ask(question) == other.ask(question)
        assert dialogue.reused_tokens == 0
    ids = torch.tensor([[5, 6]])
    with pytest.raises(ValueError, match="LLaVA 1.5 hosts do not go on from a cache"):
        vlm.generate(ids, past_key_values=other._cache)
    with pytest.raises(ValueError, match="detection would not be read"):
        other.vlm.generate(ids, detection=other._detection, past_key_values=other._cache)
