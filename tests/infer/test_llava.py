"""Verdicts and dialogues through the real ``llava`` package; its own command line as well."""

import json
import shutil
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from PIL import Image
from transformers import DynamicCache, TextStreamer

from llava_forgery.cli.app import load_predictor
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.hosts.auto import AutoForgeryModel
from llava_forgery.hosts.llava.checkpoint import save_llava_adapter
from llava_forgery.hosts.llava.encoder import LlavaEncoder
from llava_forgery.hosts.llava.hooks import FORGERY_TOKEN_INDEX, IMAGE_TOKEN_INDEX
from llava_forgery.hosts.llava.loading import merge_llava
from llava_forgery.hosts.llava.model import attach_to_llava
from llava_forgery.hosts.llava.names import TEMPLATE_KEY
from llava_forgery.hosts.llava.prompts import TEMPLATE
from llava_forgery.hosts.llava.register import register, unregister
from llava_forgery.hosts.llava.text import render_turns
from llava_forgery.hosts.llava.vlm import LlavaForgeryVLM
from llava_forgery.infer.dialogue import Dialogue
from llava_forgery.qa.build import build_prompt
from llava_forgery.qa.conversation import Conversation, Message
from tests import tiny, tiny_llava

tiny_llava.require_llava()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    tiny_llava.save_llava(folder / "tiny-llava", aspect="anyres")
    tiny_llava.save_kfd(folder / "kfd")
    _, model, _ = tiny_llava.load_llava(folder / "tiny-llava")
    attach_to_llava(model, folder / "kfd", FPLConfig(1, 3, n_forgery=2))
    setattr(model.config, TEMPLATE_KEY, "v1")
    save_llava_adapter(model, folder / "tiny-llava-fpl")
    Image.fromarray(tiny.picture(0, 80)).save(folder / "face.png")
    return folder


@pytest.fixture(scope="module")
def predictor(root):
    predictor = load_predictor(root / "tiny-llava-fpl", backend="llava", device="cpu")
    predictor.max_new_tokens = 6
    return predictor


def test_a_verdict(root, predictor):
    assert isinstance(predictor.vlm, LlavaForgeryVLM)
    verdict = predictor.predict(root / "face.png", cropped=True)
    assert 0 < verdict.p_yes < 1
    assert verdict.mask.shape == (tiny.SIZE, tiny.SIZE)
    faces = predictor.find_faces(root / "face.png", cropped=True) * 2
    scores, p_yes = predictor.predict_scores(faces)
    assert scores == pytest.approx([verdict.score] * 2, abs=1e-5)
    assert p_yes == pytest.approx([verdict.p_yes] * 2, abs=1e-5)


def _said(*turns):
    roles = ("user", "assistant") * len(turns)
    messages = tuple(Message(role, text) for role, text in zip(roles, turns, strict=False))
    return Conversation(messages, label=None)


def test_the_prompt_is_the_one_of_training(predictor):
    prompts, picture = predictor.vlm.prompts, [Image.fromarray(tiny.picture())]
    prompt = _said("Is this a deepfake image?")
    ids = prompts.encode(prompt, picture)["input_ids"].tolist()
    shared, yes, no = prompts.candidate_ids(prompt)
    assert yes != no
    assert [token for token in ids if token < 0] == [IMAGE_TOKEN_INDEX] + [FORGERY_TOKEN_INDEX] * 2
    text, _ = render_turns(["<image>\nIs this a deepfake image?"], prompts.style, skill=True)
    assert text.endswith("USER: <image><forgery><forgery>\nIs this a deepfake image? ASSISTANT:")
    sample = prompts.encode(_said("Is this a deepfake image?", "Yes, at the nose."), picture)
    begun = [*ids, *shared, yes]
    assert sample["input_ids"].tolist()[: len(begun)] == begun
    said = sample["labels"][sample["labels"] >= 0]
    assert prompts.tokenizer.decode(said).strip() == "Yes, at the nose.</s>"
    sample = prompts.encode(_said("Why?", "At the nose."), picture, label_end=False)
    assert prompts.decode(sample["labels"][sample["labels"] >= 0]) == "At the nose."
    with pytest.raises(ValueError, match="more than max_length 10"):
        prompts.encode(prompt, picture, max_length=10)
    with pytest.raises(ValueError, match="images is empty"):
        prompts.encode(prompt, [])


def test_templates(predictor, caplog):
    host = predictor.vlm.host
    prompts = LlavaEncoder(host.config, predictor.vlm.tokenizer, host.n_forgery, TEMPLATE)
    assert "was trained with the template 'v1'" in caplog.text
    text, _ = render_turns(["<image>\nWhy?"], prompts.style, skill=True)
    # Right behind the image, where the model puts them by itself.
    assert "###Human: <Img><image><forgery><forgery></Img> Why?###Assistant:" in text
    assert prompts.stopping()["stop_strings"] == ["###"]
    assert predictor.vlm.prompts.stopping() == {}
    with pytest.raises(ValueError, match="not one of LLaVA's conversation templates"):
        LlavaForgeryVLM(predictor.vlm.host, predictor.vlm.tokenizer, "v99")


def test_a_cache_must_hold_the_image(predictor):
    ids = predictor.vlm.prompts.encode(build_prompt(), [Image.fromarray(tiny.picture())])
    with pytest.raises(ValueError, match="must hold all images and placeholders"):
        predictor.vlm.generate(
            ids["input_ids"][None], past_key_values=DynamicCache(), cached_tokens=3
        )
    with pytest.raises(ValueError, match="needs cached_tokens"):
        predictor.vlm.generate(torch.tensor([[5, 6]]), past_key_values=DynamicCache())
    with pytest.raises(RuntimeError, match=r"eval\(\) before generate"):
        LlavaForgeryVLM(predictor.vlm.host, predictor.vlm.tokenizer).train().generate(None)
    predictor.vlm.eval()


def test_a_streamer_is_shown_answers_only(root, predictor, capsys):
    dialogue = Dialogue(predictor.vlm, tiny.picture(), max_new_tokens=6)
    for question in ("Is this a deepfake image?", "Why?"):
        answer = dialogue.ask(question, TextStreamer(predictor.vlm.tokenizer))
        shown = capsys.readouterr().out.removesuffix("\n").removesuffix("</s>")
        assert shown.strip() == answer
    assert dialogue.reused_tokens


def test_other_hosts_are_refused(root):
    with pytest.raises(ValueError, match="not a forgery adapter in LLaVA's layout"):
        load_predictor(root / "tiny-llava", backend="llava", device="cpu")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_predictor(root / "tiny-llava-fpl", "nowhere", device="cpu")


def test_what_the_folder_names_is_not_downloaded_unasked(root, tmp_path, network):
    folder = shutil.copytree(root / "tiny-llava-fpl", tmp_path / "tiny-llava-fpl")
    base = str(root / "tiny-llava")
    load_predictor(folder, base, device="cpu")
    tiny.edit_json(folder / "config.json", mm_forgery_host__name_or_path="evil/host")
    with pytest.raises(FileNotFoundError, match="names the host 'evil/host' and the vision tower"):
        load_predictor(folder, None, device="cpu")
    # The user's host, with its own tower.
    load_predictor(folder, base, device="cpu")
    # A tower that stands in the adapter alone is not the user's choice.
    tiny.edit_json(folder / "config.json", mm_vision_tower="openai/evil")
    message = r"config\.json names the vision tower 'openai/evil', which is not on this machine"
    with pytest.raises(FileNotFoundError, match=message):
        load_predictor(folder, base, device="cpu")
    with pytest.raises(FileNotFoundError, match="--allow-download"):
        AutoForgeryModel.from_pretrained(folder, base, device="cpu")
    assert network == []
    with pytest.raises(FileNotFoundError, match="could not be loaded .*'openai/evil'"):
        load_predictor(folder, base, device="cpu", allow_download=True)
    assert set(network) == {"huggingface.co"}


def test_a_whole_models_tower_is_not_downloaded_unasked(root, tmp_path, network):
    merge_llava(root / "tiny-llava-fpl", tmp_path / "tiny-llava")
    load_predictor(tmp_path / "tiny-llava", None, device="cpu")
    tiny.edit_json(tmp_path / "tiny-llava/config.json", mm_vision_tower="openai/evil")
    with pytest.raises(FileNotFoundError, match="names the vision tower 'openai/evil', which is"):
        load_predictor(tmp_path / "tiny-llava", None, device="cpu")
    assert network == []


def test_the_detectors_encoder_is_not_downloaded_unasked(root, tmp_path, network):
    folder = shutil.copytree(root / "tiny-llava-fpl", tmp_path / "tiny-llava-fpl")
    encoder = {"kind": "open_clip", "name": "RN50", "pretrained": "openai"}
    changes = {f"config__encoder__{name}": value for name, value in encoder.items()}
    tiny.edit_json(folder / "kfd/kfd_config.json", **changes)
    message = r"kfd_config\.json names the encoder 'RN50' and the weights 'openai', which is not"
    with pytest.raises(FileNotFoundError, match=message):
        load_predictor(folder, str(root / "tiny-llava"), device="cpu")
    assert network == []
    # Allowed, it is read inside LLaVA's own loading.
    with pytest.raises(RuntimeError, match="no network in tests"):
        load_predictor(folder, str(root / "tiny-llava"), device="cpu", allow_download=True)
    assert network


@pytest.mark.parametrize("layout", ["adapter", "merged"])
def test_llavas_command_line_answers_other_questions(root, layout, monkeypatch, capsys):
    cli = pytest.importorskip("llava.serve.cli")
    folder, base = root / "tiny-llava-fpl", str(root / "tiny-llava")
    if layout == "merged":
        folder, base = root / "tiny-llava-merged", None
        merge_llava(root / "tiny-llava-fpl", folder)
    # It switches torch's initialisation off, for good.
    for layer in (torch.nn.Linear, torch.nn.LayerNorm):
        monkeypatch.setattr(layer, "reset_parameters", layer.reset_parameters)
    questions = iter(["What do you see?", "And then?", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(questions))
    register()
    try:
        cli.main(
            Namespace(
                model_path=str(folder), model_base=base, image_file=str(root / "face.png"),
                device="cpu", conv_mode="llava_v1", temperature=0, max_new_tokens=3,
                load_8bit=False, load_4bit=False, debug=True,
            )
        )  # fmt: skip
    finally:
        unregister()
    printed = capsys.readouterr().out
    assert printed.count("'outputs'") == 2
    assert "exit..." in printed


@pytest.mark.slow
def test_the_command_prints_json(root):
    result = subprocess.run(
        [sys.executable, "-m", "llava_forgery.cli", "detect", str(root / "face.png"), "--cropped",
         "--json", "--model", str(root / "tiny-llava-fpl"), "--backend", "llava",
         "--device", "cpu"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (record,) = json.loads(result.stdout)
    assert set(record["faces"][0]) >= {"score", "p_yes", "answer"}
