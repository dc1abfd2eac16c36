"""Names of the hub wherever a folder is taken, and uploads; without the hub."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from llava_forgery import ForgeryPredictor, load_pseudo_word
from llava_forgery.downloads import named_by
from llava_forgery.evaluation.scorers import load_scorer
from llava_forgery.hosts.auto import AutoForgeryModel
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.pseudo_word import PseudoWordConfig, attach_pseudo_word
from llava_forgery.hosts.transformers.export import export_transformers
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.hub import local_folder, push_folder
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from tests import tiny
from tests.hub_server import COMMIT, Hub, put

OLDER = "0" * 40


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """host/, adapter/ and kfd/ beside each other."""
    folder = tmp_path_factory.mktemp("saved")
    model, processor = tiny.llava()
    for part in (model, processor):
        part.save_pretrained(folder / "host")
    model.name_or_path = str(folder / "host")
    vlm = attach_forgery(model, processor, tiny.kfd(), lora=LoraSettings(r=2))
    vlm.save_pretrained(folder / "adapter")
    vlm.kfd.save_pretrained(folder / "kfd")
    return folder


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_name_is_a_folder_of_the_cache(cache, saved, tmp_path, monkeypatch):
    put(cache, "me/det", saved / "kfd")
    put(cache, "me/det", saved / "adapter", OLDER, "v1")
    assert local_folder("me/det").name == COMMIT
    assert local_folder("me/det@v1").name == OLDER
    assert local_folder(f"me/det@{OLDER}").name == OLDER
    # A folder that is there comes first.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "det").mkdir(parents=True)
    assert local_folder("me/det") == Path("me/det")
    for name in ("/no/such", "../no", "adapter", "a/b/c"):
        assert local_folder(name) == Path(name)
    with pytest.raises(FileNotFoundError, match=r"no folder me/none, and the hub has none .*@rev"):
        local_folder("me/none")


def test_wherever_a_folder_is_taken(cache, saved, tmp_path):
    put(cache, "me/det", saved / "kfd")
    put(cache, "me/adapter", saved / "adapter")
    host = str(saved / "host")
    detector = KnowledgeGuidedForgeryDetector.from_pretrained("me/det")
    vlm = AutoForgeryModel.from_pretrained("me/adapter@main", host)
    assert vlm.has_lora
    pictures = [tiny.picture()]
    assert load_scorer("me/det")(pictures) == load_scorer(saved / "kfd")(pictures)
    assert load_scorer("me/adapter", host)(pictures) == load_scorer(saved / "adapter")(pictures)
    assert ForgeryPredictor.from_pretrained("me/det").size == detector.config.encoder.image_size
    word = attach_pseudo_word(*tiny.llava(), PseudoWordConfig())
    word.save_pretrained(tmp_path / "word")
    put(cache, "me/word", tmp_path / "word")
    again = load_pseudo_word("me/word", *tiny.llava())
    assert all(torch.equal(a, b) for a, b in zip(again.word.state_dict().values(),
               word.word.state_dict().values(), strict=True))  # fmt: skip


@pytest.mark.slow
def test_an_exported_checkpoint(cache, saved, tmp_path):
    put(cache, "me/adapter", saved / "adapter")
    export_transformers("me/adapter", tmp_path / "whole", str(saved / "host"))
    put(cache, "me/whole", tmp_path / "whole")
    assert AutoForgeryModel.from_pretrained("me/whole").device.type in ("cpu", "cuda")


def test_what_a_file_names_is_not_downloaded_for_that(network, tmp_path):
    with (
        pytest.raises(FileNotFoundError, match="not downloaded by default"),
        named_by(tmp_path / "config.json", {"detector": "evil/det"}),
    ):
        KnowledgeGuidedForgeryDetector.from_pretrained("evil/det")
    assert network == []


def test_what_cannot_be_uploaded(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        push_folder(tmp_path / "none", "me/x")
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="holds no safetensors"):
        push_folder(tmp_path, "me/x")
    with pytest.raises(ValueError, match="expected owner/name"):
        push_folder(tmp_path, "x")


UPLOAD = """
import sys
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.hub import local_folder
from llava_forgery.cli import app
source, adapter, host = sys.argv[1:]
detector = KnowledgeGuidedForgeryDetector.from_pretrained(source)
print(detector.push_to_hub("me/det", revision="v1", token="hf_x"))
print(local_folder("me/det@v1", token="hf_x"))
KnowledgeGuidedForgeryDetector.from_pretrained("me/det@v1")
app(["push", adapter, "me/adapter"], standalone_mode=False)
app(["convert", "export-transformers", "--model", "me/adapter", "--base-model", host,
     "--out", adapter + "-whole"], standalone_mode=False)
app(["push", adapter + "-whole", "me/whole"], standalone_mode=False)
from transformers import AutoModelForImageTextToText, AutoProcessor
AutoModelForImageTextToText.from_pretrained("me/whole", trust_remote_code=True)
AutoProcessor.from_pretrained("me/whole", trust_remote_code=True)
"""


@pytest.mark.slow
def test_up_and_down_through_the_hubs_interface(saved, tmp_path):
    """As another program sees the hub: its own process, huggingface_hub's own requests."""
    adapter = shutil.copytree(saved / "adapter", tmp_path / "adapter")
    (adapter / "optimizer.pt").write_bytes(b"a pickle")
    with Hub() as hub:
        said = subprocess.run(
            [sys.executable, "-c", UPLOAD, saved / "kfd", adapter, saved / "host"],
            env={**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"),
                 "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_x", "HF_HUB_DISABLE_XET": "1",
                 "PYTHONPATH": str(Path(__file__).parents[1])},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert said.returncode == 0, said.stderr[-3000:] + json.dumps(hub.unknown)
    assert hub.unknown == []
    files = hub.repositories
    assert set(files["me/det"]["v1"]) == {
        p.relative_to(saved / "kfd").as_posix() for p in (saved / "kfd").rglob("*") if p.is_file()
    } - {"knowledge.safetensors"}  # fmt: skip
    assert "optimizer.pt" not in files["me/adapter"]["main"]
    assert "not uploaded" in said.stderr
    assert files["me/adapter"]["main"]["fpl.safetensors"] == (
        (adapter / "fpl.safetensors").read_bytes()
    )
    assert "modeling_llava_forgery.py" in files["me/whole"]["main"]
    # The token went along.
    assert hub.tokens == {"Bearer hf_x"}
