"""Answers that were cut off are told apart from those that were over."""

import os

import pytest
import torch
from PIL import Image

from llava_forgery.cli.predict import printable
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.infer.answering import was_cut
from llava_forgery.infer.batch import judge_files
from llava_forgery.infer.predictor import ForgeryPredictor
from tests import tiny


@pytest.fixture
def predictor():
    host, processor = tiny.llava()
    vlm = attach_forgery(host, processor, tiny.kfd())
    return ForgeryPredictor(vlm, max_new_tokens=5)


def test_an_answer_at_the_limit_is_marked(predictor):
    faces = [predictor.find_faces(tiny.picture(i), cropped=True)[0] for i in range(2)]
    assert [face.truncated for face in predictor.predict_faces(faces)] == [True, True]
    assert predictor.predict_faces(faces)[0].to_dict()["truncated"]
    dialogue = predictor.dialogue(tiny.picture(0), cropped=True)
    dialogue.ask("Is it real?")
    assert dialogue.truncated
    # With every token an end, the first is the last.
    config = predictor.vlm.host.generation_config
    config.eos_token_id = list(range(len(predictor.vlm.processor.tokenizer)))
    assert [face.truncated for face in predictor.predict_faces(faces)] == [False, False]
    dialogue.ask("Why?")
    assert not dialogue.truncated


def test_an_end_at_the_limit_is_an_end(predictor):
    vlm = predictor.vlm
    end = vlm.host.generation_config.eos_token_id
    assert was_cut(vlm, torch.tensor([5, 6, 7]), 3)
    assert not was_cut(vlm, torch.tensor([5, 6]), 3)
    assert not was_cut(vlm, torch.tensor([5, 6, end]), 3)


@pytest.mark.parametrize(("asked", "found"), [("auto", torch.float32), ("float16", torch.float16)])
def test_float16_hosts_run_in_float32_on_a_cpu(tmp_path, asked, found):
    host, processor = tiny.llava()
    host.half().save_pretrained(tmp_path / "host")
    processor.save_pretrained(tmp_path / "host")
    vlm = attach_forgery(host.float(), processor, tiny.kfd(), lora=LoraSettings(r=2, alpha=4))
    vlm.save_pretrained(tmp_path / "adapter")
    loaded = ForgeryPredictor.from_pretrained(
        tmp_path / "adapter", str(tmp_path / "host"), device="cpu", dtype=asked
    )
    assert loaded.vlm.host.get_input_embeddings().weight.dtype == found


def test_names_that_are_no_text_stand_in_the_records(predictor, tmp_path):
    name = os.fsdecode(b"a-\xe4\n.png")
    Image.fromarray(tiny.picture()).save(tmp_path / name)
    (result,) = judge_files(predictor, [tmp_path / name], cropped=True)
    assert result.error is None
    assert result.to_dict()["file"].endswith("a-\\udce4\n.png")
    assert printable(result.file).endswith("a-\\udce4\\n.png")
