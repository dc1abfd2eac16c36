"""One adapter on LLaVA's class and on transformers': equal logits, there and back."""

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from typer.testing import CliRunner

from llava_forgery.cli import app
from llava_forgery.constants import FORGERY_TOKEN, IMAGE_TOKEN
from llava_forgery.files import read_json
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.hosts.layouts import convert_adapter
from llava_forgery.hosts.llava.checkpoint import save_llava_adapter
from llava_forgery.hosts.llava.hooks import FORGERY_TOKEN_INDEX, IMAGE_TOKEN_INDEX
from llava_forgery.hosts.llava.model import attach_to_llava, llava_lora_config
from llava_forgery.hosts.llava.prompts import forgery_prefix, tokenizer_forgery_token
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.transformers.export import export_transformers
from llava_forgery.hosts.transformers.exported import LlavaForgeryForConditionalGeneration
from llava_forgery.hosts.transformers.loading import load_adapter, load_host
from tests import tiny, tiny_llava

tiny_llava.require_llava()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A LLaVA, its twin of transformers, and an adapter trained on the first."""
    folder = tmp_path_factory.mktemp("convert")
    tiny_llava.save_llava(folder / "tiny-llava")
    tiny_llava.save_twin(folder / "tiny-llava", folder / "twin")
    tiny_llava.save_kfd(folder / "kfd")
    _, model, _ = tiny_llava.load_llava(folder / "tiny-llava")
    attach_to_llava(model, folder / "kfd", FPLConfig(1, 3, n_forgery=2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        peft = get_peft_model(model, llava_lora_config(model, LoraSettings(r=2))).eval()
        for name, weight in peft.named_parameters():
            if "lora_B" in name:
                weight.data.normal_(std=0.2)
    save_llava_adapter(peft, folder / "tiny-llava-lora")
    words = tiny_llava.tokenizer()
    ids = tokenizer_forgery_token(forgery_prefix(2) + "Fake?", words, return_tensors="pt")[None]
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, 3, tiny_llava.SIDE, tiny_llava.SIDE, generator=generator)
    pictures = torch.rand(1, 3, tiny.SIZE, tiny.SIZE, generator=generator)
    with torch.no_grad():
        logits = peft(input_ids=ids, images=images, forgery_images=pictures).logits
    return folder, (ids, images, pictures), logits


def test_equal_logits_there_and_back(root):
    folder, (ids, images, pictures), expected = root
    moved = folder / "moved"
    assert convert_adapter(folder / "tiny-llava-lora", moved, str(folder / "twin")) == (
        "transformers"
    )
    host, processor = load_host(moved, str(folder / "twin"))
    vlm = load_adapter(moved, host, processor)
    words = processor.tokenizer
    image, placeholder = (words.convert_tokens_to_ids(t) for t in (IMAGE_TOKEN, FORGERY_TOKEN))
    expanded = []
    for token in ids[0].tolist():
        known = {IMAGE_TOKEN_INDEX: [image] * 4, FORGERY_TOKEN_INDEX: [placeholder]}
        expanded += known.get(token, [token])
    with torch.no_grad():
        logits = vlm(
            input_ids=torch.tensor([expanded]), pixel_values=images, forgery_images=pictures
        ).logits
    torch.testing.assert_close(logits[..., : expected.shape[-1]], expected, rtol=0, atol=1e-4)
    export_transformers(moved, folder / "exported", str(folder / "twin"))
    exported = LlavaForgeryForConditionalGeneration.from_pretrained(folder / "exported").eval()
    with torch.no_grad():
        logits = exported(
            input_ids=torch.tensor([expanded]), pixel_values=images, forgery_images=pictures
        ).logits
    torch.testing.assert_close(logits[..., : expected.shape[-1]], expected, rtol=0, atol=1e-4)

    back = folder / "back-llava-lora"
    arguments = {"model": moved, "base-model": folder / "tiny-llava", "out": back, "template": "v1"}
    said = CliRunner().invoke(
        app, ["convert", "adapter", *(f"--{name}={value}" for name, value in arguments.items())]
    )
    assert said.exit_code == 0, said.exception
    assert "layout of llava" in said.output
    for name in ("adapter_model.safetensors", "fpl.safetensors", "kfd/kfd.safetensors"):
        one, two = load_file(folder / "tiny-llava-lora" / name), load_file(back / name)
        assert set(one) == set(two)
        assert all(torch.equal(one[key], two[key]) for key in one)
    config = read_json(back / "config.json")
    assert config["mm_forgery_template"] == "v1"
    first = read_json(folder / "tiny-llava-lora" / "config.json")
    assert config["mm_forgery_host"] == first["mm_forgery_host"]


def test_what_cannot_be_moved_is_refused(root, tmp_path):
    folder = root[0]
    stranger = tiny_llava.save_llava(tmp_path / "other-llava", seed=1)
    twin = tiny_llava.save_twin(stranger, tmp_path / "twin")
    with pytest.raises(ValueError, match="another language model"):
        convert_adapter(folder / "tiny-llava-lora", tmp_path / "out", str(twin))
    host, processor = load_host(folder, str(folder / "twin"))
    host.model.vision_tower.embeddings.patch_embedding.weight.data.mul_(2)
    host.save_pretrained(tmp_path / "tower")
    processor.save_pretrained(tmp_path / "tower")
    with pytest.raises(ValueError, match="other weights of its vision tower"):
        convert_adapter(folder / "tiny-llava-lora", tmp_path / "out", str(tmp_path / "tower"))
    _, model, _ = tiny_llava.load_llava(folder / "tiny-llava")
    attach_to_llava(model, folder / "kfd")
    trained = {"model.mm_projector.0.bias": model.get_model().mm_projector[0].bias}
    save_llava_adapter(model, tmp_path / "llava-fpl", trained)
    with pytest.raises(ValueError, match=r"trained weights of its host \(model.mm_projector.0"):
        convert_adapter(tmp_path / "llava-fpl", tmp_path / "out", str(folder / "twin"))
    assert not (tmp_path / "out").exists()
