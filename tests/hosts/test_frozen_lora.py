"""A LoRA without peft gives what peft gives, can be saved, merged and taken off."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from llava_forgery.files import read_json, write_json
from llava_forgery.hosts.frozen_lora import FrozenLora, takes_frozen
from llava_forgery.hosts.lora import LORA_CONFIG, LORA_WEIGHTS, is_peft, lora_config, save_lora
from llava_forgery.hosts.quantized import is_quantized
from llava_forgery.weights import read_tensors, save_tensors
from tests import tiny


@pytest.fixture(scope="module")
def host():
    return tiny.llava()[0].eval()


@pytest.fixture(scope="module")
def saved(host, tmp_path_factory):
    """peft's files of a LoRA that changes something, and the logits with it."""
    directory = tmp_path_factory.mktemp("lora")
    torch.manual_seed(0)
    trained = get_peft_model(copy.deepcopy(host), lora_config(host, LoraConfig(r=4, lora_alpha=6)))
    with torch.no_grad():
        for name, weight in trained.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.2)
    save_lora(trained, directory, "host")
    assert [is_peft(model) for model in (trained, host)] == [True, False]
    return directory, _logits(trained.eval())


@torch.no_grad()
def _logits(host):
    return host(input_ids=torch.arange(3, 11)[None]).logits


def test_it_gives_what_peft_gives_and_goes_without_a_trace(host, saved):
    directory, expected = saved
    bare = _logits(host)
    assert takes_frozen(host, directory)
    lora = FrozenLora(host, directory)
    assert torch.equal(_logits(host), expected)
    assert not torch.equal(bare, expected)
    lora.remove()
    assert torch.equal(_logits(host), bare)


def test_half_precision(host, saved):
    """peft keeps LoRA in full precision around a host in half."""
    directory, _ = saved
    half = copy.deepcopy(host).bfloat16()
    lora = FrozenLora(half, directory)
    found = _logits(half)
    lora.remove()
    trained = get_peft_model(half, lora_config(half, LoraConfig(r=4, lora_alpha=6))).eval()
    for name, tensor in read_tensors(directory / LORA_WEIGHTS).items():
        parameter = trained.get_parameter(name.replace(".weight", ".default.weight"))
        parameter.data.copy_(tensor)
    assert torch.equal(found, _logits(trained))


def test_saved_and_merged(host, saved, tmp_path):
    directory, expected = saved
    model = copy.deepcopy(host)
    lora = FrozenLora(model, directory)
    lora.save(tmp_path, "elsewhere")
    one, two = read_tensors(directory / LORA_WEIGHTS), read_tensors(tmp_path / LORA_WEIGHTS)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    values = read_json(tmp_path / LORA_CONFIG)
    assert values["base_model_name_or_path"] == "elsewhere"
    assert {**values, "base_model_name_or_path": "host"} == read_json(directory / LORA_CONFIG)
    lora.merge()
    assert not torch.equal(_logits(model), _logits(host))
    torch.testing.assert_close(_logits(model), expected)


@pytest.mark.parametrize(
    "change",
    [{"use_dora": True}, {"target_modules": ["q_proj"]}, {"rank_pattern": {"q_proj": 2}}],
    ids=lambda change: next(iter(change)),
)
def test_what_it_does_not_know_is_left_to_peft(host, saved, tmp_path, change):
    values = read_json(saved[0] / LORA_CONFIG)
    write_json(tmp_path / LORA_CONFIG, {**values, **change})
    assert not takes_frozen(host, tmp_path)


def test_files_that_do_not_fit(host, saved, tmp_path):
    write_json(tmp_path / LORA_CONFIG, read_json(saved[0] / LORA_CONFIG))
    with pytest.raises(FileNotFoundError, match="not complete"):
        FrozenLora(host, tmp_path)
    tensors = read_tensors(saved[0] / LORA_WEIGHTS)
    save_tensors(tmp_path / LORA_WEIGHTS, dict(list(tensors.items())[1:]))
    with pytest.raises(ValueError, match="missing"):
        FrozenLora(host, tmp_path)


def test_a_host_of_a_gguf_file_in_full_precision_is_not_quantised(host):
    model = copy.copy(host)
    model.is_quantized, model.quantization_method = True, "bitsandbytes"
    assert is_quantized(model)
    model.quantization_method = "gguf"
    model.hf_quantizer = type("GgufHfQuantizer", (), {"packed_modules": {}})
    assert not is_quantized(model)
