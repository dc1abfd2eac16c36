"""Hosts in 4 and 8 bits, with bitsandbytes' kernels for the CPU."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from llava_forgery.call_state import lock_of
from llava_forgery.hosts.families import exclusive
from llava_forgery.hosts.fingerprint import check_fingerprint, host_fingerprint
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.pseudo_word import attach_pseudo_word
from llava_forgery.hosts.quantized import KINDS, place_host, quantization_config
from llava_forgery.hosts.transformers.loading import load_adapter, load_host, spared_modules
from llava_forgery.hosts.transformers.model import attach_forgery
from tests import tiny
from tests.hosts.test_pseudo_word import prompts
from tests.hosts.transformers.test_model import _inputs

LORA = LoraSettings(r=2, alpha=4, dropout=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized")
    host, processor = tiny.llava()
    host.save_pretrained(folder / "host")
    processor.save_pretrained(folder / "host")
    return folder


def _load(folder, kind):
    pytest.importorskip("bitsandbytes", reason="needs the extra quantization")
    model, processor = load_host(folder, "host", kind, dtype=torch.float32)
    # Some machines' bitsandbytes has no kernels for the CPU.
    try:
        with torch.no_grad():
            model(input_ids=torch.tensor([[5, 6]]))
    except (NotImplementedError, RuntimeError) as error:
        pytest.skip(f"bitsandbytes has no {kind} kernels for this machine: {error}")
    return model, processor


@pytest.mark.parametrize("kind", KINDS)
def test_the_language_models_layers_alone_are_quantised(folder, kind):
    model, _ = _load(folder, kind)
    wanted = {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}[kind]
    decoder = set(model.get_decoder().modules())
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            expected = wanted if module in decoder else "Linear"
            assert type(module).__name__ == expected, name
    assert place_host(model, "cpu") is model
    # They finish themselves in their first pass, which threads must not do at once.
    assert exclusive(model) is lock_of(model)


@pytest.mark.parametrize("kind", KINDS)
def test_fingerprint_is_that_of_the_whole_host(folder, kind):
    model, _ = _load(folder, kind)
    expected = host_fingerprint(tiny.llava()[0])
    assert host_fingerprint(model) == expected
    check_fingerprint(model, expected, "adapter")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [LORA, None])
def test_gradients_reach_fpl_and_lora_and_point_where_the_whole_hosts_do(folder, kind, lora):
    gradients = []
    for model, processor in (_load(folder, kind), tiny.llava()):
        vlm = attach_forgery(model, processor, tiny.kfd(), lora=lora).train()
        if lora is not None:
            # LoRA's second matrix starts at zero, and the first one's gradient with it.
            for name, parameter in vlm.host.named_parameters():
                if "lora_B" in name:
                    generator = torch.Generator().manual_seed(0)
                    parameter.data.normal_(std=0.02, generator=generator)
        inputs = _inputs(vlm)
        labels = inputs["input_ids"].clone()
        labels[:, :-5] = -100
        vlm(**inputs, labels=labels).loss.backward()
        found = {n: p.grad for n, p in vlm.named_parameters() if p.grad is not None}
        assert set(found) == set(vlm.trainable_names())
        gradients.append(torch.cat([gradient.flatten() for gradient in found.values()]))
    similarity = torch.cosine_similarity(*gradients, dim=0)
    # 8 bits lose next to nothing; 4 bits some percent with weights this random.
    assert similarity > {"4bit": 0.8, "8bit": 0.999}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_trained_on_the_whole_host_loads_onto_a_quantised_one(folder, kind, tmp_path):
    host, processor = tiny.llava()
    vlm = attach_forgery(host, processor, tiny.kfd(), lora=LORA).eval()
    inputs = _inputs(vlm)
    vlm.save_pretrained(tmp_path / "adapter")
    loaded = load_adapter(tmp_path / "adapter", *_load(folder, kind))
    with torch.no_grad():
        expected, found = vlm(**inputs).logits, loaded(**inputs).logits
    scale = expected.abs().max()
    assert float((found - expected).abs().max() / scale) < {"4bit": 0.4, "8bit": 0.05}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pseudo_word_learns_on_a_quantised_host(folder, kind):
    model, processor = _load(folder, kind)
    vlm = attach_pseudo_word(model, processor)
    inputs = prompts(processor, ["Is this photo real [*]?"])
    vlm(**inputs, labels=inputs["input_ids"].clamp(max=500)).loss.backward()
    vector = vlm.word.vectors["language_model"].weight
    assert float(vector.grad.norm()) > 0
    assert {n for n, p in vlm.named_parameters() if p.grad is not None} == set(
        vlm.trainable_names()
    )


def test_spared_are_head_projector_and_vision_tower():
    names = spared_modules(tiny.llava()[0].config)
    assert "lm_head" in names
    assert "model.multi_modal_projector.linear_1" in names
    assert any("vision_tower" in name for name in names)
    assert not any("language_model" in name for name in names)


def test_wrong_kind_and_missing_package(folder, monkeypatch):
    with pytest.raises(ValueError, match="one of 4bit, 8bit or None, got '3bit'"):
        load_host(folder, "host", "3bit")
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"llava-forgery\[quantization\]"):
        quantization_config(LlamaConfig(), "4bit", "auto", [])
