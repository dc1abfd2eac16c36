"""The skill in LLaVA's folders: what is written, and that LLaVA's own loader reads it."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from llava_forgery.cli import app
from llava_forgery.files import read_json, write_json
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.hosts.llava.checkpoint import save_llava_adapter
from llava_forgery.hosts.llava.loading import load_llava, merge_llava
from llava_forgery.hosts.llava.model import attach_to_llava, llava_lora_config
from llava_forgery.hosts.llava.prompts import forgery_prefix, tokenizer_forgery_token
from llava_forgery.hosts.llava.register import register, unregister
from llava_forgery.hosts.llava.skill import has_forgery_adapter
from llava_forgery.hosts.lora import LoraSettings
from tests import tiny, tiny_llava
from tests.hub_server import put

tiny_llava.require_llava()
loader = pytest.importorskip("llava.model.builder")
llava_llama = pytest.importorskip("llava.model.language_model.llava_llama")

# LLaVA's loader brings everything to float16.
HALF = {"rtol": 0, "atol": 0.03}


@pytest.fixture(scope="module", autouse=True)
def _llava_taught():
    register()
    yield
    unregister()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    tiny_llava.save_llava(folder / "tiny-llava")
    tiny_llava.save_kfd(folder / "kfd")
    return folder


def _skilled(root):
    words, model, _ = tiny_llava.load_llava(root / "tiny-llava")
    sizes = FPLConfig(hidden_size=1, num_layers=3, n_forgery=2)
    attach_to_llava(model, root / "kfd", sizes)
    tiny.tell_apart(model.get_model().forgery_projector, 10)
    return words, model


def _with_lora(model):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        peft = get_peft_model(model, llava_lora_config(model, LoraSettings(r=2))).eval()
        for name, weight in peft.named_parameters():
            if "lora_B" in name:
                weight.data.normal_(std=0.2)
    return peft


@pytest.fixture(scope="module")
def lora(root):
    """A LoRA folder, and the logits of the model before it was saved."""
    words, model = _skilled(root)
    peft = _with_lora(model)
    projector = model.get_model().mm_projector
    projector[0].bias.data.add_(0.5)
    trained = {f"model.mm_projector.{name}": p.data for name, p in projector.named_parameters()}
    folder = root / "tiny-llava-lora"
    save_llava_adapter(peft, folder, trained)
    inputs = _inputs(words)
    with torch.no_grad():
        return folder, inputs, peft(**inputs).logits


def _inputs(words):
    ids = tokenizer_forgery_token(forgery_prefix(2) + "Fake?", words, return_tensors="pt")[None]
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": ids,
        "images": torch.rand(1, 3, tiny_llava.SIDE, tiny_llava.SIDE, generator=generator),
        "forgery_images": torch.rand(1, 3, tiny.SIZE, tiny.SIZE, generator=generator),
    }


def _load(folder, base=None, name=None):
    return loader.load_pretrained_model(
        str(folder), None if base is None else str(base), name or folder.name,
        device_map="cpu", device="cpu",
    )  # fmt: skip


@torch.no_grad()
def _logits(model, inputs):
    half = {**inputs, "images": inputs["images"].half()}
    return model(**half).logits.float()


def test_lora_folder_has_llavas_layout(lora):
    folder = lora[0]
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "adapter_config.json", "adapter_model.safetensors",
        "non_lora_trainables.bin", "host_trainables.safetensors", "fpl.safetensors", "kfd",
        "README.md",
    }  # fmt: skip
    config = read_json(folder / "config.json")
    assert config["model_type"] == "llava_llama"
    assert config["mm_forgery_tower"] == "kfd:kfd"
    assert config["mm_forgery_host"]["name_or_path"] == "../tiny-llava"
    assert config["mm_forgery_format"] == 2
    assert set(config["mm_forgery_versions"]) == {"llava_forgery", "torch", "transformers", "peft"}
    # Nothing of the host, its tower or ours is among LoRA's tensors.
    names = load_file(folder / "adapter_model.safetensors")
    assert all(".model.layers." in name and "lora_" in name for name in names)


@pytest.mark.parametrize("reader", ["AutoConfig", "LlavaConfig"])
def test_llavas_loader_reads_a_lora_folder(root, lora, monkeypatch, reader):
    """Releases of LLaVA read its configuration by either class; only one notes the folder."""
    if reader == "LlavaConfig":
        monkeypatch.setattr(loader, "AutoConfig", llava_llama.LlavaConfig)
    folder, inputs, expected = lora
    words, model, _, _ = _load(folder, root / "tiny-llava")
    assert has_forgery_adapter(model)
    assert not any(p.requires_grad for p in model.get_model().forgery_projector.parameters())
    torch.testing.assert_close(_logits(model, inputs), expected, **HALF)
    other = {**inputs, "forgery_images": 1 - inputs["forgery_images"]}
    assert float((_logits(model, other) - expected).abs().max()) > HALF["atol"]
    assert tokenizer_forgery_token("Fake?", words) == words("Fake?").input_ids


@pytest.mark.slow
def test_llavas_loader_reads_a_lora_of_the_hub(root, lora, tmp_path, monkeypatch):
    """Without the pickle that the loader asks for: none is uploaded, and none downloaded."""
    folder, inputs, expected = lora
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    safe = shutil.copytree(folder, tmp_path / "safe")
    (safe / "non_lora_trainables.bin").unlink()
    put(tmp_path / "hub", "me/tiny-llava-lora", safe)
    for _ in range(2):
        _, model, _, _ = _load(Path("me/tiny-llava-lora"), root / "tiny-llava")
        torch.testing.assert_close(_logits(model, inputs), expected, **HALF)
    merge_llava("me/tiny-llava-lora", tmp_path / "tiny-llava-merged", str(root / "tiny-llava"))
    put(tmp_path / "hub", "me/tiny-llava-merged", tmp_path / "tiny-llava-merged")
    _, model, _, _ = _load(Path("me/tiny-llava-merged"))
    assert has_forgery_adapter(model)
    torch.testing.assert_close(_logits(model, inputs), expected, **HALF)


def test_an_adapter_in_float32_gives_the_same_logits(root, lora):
    folder, inputs, expected = lora
    config = loader.AutoConfig.from_pretrained(folder)
    model = loader.LlavaLlamaForCausalLM.from_pretrained(
        root / "tiny-llava", config=config, dtype=torch.float32
    )
    model.get_vision_tower().load_model()
    peft = PeftModel.from_pretrained(model, folder).eval()
    with torch.no_grad():
        assert torch.equal(peft(**inputs).logits, expected)


def test_a_merged_model_is_read_without_a_base(root, lora):
    folder, inputs, expected = lora
    merged = root / "moved" / "tiny-llava-merged"
    said = CliRunner().invoke(
        app, ["convert", "merge-llava", f"--model={folder}", f"--out={merged}"]
    )
    assert said.exit_code == 0, said.exception
    config = read_json(merged / "config.json")
    assert config["architectures"] == ["LlavaLlamaForCausalLM"]
    tensors = load_file(merged / "model.safetensors")
    assert not any("forgery" in name or "lora" in name for name in tensors)
    words, model, _, _ = _load(merged)
    assert len(words) == model.config.vocab_size
    torch.testing.assert_close(_logits(model, inputs), expected, **HALF)
    _, exact, _ = tiny_llava.load_llava(merged)
    with torch.no_grad():
        torch.testing.assert_close(exact(**inputs).logits, expected, rtol=0, atol=1e-4)
    # As transformers saves it, too, whose safetensors are for their owner alone.
    before = os.umask(0o022)
    try:
        exact.save_pretrained(root / "saved-llava")
    finally:
        os.umask(before)
    files = [path for path in (root / "saved-llava").rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o644}


def test_the_learner_alone(root):
    words, model = _skilled(root)
    folder = root / "tiny-llava-fpl"
    save_llava_adapter(model, folder)
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "mm_projector.bin", "fpl.safetensors", "kfd", "README.md"
    }  # fmt: skip
    inputs = _inputs(words)
    loaded = _load(folder, root / "tiny-llava")[1]
    with torch.no_grad():
        torch.testing.assert_close(_logits(loaded, inputs), model(**inputs).logits, **HALF)


def test_without_register_llava_reads_the_host(root, lora):
    folder = lora[0]
    unregister()
    try:
        model = _load(folder, root / "tiny-llava")[1]
        assert not has_forgery_adapter(model)
        assert model(input_ids=torch.tensor([[601, 4, 5]])).logits.shape[1] == 3
    finally:
        register()


def test_damaged_folders_are_errors(root, lora, tmp_path):
    folder = tmp_path / "broken-llava-lora"
    base = root / "tiny-llava"

    def fresh():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(lora[0], folder)

    fresh()
    (folder / "fpl.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"fpl.safetensors is missing"):
        _load(folder, base)
    fresh()
    tensors = load_file(folder / "fpl.safetensors")
    tensors["base"] = tensors["base"][:1]
    save_file(tensors, folder / "fpl.safetensors")
    with pytest.raises(ValueError, match=r"base has shape \(1, 32\), expected \(9, 32\)"):
        _load(folder, base)
    fresh()
    shutil.rmtree(folder / "kfd")
    with pytest.raises(FileNotFoundError, match="kfd_config.json"):
        _load(folder, base)
    fresh()
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop(next(iter(tensors)))
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"adapter_model.safetensors does not fit: missing"):
        _load(folder, base)
    stranger = tiny_llava.save_llava(tmp_path / "other-llava", seed=1)
    with pytest.raises(ValueError, match="same sizes but with other weights"):
        _load(lora[0], stranger)


@pytest.mark.parametrize("place", ["tower", "projector"])
def test_another_tower_or_projector_is_named(root, place, tmp_path):
    _, model = _skilled(root)
    folder = tmp_path / "tiny-llava-fpl"
    save_llava_adapter(model, folder)
    clip = tiny_llava.save_clip(tmp_path / "clip", seed=int(place == "tower"))
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "mm_vision_tower": str(clip)})
    base = tiny_llava.save_llava(tmp_path / "base-llava")
    if place == "projector":
        tensors = load_file(base / "model.safetensors")
        tensors["model.mm_projector.2.weight"] *= 2
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    name = {"tower": "vision tower"}.get(place, place)
    for load in (_load, load_llava):
        with pytest.raises(ValueError, match=f"tiny-llava-fpl .*other weights of its {name}"):
            load(folder, base)


def test_names_that_lead_llavas_loader_astray(root, lora, tmp_path):
    base = root / "tiny-llava"
    folder = tmp_path / "my-llava"
    shutil.copytree(lora[0], folder)
    with pytest.raises(ValueError, match=r"'my-llava' lacks 'lora': rename"):
        _load(folder, base)
    with pytest.raises(ValueError, match=r"'adapter' lacks 'llava' and 'lora': rename"):
        _load(folder, base, "adapter")
    with pytest.raises(ValueError, match="model_base"):
        _load(lora[0])
    with pytest.raises(ValueError, match="must hold 'llava' and, for a whole model, not 'lora'"):
        merge_llava(lora[0], tmp_path / "llava-lora")
    with pytest.raises(ValueError, match="no forgery skill to save"):
        save_llava_adapter(tiny_llava.load_llava(base)[1], tmp_path / "none-llava")
