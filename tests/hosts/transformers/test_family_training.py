"""The contract that every known family keeps: labels, gradients, the adapter on disk."""

import random

import pytest
import torch

from llava_forgery.constants import FAKE, IGNORE_INDEX
from llava_forgery.hosts.transformers.chat import special_tokens
from llava_forgery.hosts.transformers.loading import load_adapter
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.hosts.transformers.prompts import collate, encode
from llava_forgery.hosts.transformers.vlm import ForgeryVLM
from llava_forgery.qa.build import build_conversation, build_prompt
from llava_forgery.qa.conversation import Conversation, Message
from llava_forgery.train.stage2 import Stage2
from tests import tiny, tiny_hosts
from tests.hosts.transformers.contract import (
    LORA,
    N_FORGERY,
    PHOTOGRAPHS,
    attach,
    batch_of,
    faces,
    perturb,
)

# Where each family's language model lies, written out: the code asks get_decoder.
DECODERS = dict.fromkeys(tiny_hosts.FAMILIES, "model.language_model") | {
    "idefics3": "model.text_model",
    "smolvlm": "model.text_model",
    "instructblip": "language_model.model",
}


@pytest.fixture(scope="module", params=tiny_hosts.family_params())
def vlm(request) -> ForgeryVLM:
    """One for all tests that change nothing of it."""
    return perturb(attach(request.param))


@pytest.fixture(params=tiny_hosts.family_params())
def model_type(request) -> str:
    return request.param


def _training_sample(vlm: ForgeryVLM, conversation: Conversation) -> dict[str, torch.Tensor]:
    sample = encode(conversation, vlm.processor, PHOTOGRAPHS[1], n_forgery_tokens=N_FORGERY)
    return collate([sample], vlm.processor.tokenizer.pad_token_id)


def test_exactly_the_answers_are_supervised(vlm):
    item = build_conversation(FAKE, ("nose",), rng=random.Random(1), score=0.9, follow_ups=2)
    answers = [message.text for message in item.messages if message.role == "assistant"]
    assert len(answers) == 3
    sample = _training_sample(vlm, item)
    ids, labels = sample["input_ids"][0].tolist(), sample["labels"][0].tolist()
    runs: list[list[int]] = []
    for i, label in enumerate(labels):
        if label == IGNORE_INDEX:
            continue
        assert label == ids[i]
        if i == 0 or labels[i - 1] == IGNORE_INDEX:
            runs.append([])
        runs[-1].append(label)
    tokenizer = vlm.processor.tokenizer
    assert [tokenizer.decode(run, skip_special_tokens=True).strip() for run in runs] == answers
    # Each run ends with one special token, which ends the turn.
    marks = set(tokenizer.convert_tokens_to_ids(list(special_tokens(tokenizer))))
    for run in runs:
        special = [token in marks for token in run]
        assert special == [False] * (len(run) - 1) + [True]


def test_no_answer_shows_before_it_is_given(vlm):
    """Not through a bidirectional prefix, nor through a Q-Former that reads the prompt."""

    def said(*answers: str) -> Conversation:
        prompt = build_prompt(0.7).messages[0].text
        turns = (prompt, answers[0], "Where is the artifact?", answers[1])
        roles = ("user", "assistant") * 2
        return Conversation(tuple(map(Message, roles, turns)), FAKE, ("nose",))

    one = _training_sample(vlm, said("Yes, it is.", "At the nose."))
    two = _training_sample(vlm, said("Yes, it is.", "Look at the nose and nowhere else."))
    three = _training_sample(vlm, said("No.", "At the nose."))
    images = {"forgery_images": faces()[:2], "images_per_sample": [2]}

    def logits(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            return vlm(**inputs, **images).logits[0]

    base = logits(one)
    for other in (two, three):
        a, b = one["input_ids"][0], other["input_ids"][0]
        size = min(len(a), len(b))
        common = int((a[:size] == b[:size]).long().cumprod(0).sum())
        assert int((one["labels"][0] != IGNORE_INDEX).nonzero()[0]) <= common < size
        torch.testing.assert_close(logits(other)[:common], base[:common], atol=1e-4, rtol=1e-4)


def test_loss_of_stage_2_is_the_hosts_own(vlm):
    item = build_conversation(FAKE, ("nose",), rng=random.Random(1), score=0.9, follow_ups=1)
    batch = _training_sample(vlm, item)
    images = {"forgery_images": faces()[:2], "images_per_sample": [2]}
    with torch.no_grad():
        expected = vlm(**batch, **images).loss
        found = Stage2(vlm)(**batch, **images)["loss"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def _general(vlm: ForgeryVLM, images: bool) -> dict[str, torch.Tensor]:
    """A batch of general data, with an image or of text alone."""
    question = "<image>\nWhat is this?" if images else "Who are you?"
    shown = PHOTOGRAPHS[0] if images else ()
    turns = (question, "I am a model.")
    sample = vlm.prompts.encode_turns(turns, shown, skill=False, max_length=512)
    return vlm.prompts.collate([sample])


def _order(vlm: ForgeryVLM, batch: dict[str, torch.Tensor]) -> list[str]:
    """The modules as a training step runs them, then the weights as their gradients come; the
    detector has a copy of its own in each process."""
    order, handles = [], []
    for name, module in vlm.named_modules():
        if not name.startswith("kfd"):
            handles.append(module.register_forward_pre_hook(lambda *_, n=name: order.append(n)))
    for name, parameter in vlm.named_parameters():
        if parameter.requires_grad:
            hook = parameter.register_post_accumulate_grad_hook
            handles.append(hook(lambda _, n=name: order.append(n)))
    Stage2(vlm)(**batch)["loss"].backward()
    for handle in handles:
        handle.remove()
    return order


@pytest.mark.parametrize("images", [True, False], ids=["image", "text"])
def test_general_data_is_the_bare_hosts_and_runs_what_the_skill_runs(model_type, images):
    """DeepSpeed counts on it: ZeRO-2 adds gradients up as they come, ZeRO-3 gathers weights as the
    modules run."""
    vlm = perturb(attach(model_type)).train()
    # With always, a question about an image is one of the skill's.
    vlm.placement = "placeholders"
    if model_type == "instructblip" and not images:
        with pytest.raises(ValueError, match="takes no text without an image"):
            _general(vlm, images)
        return
    general = _general(vlm, images)
    found = _order(vlm, general)
    for name, parameter in vlm.fpl.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name
    with torch.no_grad():
        expected = vlm.host(**general).loss
        torch.testing.assert_close(Stage2(vlm)(**general)["loss"], expected, atol=1e-5, rtol=1e-5)
    turns = ("<image>\nIs this fake?", "Yes.")
    sample = vlm.prompts.encode_turns(turns, PHOTOGRAPHS[0], skill=True, max_length=512)
    skill = {**vlm.prompts.collate([sample]), "forgery_images": faces()[:1]}
    assert found == _order(vlm, skill)


def test_the_hosts_projector_is_trained_saved_and_given_back(model_type, tmp_path):
    host, processor = tiny_hosts.build(model_type)
    before = {name: p.clone() for name, p in host.named_parameters()}
    vlm = attach_forgery(host, processor, tiny.kfd(), train_projector=True)
    own = set(vlm.projector.state())
    assert own
    assert set(vlm.trainable_names()) == {f"host.{name}" for name in own} | {
        f"fpl.{name}" for name, _ in vlm.fpl.named_parameters()
    }
    perturb(vlm).eval().save_pretrained(tmp_path / "adapter")
    again = load_adapter(tmp_path / "adapter", *tiny_hosts.build(model_type))
    for name, tensor in vlm.projector.state().items():
        assert torch.equal(again.projector.state()[name], tensor)
        assert not torch.equal(before[name], tensor)
    batch = batch_of(vlm)
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, vlm(**batch).logits)
    for model in (vlm, again):
        bare = model.detach()
        assert all(torch.equal(p, before[name]) for name, p in bare.named_parameters())


def test_exactly_fpl_and_the_language_models_lora_are_trained(model_type):
    vlm = attach(model_type)
    lora = {
        f"host.base_model.model.{DECODERS[model_type]}.layers.{layer}.self_attn.{name}_proj"
        f".lora_{part}.default.weight"
        for layer in range(2)
        for name in "qkvo"
        for part in "AB"
    }
    fpl = {f"fpl.{name}" for name, _ in vlm.fpl.named_parameters()}
    assert set(vlm.trainable_names()) == lora | fpl


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "prompt_tuning"])
def test_checkpointing_leaves_every_gradient(model_type, lora):
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        vlm = perturb(attach(model_type, lora)).train()
        if checkpointing:
            vlm.host.gradient_checkpointing_enable()
        item = build_conversation(FAKE, ("nose",), rng=random.Random(1), score=0.9)
        batch = _training_sample(vlm, item)
        vlm(**batch, forgery_images=faces()[:2], images_per_sample=[2]).loss.backward()
        found = {n: p.grad for n, p in vlm.named_parameters() if p.grad is not None}
        assert set(found) == set(vlm.trainable_names())
        return found

    plain, checkpointed = gradients(False), gradients(True)
    for name, gradient in plain.items():
        assert float(gradient.abs().max()) > 0, name
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-5, rtol=1e-4)


def test_saved_and_loaded_adapter_gives_the_same_logits(vlm, tmp_path):
    batch = batch_of(vlm)
    with torch.no_grad():
        expected = vlm(**batch).logits
    vlm.save_pretrained(tmp_path / "adapter")
    host, processor = tiny_hosts.build(vlm.family.model_type)
    loaded = load_adapter(tmp_path / "adapter", host, processor)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, expected, atol=1e-5, rtol=1e-5)


def test_adapter_of_another_family_is_refused(tmp_path):
    attach("qwen2_vl").save_pretrained(tmp_path / "adapter")
    host, processor = tiny_hosts.build("qwen2_5_vl")
    with pytest.raises(ValueError, match="host with class Qwen2VLFor.*, this one has Qwen2_5_VL"):
        load_adapter(tmp_path / "adapter", host, processor)
