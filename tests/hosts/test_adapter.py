"""What an adapter holds; one whose files are damaged, or belong to another host, does not load."""

import os
import shutil

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from llava_forgery.files import read_json
from llava_forgery.hosts.adapter import add_figures
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.transformers.loading import load_adapter, load_host
from llava_forgery.hosts.transformers.model import attach_forgery
from tests import tiny

FILES = ("fpl.safetensors", "adapter_model.safetensors", "kfd/kfd.safetensors")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    before = os.umask(0o027)
    try:
        vlm = attach_forgery(*tiny.llava(), tiny.kfd(), lora=LoraSettings(r=2))
        vlm.host_name, vlm.training_facts = "someone/llava", {"conversations": 7}
        with torch.no_grad():
            for name, weight in vlm.named_parameters():
                if "lora_B" in name:
                    weight.fill_(0.01)
        vlm.save_pretrained(folder)
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
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"adapter_config\.json is not valid JSON"):
        load_adapter(adapter, *tiny.llava())


def test_peft_reads_the_lora_and_nothing_else(saved):
    vlm = load_adapter(saved, *tiny.llava())
    alone = PeftModel.from_pretrained(tiny.llava()[0], saved).eval()
    ids = torch.arange(10, 20)[None]
    assert torch.equal(alone(input_ids=ids).logits, vlm.host(input_ids=ids).logits)
    assert not torch.equal(alone(input_ids=ids).logits, tiny.llava()[0](input_ids=ids).logits)
    assert set(get_peft_model_state_dict(alone)) == set(
        load_file(saved / "adapter_model.safetensors")
    )


def test_the_model_card(saved, adapter):
    card = ModelCard.load(adapter / "README.md")
    assert card.data.base_model == "someone/llava"
    assert card.data.library_name == "llava-forgery"
    assert "| conversations | 7 |" in card.text
    assert "only" in card.text.split("PeftModel.from_pretrained")[1].split(".")[0]
    for value in (0.5, 0.9321):
        add_figures(adapter, {"auc": value}, "20 people")
    again = ModelCard.load(adapter / "README.md")
    for words in ("On 20 people:", "| auc | 0.9321 |", "| conversations | 7 |"):
        assert words in again.text
    assert "0.5" not in again.text
    (result,) = again.data.eval_results
    assert (result.metric_type, result.metric_value) == ("auc", 0.9321)
    with pytest.raises(FileNotFoundError, match="model card"):
        add_figures(adapter / "kfd", {"auc": 0.5}, "20 people")


def test_what_wrote_it_is_recorded(saved):
    config = read_json(saved / "forgery_config.json")
    assert config["versions"]["peft"] == peft.__version__
    assert set(config["versions"]) == {"llava_forgery", "torch", "transformers", "peft"}
    # Not the path of the folder that the host was loaded from.
    assert read_json(saved / "adapter_config.json")["base_model_name_or_path"] == "someone/llava"


def test_an_adapter_is_no_host(saved):
    with pytest.raises(ValueError, match="is a forgery adapter, expected its host"):
        load_host(saved, str(saved))


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
