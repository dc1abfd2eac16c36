"""The contract that every known family keeps: forward, generate, counts, detaching."""

import re
from pathlib import Path

import pytest
import torch

from llava_forgery.call_state import lock_of
from llava_forgery.constants import FORGERY_TOKEN
from llava_forgery.hosts.families import (
    HostFamily,
    exclusive,
    family_of,
    host_table,
    known_families,
    register_family,
)
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.hosts.transformers.prompts import collate, encode
from llava_forgery.hosts.transformers.vlm import ForgeryVLM
from llava_forgery.qa.conversation import Conversation, Message
from tests import tiny, tiny_hosts
from tests.hosts.transformers.contract import (
    LORA,
    N_FORGERY,
    PHOTOGRAPHS,
    alone,
    attach,
    batch_of,
    faces,
    perturb,
)


@pytest.fixture(scope="module", params=tiny_hosts.family_params())
def vlm(request) -> ForgeryVLM:
    """One for all tests that change nothing of it."""
    return perturb(attach(request.param))


@pytest.fixture(params=tiny_hosts.family_params())
def model_type(request) -> str:
    return request.param


def test_all_families_are_tested():
    assert [family.model_type for family in known_families()] == list(tiny_hosts.FAMILIES)


def test_logits_equal_those_of_rows_in_the_embedding(vlm):
    """A batch of unlike samples; the other side is the bare host with real, larger vocabulary."""
    batch = batch_of(vlm)
    images, counts = batch.pop("forgery_images"), batch.pop("images_per_sample")
    with torch.no_grad():
        found = vlm(**batch, forgery_images=images, images_per_sample=counts).logits
        vectors = vlm.fpl(vlm.detect(images)).flatten(0, 1)
        other = perturb(attach(vlm.family.model_type))
        host = other.host.merge_and_unload()
        other._hooks.remove()
        words = host.get_input_embeddings().num_embeddings
        host.resize_token_embeddings(words + len(vectors), mean_resizing=False)
        embedding = host.get_input_embeddings()
        # Gemma's families multiply what they look up; the skill's vectors go in as they are.
        embedding.weight[words:] = vectors / getattr(embedding, "embed_scale", 1.0)
        places = batch["input_ids"] == vlm.token_id
        assert int(places.sum()) == len(vectors) == 3 * N_FORGERY
        batch["input_ids"][places] = torch.arange(words, words + len(vectors))
        expected = host(**batch).logits[..., :words]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


def test_a_sample_in_a_padded_batch_equals_the_sample_alone(vlm):
    batch = batch_of(vlm)
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    assert lengths[0] < lengths[1]
    with torch.no_grad():
        together = vlm(**batch).logits
        for index, length in enumerate(lengths):
            found = vlm(**alone(vlm, index)).logits[0]
            torch.testing.assert_close(found, together[index, -length:], atol=1e-4, rtol=1e-4)


def test_a_new_prompt_is_about_as_loud_as_words(model_type):
    """Also where the host multiplies the rows of its embedding, as Gemma's families do."""
    vlm = attach(model_type)
    with torch.no_grad():
        vectors = vlm.fpl(vlm.detect(faces()))
        words = vlm.host.get_input_embeddings()(torch.arange(500))
    assert 0.4 < float(vectors.std() / words.std()) < 2.5


def test_each_image_reaches_its_own_sample(vlm):
    batch = batch_of(vlm)
    with torch.no_grad():
        before = vlm(**batch).logits[:, -1]
        for image, sample in ((0, 0), (1, 1), (2, 1)):
            changed = dict(batch, forgery_images=batch["forgery_images"].clone())
            changed["forgery_images"][image] = 1 - changed["forgery_images"][image]
            after = vlm(**changed).logits[:, -1]
            assert not torch.allclose(after[sample], before[sample], atol=1e-4)
            torch.testing.assert_close(after[1 - sample], before[1 - sample])


def test_greedy_answers_equal_a_loop_over_forward(vlm):
    for index in range(2):
        inputs = alone(vlm, index)
        length = inputs["input_ids"].shape[1]
        ids = vlm.generate(**inputs, max_new_tokens=4, do_sample=False)
        assert torch.equal(ids[:, :length], inputs["input_ids"])
        current = dict(inputs)
        for token in ids[0, length:].tolist():
            with torch.no_grad():
                logits = vlm(**current).logits[0, -1]
            assert int(logits.argmax()) == token
            for name, value in (("input_ids", token), ("attention_mask", 1),
                                ("token_type_ids", 1), ("mm_token_type_ids", 0)):  # fmt: skip
                if name in current:
                    # A written token is causal for PaliGemma (1) and no image for Gemma 3 (0).
                    if name == "token_type_ids" and not vlm.family.bidirectional_prefix:
                        value = 0
                    current[name] = torch.cat([current[name], torch.tensor([[value]])], dim=1)


def test_a_batch_is_answered_as_its_samples_are(vlm):
    batch = batch_of(vlm)
    length = batch["input_ids"].shape[1]
    options = {"max_new_tokens": 5, "do_sample": False}
    together = vlm.generate(**batch, **options)[:, length:]
    pad = vlm.processor.tokenizer.pad_token_id
    for index in range(2):
        inputs = alone(vlm, index)
        answer = vlm.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :].tolist()
        assert together[index].tolist() == answer + [pad] * (together.shape[1] - len(answer))


def test_beams_never_write_a_placeholder(vlm):
    batch = batch_of(vlm)
    ids = vlm.generate(
        **batch, max_new_tokens=4, do_sample=False, num_beams=3, num_return_sequences=2
    )
    assert len(ids) == 4
    assert not bool((ids[:, batch["input_ids"].shape[1] :] == vlm.token_id).any())


def hooks_of(host: torch.nn.Module) -> dict[str, tuple[list[int], list[int]]]:
    return {
        name: (list(module._forward_hooks), list(module._forward_pre_hooks))
        for name, module in host.named_modules()
    }


def test_detach_gives_the_bare_host_back_bit_for_bit(model_type):
    host, processor = tiny_hosts.build(model_type)
    frozen = next(iter(dict(host.named_parameters())))
    host.get_parameter(frozen).requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in host.state_dict().items()}
    wanted = {name: p.requires_grad for name, p in host.named_parameters()}
    prompt = Conversation((Message("user", "Fake?"),), None)
    bare_batch = collate(
        [encode(prompt, processor, PHOTOGRAPHS[0], n_forgery_tokens=0)],
        processor.tokenizer.pad_token_id,
    )
    with torch.no_grad():
        logits = host(**bare_batch).logits
    # transformers hangs hooks of its own on some hosts when they first run.
    hooks = hooks_of(host)
    vlm = perturb(attach_forgery(host, processor, tiny.kfd(), lora=LORA)).eval()
    batch = batch_of(vlm)
    vlm.generate(**batch, max_new_tokens=2, do_sample=False)
    bare = vlm.detach()
    assert bare is host
    assert list(bare.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in bare.state_dict().items())
    assert {name: p.requires_grad for name, p in bare.named_parameters()} == wanted
    assert hooks_of(bare) == hooks
    with torch.no_grad():
        assert torch.equal(bare(**bare_batch).logits, logits)


def test_wrong_counts_are_named_before_the_host_is_called(vlm):
    batch = batch_of(vlm)
    # The model gives prompts without any their own.
    vlm.placement, before = "placeholders", vlm.placement

    class Untouched(torch.nn.Module):
        def forward(self, *args, **kwargs):
            raise AssertionError("the host was called")

    host, vlm.host = vlm.host, Untouched()
    try:
        short = dict(batch, input_ids=batch["input_ids"].clone())
        place = int((short["input_ids"][0] == vlm.token_id).nonzero()[0])
        short["input_ids"][0, place] = 5
        with pytest.raises(ValueError, match=r"sample 0 has 8 forgery .* but 9"):
            vlm(**short)
        short["input_ids"][0, batch["input_ids"][0] == vlm.token_id] = 5
        with pytest.raises(ValueError, match=r"sample 0 has 0 forgery .* but 9"):
            vlm(**short)
        long = dict(batch, input_ids=batch["input_ids"].clone())
        long["input_ids"][1, -3:] = vlm.token_id
        with pytest.raises(ValueError, match=r"sample 1 has 21 forgery .* but 18"):
            vlm(**long)
        # Enough in all, but the first sample's go to the second.
        with pytest.raises(ValueError, match=r"sample 0 has 9 forgery .* but 18"):
            vlm(**dict(batch, images_per_sample=[2, 1]))
        with pytest.raises(ValueError, match=r"sample 1 has 2 images .* only 1 of the 2"):
            vlm(**dict(batch, forgery_images=faces()[:2]))
        with pytest.raises(ValueError, match=r"3 images by .* 4 forgery images"):
            vlm(**dict(batch, forgery_images=faces(4)))
        for wrong in ([1], [4, -1]):
            with pytest.raises(ValueError, match="at least 0 for each of the 2 prompts"):
                vlm(**dict(batch, images_per_sample=wrong))
    finally:
        vlm.host, vlm.placement = host, before


def test_hosts_that_hold_something_of_a_call_are_called_in_turn(monkeypatch):
    host, _ = tiny_hosts.build("llava")
    assert exclusive(host) is not lock_of(host)
    text = host.config.get_text_config()
    for owner, name, value in (
        (text, "rope_parameters", {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        (text, "rope_parameters", {"full_attention": {"rope_type": "longrope"}}),
        (host, "hf_device_map", {"model": 0, "lm_head": "cpu"}),
        (host, "hf_device_map", {"": "disk"}),
        (host, "hf_quantizer", object()),
        (host.generation_config, "cache_implementation", "static"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value, raising=False)
            assert exclusive(host) is lock_of(host), name
    monkeypatch.setattr(host, "hf_device_map", {"model": 0, "lm_head": 1}, raising=False)
    assert exclusive(host) is not lock_of(host)
    for family in known_families():
        kind = type("Host", (torch.nn.Module,), {"config": host.config.from_dict({})})
        kind.config.model_type = family.model_type
        other = kind()
        assert (exclusive(other) is lock_of(other)) == bool(family.stateful_attributes)


def test_unknown_family_is_an_error_that_says_what_to_do():
    host, _ = tiny_hosts.build("llava")
    host.config.model_type = "made_up"
    with pytest.raises(ValueError, match=r"'made_up' are untested; known are llava, .*register"):
        family_of(host)


def test_families_are_registered_once():
    llava = family_of(tiny_hosts.build("llava")[0])
    register_family(llava)
    with pytest.raises(ValueError, match="'llava' is already known"):
        register_family(HostFamily("llava", "Another"))
    with pytest.raises(ValueError, match="cache_mode must be"):
        HostFamily("new", "New", "sometimes")
    with pytest.raises(ValueError, match="needs model_type and name"):
        HostFamily("", "New")


def test_the_page_has_the_table():
    page = (Path(__file__).parents[3] / "docs/transformers.md").read_text()
    found = re.search(r"<!-- hosts: begin.*? -->\n(.*?)<!-- hosts: end -->", page, re.S)[1]
    assert found == host_table(), "run scripts/make_host_table.py and put its output there"
    lines = found.splitlines()
    assert len(lines) == 2 + len(tiny_hosts.FAMILIES)
    assert all(line.count("|") == 5 for line in lines)


def test_tokenizer_that_owns_the_placeholder():
    host, processor = tiny_hosts.build("qwen2_vl")
    processor.tokenizer.add_tokens([FORGERY_TOKEN])
    with pytest.raises(ValueError, match="owns <forgery> already"):
        attach_forgery(host, processor, tiny.kfd())


def test_encoder_decoder_language_model_is_refused():
    host, processor = tiny_hosts.build("instructblip")
    host.config.text_config.is_encoder_decoder = True
    with pytest.raises(ValueError, match="InstructBLIP host has an encoder-decoder"):
        attach_forgery(host, processor, tiny.kfd())
