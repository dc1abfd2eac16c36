"""Which of the tried families can share their tower: these give the same, the others say why."""

import pytest
import torch
from PIL import Image

from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.hosts.transformers.prompts import collate, encode
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.kfd.host_config import host_config
from llava_forgery.qa.build import build_prompt
from tests import tiny, tiny_hosts

SHARED = ("llava", "internvl", "gemma3", "paligemma")
REFUSED = {
    "llava_next": "cuts images into tiles",
    "llava_onevision": "cuts images into tiles",
    "idefics3": "cuts images into tiles",
    "smolvlm": "cuts images into tiles",
    "qwen2_vl": "not a tower for square images",
    "qwen2_5_vl": "not a tower for square images",
    "qwen3_vl": "not a tower for square images",
    "instructblip": "qformer_input_ids",
}


def _detector(folder, host, processor):
    host.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    # The tiny hosts have 2 x 2 patches: too few for the small heads.
    config = host_config(str(folder), heads="paper", context_length=2)
    return KnowledgeGuidedForgeryDetector.from_config(config).eval()


def test_every_family_is_spoken_for():
    assert {*SHARED, *REFUSED} == set(tiny_hosts.FAMILIES)


@pytest.mark.parametrize("family", SHARED)
def test_one_encoding_equals_two(family, tmp_path):
    host, processor = tiny_hosts.build(family)
    detector = _detector(tmp_path, host, processor)
    picture = tiny.picture(0, detector.config.encoder.image_size)
    images = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        expected = detector(images)
    vlm = attach_forgery(host, processor, detector).eval()
    sample = encode(
        build_prompt(0.5),
        vlm.processor,
        images=[Image.fromarray(picture)],
        n_forgery_tokens=vlm.n_forgery,
    )
    inputs = collate([sample], processor.tokenizer.pad_token_id)
    found = vlm.detect(images)
    torch.testing.assert_close(found.class_logits, expected.class_logits, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.mask_logits, expected.mask_logits, atol=1e-6, rtol=1e-6)
    assert inputs["pixel_values"].shape == found.pixel_values.shape
    inputs["pixel_values"] = found.pixel_values
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2}
    with torch.no_grad():
        # A detection without features lets the host encode for itself.
        separate = vlm(**inputs, detection=expected).logits
        torch.testing.assert_close(vlm(**inputs).logits, separate, atol=1e-6, rtol=1e-6)
        answer = vlm.generate(**inputs, detection=expected, **options)
    assert torch.equal(vlm.generate(**inputs, **options), answer)


@pytest.mark.parametrize("family", REFUSED)
def test_the_others_are_refused_at_stage_1(family, tmp_path):
    host, processor = tiny_hosts.build(family)
    with pytest.raises(ValueError, match=f"{REFUSED[family]}.*encoder of its own"):
        _detector(tmp_path, host, processor)
