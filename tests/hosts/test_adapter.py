"""An adapter whose files are damaged, or belong to another host, does not load."""

import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.transformers.loading import load_adapter, load_host
from llava_forgery.hosts.transformers.model import attach_forgery
from tests import tiny

FILES = ("fpl.safetensors", "lora/adapter_model.safetensors", "kfd/kfd.safetensors")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    before = os.umask(0o027)
    try:
        attach_forgery(*tiny.llava(), tiny.kfd(), lora=LoraSettings(r=2)).save_pretrained(folder)
    finally:
        os.umask(before)
    return folder


@pytest.fixture
def adapter(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "adapter")


def change(path, edit):
    """Edit the first tensor with more than one value."""
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.numel() > 1)
    tensors[name] = edit(tensors[name])
    save_file(tensors, path)


def first_to(value):
    def edit(tensor):
        tensor.view(-1)[0] = value
        return tensor

    return edit


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (first_to(torch.nan), "NaN or infinite values in 1 of"),
        (first_to(torch.inf), "NaN or infinite values in 1 of"),
        (lambda tensor: tensor.to(torch.int32), "is int32, expected floating-point numbers"),
        (lambda tensor: tensor[:1].clone(), "has shape .*, expected"),
    ],
)
def test_damaged_weights_are_refused(file, edit, message, adapter):
    change(adapter / file, edit)
    with pytest.raises(ValueError, match=f"{file} .*{message}"):
        load_adapter(adapter, *tiny.llava())


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_cut_off_is_named(file, adapter):
    whole = (adapter / file).read_bytes()
    (adapter / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{file} is not a whole safetensors file"):
        load_adapter(adapter, *tiny.llava())
    (adapter / file).unlink()
    with pytest.raises(FileNotFoundError, match=os.path.basename(file)):
        load_adapter(adapter, *tiny.llava())


def test_lora_of_another_class_is_said_in_short(adapter):
    path = adapter / FILES[1]
    tensors = load_file(path)
    save_file({name.replace("language_model.", ""): t for name, t in tensors.items()}, path)
    with pytest.raises(ValueError, match=r"16 of its 16 names begin with") as error:
        load_adapter(adapter, *tiny.llava())
    assert "expected 'base_model.model.model.language_model.'" in str(error.value)
    assert len(str(error.value)) < 1000
    (adapter / "lora/adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"adapter_config\.json is not valid JSON"):
        load_adapter(adapter, *tiny.llava())


def test_files_have_the_modes_of_new_ones(saved):
    modes = {path.stat().st_mode & 0o777 for path in saved.rglob("*") if path.is_file()}
    assert modes == {0o640}
    assert {path.stat().st_mode & 0o777 for path in (saved, saved / "kfd")} == {0o750}


def test_a_host_whose_checkpoint_lacks_weights_is_refused(tmp_path):
    host, processor = tiny.llava()
    host.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (name,) = [name for name in tensors if name.endswith("linear_1.weight")]
    extra = {"no.part.of.it": torch.zeros(1)}
    save_file({**tensors, **extra}, tmp_path / "model.safetensors", {"format": "pt"})
    load_host(tmp_path, str(tmp_path))
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"does not hold all weights of LlavaFor.*: 1 are missing"):
        load_host(tmp_path, str(tmp_path))
