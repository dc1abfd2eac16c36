"""Placement ``always``: prompts of programs that know nothing of the skill, on every family."""

import logging

import pytest
import torch
from PIL import Image

from llava_forgery.constants import FORGERY_TOKEN, IMAGE_TOKEN
from llava_forgery.files import read_json
from llava_forgery.hosts.adapter import read_adapter_config
from llava_forgery.hosts.layouts import change_placement
from llava_forgery.hosts.placement import ALWAYS, PLACEHOLDERS
from llava_forgery.hosts.transformers.client_prompts import pictures_of
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.hosts.transformers.processors import conventions_of
from llava_forgery.hosts.transformers.prompts import ProcessorEncoder
from llava_forgery.qa.build import build_prompt
from llava_forgery.qa.conversation import Conversation, Message
from tests import tiny, tiny_hosts
from tests.hosts.transformers.contract import perturb

# Wide, so that tiles, patches and squeezed pictures show; the second sample has two images.
PHOTOGRAPHS = [
    Image.fromarray(tiny.picture(i, 96)).resize(size)
    for i, size in enumerate(((96, 64), (64, 96), (96, 96)))
]
SHOWN = (PHOTOGRAPHS[:1], PHOTOGRAPHS[1:])
QUESTIONS = ("Is it?", "Is one of these two photographs a deepfake?")


@pytest.fixture(scope="module", params=tiny_hosts.FAMILIES)
def vlm(request):
    host, processor = tiny_hosts.build(request.param)
    return perturb(attach_forgery(host, processor, tiny.kfd(), crop="none")).eval()


def _batch(vlm, count, side="left"):
    """Both samples, with so many placeholders behind each image; a client writes none."""
    prompts = ProcessorEncoder(vlm.processor, count, vlm._images)
    samples = [
        prompts.encode(build_prompt(question=question), images)
        for question, images in zip(QUESTIONS, SHOWN, strict=True)
    ]
    return prompts.collate(samples, side)


def _pictures(vlm, batch):
    processor = vlm.processor.image_processor
    return pictures_of(batch, batch["input_ids"], vlm._images, processor)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_clients_prompt_says_what_written_placeholders_say(vlm, side):
    assert vlm.placement == vlm.prompts.placement == ALWAYS
    client, written = _batch(vlm, 0, side), _batch(vlm, vlm.n_forgery, side)
    images = vlm._clients.frame(_pictures(vlm, client), 64, "none")
    shown = {"forgery_images": images, "images_per_sample": [1, 2]}
    with torch.no_grad():
        found, expected = vlm(**client), vlm(**written, **shown)
    held = written["attention_mask"].bool()
    assert found.logits.shape == expected.logits.shape
    torch.testing.assert_close(found.logits[held], expected.logits[held], rtol=0, atol=1e-5)
    if side == "right":
        return
    for options in ({"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}):
        answers = []
        for batch in (client, {**written, **shown}):
            torch.manual_seed(0)
            options = {"max_new_tokens": 3, "do_sample": False, **options}
            given = vlm.generate(**batch, **options)
            start = batch["input_ids"].shape[1]
            ids = batch["input_ids"].repeat_interleave(len(given) // 2, 0)
            assert torch.equal(given[:, :start], ids)
            answers.append(given[:, start:])
        assert torch.equal(*answers)


def test_an_image_of_a_later_turn():
    host, processor = tiny.llava()
    vlm = perturb(attach_forgery(host, processor, tiny.kfd(), crop="none")).eval()
    client = f"USER: Hi ASSISTANT: Yes? USER: {IMAGE_TOKEN}\nReal? ASSISTANT:"
    written = client.replace(IMAGE_TOKEN, IMAGE_TOKEN + FORGERY_TOKEN * vlm.n_forgery)
    client, written = (
        processor(images=PHOTOGRAPHS[0], text=text, return_tensors="pt")
        for text in (client, written)
    )
    images = vlm._clients.frame(_pictures(vlm, client), 64, "none")
    with torch.no_grad():
        found, expected = vlm(**client), vlm(**written, forgery_images=images)
    assert found.logits.shape == expected.logits.shape
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-5)


def test_labels_move_with_their_tokens(vlm):
    if vlm.family.model_type in ("paligemma", "instructblip"):
        pytest.skip("the host's own loss needs inputs that only training makes")
    said = Conversation((Message("user", "Is it?"), Message("assistant", "No.")), label=0)
    losses = []
    for count in (0, vlm.n_forgery):
        prompts = ProcessorEncoder(vlm.processor, count, vlm._images)
        batch = prompts.collate([prompts.encode(said, SHOWN[1])])
        if not count:
            images = vlm._clients.frame(_pictures(vlm, batch), 64, "none")
            shown = {}
        with torch.no_grad():
            losses.append(float(vlm(**batch, **shown).loss))
        shown = {"forgery_images": images, "images_per_sample": [2]}
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_the_detector_sees_the_pictures(vlm):
    """As far as the host's tensors show them: in their own proportions where these can be known."""
    for found, photo in zip(_pictures(vlm, _batch(vlm, 0)), PHOTOGRAPHS, strict=True):
        small = photo.resize((16, 16), Image.Resampling.BOX)
        seen = Image.fromarray(found).resize((16, 16), Image.Resampling.BOX)
        difference = abs(torch.tensor(list(small.tobytes())) - torch.tensor(list(seen.tobytes())))
        if vlm.family.pixels != "squares" or photo.width == photo.height:
            assert float(difference.float().mean()) < 12
        if vlm.family.pixels in ("first tile", "patches"):
            width, height = found.shape[1], found.shape[0]
            assert width / height == pytest.approx(photo.width / photo.height, rel=0.15)


def test_text_alone_and_a_cached_turn(vlm):
    client = _batch(vlm, 0)
    one = dict(client)
    if conventions_of(vlm.processor).takes_text_alone:
        words = vlm.processor.tokenizer("Hello there", return_tensors="pt")
        with torch.no_grad():
            own = vlm.host(**words).logits
            assert torch.equal(vlm(**words).logits, own)
        assert vlm.generate(**words, max_new_tokens=2).shape[1] > words["input_ids"].shape[1]
    if vlm.family.cache_mode != "cache" or vlm.family.bidirectional_prefix:
        return
    options = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    first = vlm.generate(**one, **options, max_new_tokens=3)
    more = vlm.processor.tokenizer("Why?", add_special_tokens=False, return_tensors="pt")
    more = more["input_ids"].expand(2, -1)
    ids = torch.cat([first.sequences, more], dim=1)
    mask = torch.nn.functional.pad(
        one["attention_mask"], (0, ids.shape[1] - one["attention_mask"].shape[1]), value=1
    )
    kept = {name: one[name] for name in vlm.family.cached_turn_inputs}
    types = {
        name: torch.nn.functional.pad(one[name], (0, ids.shape[1] - one[name].shape[1]))
        for name in ("token_type_ids", "mm_token_type_ids")
        if name in one
    }
    cache = {"past_key_values": first.past_key_values}
    second = vlm.generate(
        input_ids=ids, attention_mask=mask, **types, **kept, **cache, **options, max_new_tokens=2
    )
    anew = vlm.generate(
        **{**one, "input_ids": ids, "attention_mask": mask, **types}, **options, max_new_tokens=2
    )
    assert torch.equal(second.sequences, anew.sequences)
    torch.testing.assert_close(second.logits[0], anew.logits[0], rtol=0, atol=1e-4)


def test_placeholders_leave_the_host_and_say_so_once(vlm, caplog):
    client = _batch(vlm, 0)
    vlm.placement, vlm._clients.said_unused = PLACEHOLDERS, False
    try:
        with torch.no_grad(), caplog.at_level(logging.WARNING):
            found, again = vlm(**client).logits, vlm(**client).logits
            own = vlm.host(**client).logits
    finally:
        vlm.placement = ALWAYS
    assert torch.equal(found, own)
    assert torch.equal(again, own)
    assert caplog.text.count("without the skill") == 1


def test_what_cannot_be_placed_is_an_error(vlm):
    client = _batch(vlm, 0)
    with pytest.raises(ValueError, match="position_ids are given"):
        vlm(**client, position_ids=torch.arange(client["input_ids"].shape[1])[None])
    blind = {"input_ids": client["input_ids"], "attention_mask": client["attention_mask"]}
    with pytest.raises(ValueError, match="no pixel_values are given|side by side|runs of image"):
        vlm(**blind)


def test_the_switch_is_saved_and_overridden(vlm, tmp_path):
    if vlm.family.model_type != "llava":
        pytest.skip("the same for all")
    vlm.save_pretrained(tmp_path / "adapter")
    config = read_json(tmp_path / "adapter/forgery_config.json")
    assert (config["placement"], config["crop"]) == ("always", "none")
    change_placement(tmp_path / "adapter", crop="face")
    assert read_adapter_config(tmp_path / "adapter")["crop"] == "face"
    change_placement(tmp_path / "adapter", "placeholders")
    assert read_adapter_config(tmp_path / "adapter")["placement"] == "placeholders"
