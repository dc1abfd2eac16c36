"""Training in two real processes, on the CPU: the same adapter as in one process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from llava_forgery.data.build_qa import build_conversations
from llava_forgery.data.forge import forge_folders
from llava_forgery.data.labelled import read_labelled
from llava_forgery.faces.records import FEATURES
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.pseudo_word import attach_pseudo_word
from llava_forgery.hosts.transformers.loading import load_adapter
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.simulate.pairs import FacePairs
from llava_forgery.train.adapter import train_adapter
from llava_forgery.train.antifake_prompt import train_pseudo_word
from llava_forgery.train.deepspeed import (
    exclude_from_deepspeed,
    fill_trained,
    gathered_parameters,
    load_engine,
    make_contiguous,
)
from llava_forgery.train.dialogues import open_source
from llava_forgery.train.dpo import load_trainable, train_preference
from llava_forgery.train.trainer import training_arguments
from tests import tiny

ROOT = Path(__file__).parents[2]


def test_deepspeed_file_must_be_there(tmp_path):
    options = {"steps": 1, "batch_size": 1, "learning_rate": 1e-3, "weight_decay": 0.0, "seed": 0,
               "save_steps": None, "workers": 0}  # fmt: skip
    with pytest.raises(FileNotFoundError, match=r"no file .*zero9\.json; scripts/zero2\.json"):
        training_arguments(tmp_path, deepspeed=tmp_path / "zero9.json", **options)


def test_missing_deepspeed_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    from llava_forgery.train.deepspeed import deepspeed_file

    with pytest.raises(ImportError, match=r"llava-forgery\[deepspeed\]"):
        deepspeed_file(ROOT / "scripts/zero2.json")


def test_a_process_alone_writes():
    with gathered_parameters(nn.Linear(2, 2).parameters()) as writes:
        assert writes


def test_a_state_without_a_trained_weight_is_refused_and_frozen_ones_may_be_left_out():
    module = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    module[0].requires_grad_(False)
    frozen = module[0].weight.clone()
    state = {"1.weight": torch.ones(2, 2), "1.bias": torch.ones(2)}
    fill_trained(state, module)
    assert torch.equal(module[1].weight, torch.ones(2, 2))
    assert torch.equal(module[0].weight, frozen)
    with pytest.raises(ValueError, match="missing 1.bias, unknown none"):
        fill_trained({"1.weight": torch.ones(2, 2)}, module)
    with pytest.raises(ValueError, match="missing none, unknown 2.weight"):
        fill_trained({**state, "2.weight": torch.ones(2, 2)}, module)


def test_weights_are_laid_out_and_keep_their_values():
    layers = nn.ModuleList([nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3)])
    layers.to(memory_format=torch.channels_last)
    before = [parameter.clone() for parameter in layers.parameters()]
    assert layers[0].weight.is_contiguous()
    assert layers[0].weight.stride(-1) != 1
    make_contiguous(layers)
    for parameter, expected in zip(layers.parameters(), before, strict=True):
        assert parameter.stride(-1) == 1
        assert torch.equal(parameter, expected)


class _Engine:
    """Reads as DeepSpeed's does."""

    def load_checkpoint(self, directory, custom_load_fn):
        return directory, torch.load(Path(directory) / "states.pt", weights_only=False)


class _Hostile:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_hostile_state_of_deepspeed_is_refused_and_nothing_in_it_is_run(tmp_path):
    scaler = pytest.importorskip(
        "deepspeed.runtime.fp16.loss_scaler", reason="needs the extra deepspeed"
    )
    torch.save(
        {"loss_scaler": scaler.LossScaler(1.0), "sums": torch.ones(2)}, tmp_path / "states.pt"
    )
    load_engine(_Engine(), str(tmp_path))
    torch.save({"loss_scaler": _Hostile(tmp_path / "ran")}, tmp_path / "states.pt")
    with pytest.raises(ValueError, match="is refused: its state of DeepSpeed holds more than"):
        load_engine(_Engine(), str(tmp_path))
    assert not (tmp_path / "ran").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    # The test itself: without the guard it is run.
    _Engine().load_checkpoint(tmp_path, None)
    assert (tmp_path / "ran").exists()


def test_a_part_kept_aside_is_called_but_not_trained():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    names = list(model.state_dict())
    with exclude_from_deepspeed(model, "b", torch.device("cpu")):
        assert [n for n, _ in model.named_parameters()] == ["a.weight", "a.bias"]
        assert model.b(torch.ones(1, 2)).shape == (1, 2)
    assert list(model.state_dict()) == names


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """host/, kfd/, qa/ and photos/."""
    folder = tmp_path_factory.mktemp("zero")
    host, processor = tiny.llava()
    host.save_pretrained(folder / "host")
    processor.save_pretrained(folder / "host")
    tiny.kfd().save_pretrained(folder / "kfd")
    rows = [tiny.face(i).to_row() for i in range(4)]
    faces = datasets.Dataset.from_list(rows, features=FEATURES)
    pairs = FacePairs(faces, 6, size=tiny.SIZE)
    build_conversations(pairs, tiny.kfd(), folder / "qa", seed=1)
    forge_folders(pairs, folder / "photos")
    return folder


FINETUNE = [
    "train", "adapter", "--base-model", "host", "--kfd", "kfd", "--data", "qa", "--lora-r", "2",
    "--lora-alpha", "4", "--lora-dropout", "0", "--steps", "4", "--fpl-warmup-steps", "5",
    "--batch-size", "1", "--save-steps", "2",
]  # fmt: skip
PSEUDO_WORD = [
    "train", "pseudo-word", "--base-model", "host", "--data", "photos", "--epochs", "2",
    "--learning-rate", "0.05", "--batch-size", "1",
]  # fmt: skip


def _two_processes(folder, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc_per_node", "2", "-m", "llava_forgery.cli"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu",
                   "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # fmt: skip
    result = subprocess.run(
        [*command, *map(str, arguments)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-6000:]


def _compare(one, two, name):
    one, two = load_file(one / name), load_file(two / name)
    assert set(one) == set(two)
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, atol=1e-4, rtol=1e-3)


def _compare_adapters(one, two):
    for name in ("fpl.safetensors", "adapter_model.safetensors"):
        _compare(one, two, name)
    # The detector is frozen and whole.
    for name, tensor in load_file(one / "kfd/kfd.safetensors").items():
        assert torch.equal(load_file(two / "kfd/kfd.safetensors")[name], tensor)


@pytest.fixture(scope="module")
def one_process(folder):
    """Two samples for each step, one behind the other: the mean of two processes' means."""
    lora = LoraSettings(r=2, alpha=4, dropout=0.0)
    vlm = attach_forgery(*tiny.llava(), tiny.kfd(), lora=lora)
    rows = datasets.load_from_disk(str(folder / "qa"))
    train_adapter(vlm, rows, folder / "one", steps=4, fpl_warmup_steps=5, batch_size=1,
                  accumulate=2, save_steps=None)  # fmt: skip
    return folder / "one"


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_two_processes_give_the_adapter_of_one(folder, one_process, stage):
    """0 is DistributedDataParallel."""
    out = f"zero{stage}"
    command = [*FINETUNE, "--out", out]
    if stage:
        pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
        command += ["--deepspeed", ROOT / f"scripts/zero{stage}.json"]
    _two_processes(folder, *command)
    _compare_adapters(one_process, folder / out)
    load_adapter(folder / out, *tiny.llava())
    training = folder / f"{out}-training"
    assert {path.name for path in training.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    # The host's weights are in no checkpoint, but for the head that shares its embedding's.
    trained = {f"vlm.{name}" for name in _trainable()}
    trained |= {"vlm.host.base_model.model.lm_head.weight"}
    for file in training.rglob("*model_states.pt"):
        assert set(torch.load(file, weights_only=False)["module"]) <= trained
    # Going on from a checkpoint ends where the uninterrupted run did.
    shutil.rmtree(training / "checkpoint-4")
    shutil.rmtree(folder / out)
    _two_processes(folder, *command, "--resume")
    _compare_adapters(one_process, folder / out)


@pytest.fixture(scope="module")
def one_process_mixed(folder):
    """As ``one_process``, with general data of which some show no image."""
    Image.fromarray(tiny.picture(3, 40)).save(folder / "cat.png")
    entries = []
    for i in range(4):
        image = {"image": "cat.png"} if i % 2 else {}
        question = "<image>\nWhat is this?" if image else "Who are you?"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "A cat."}]
        entries.append({"id": f"g{i}", "conversations": turns, **image})
    (folder / "general.json").write_text(json.dumps(entries))
    vlm = attach_forgery(*tiny.llava(), tiny.kfd(), lora=LoraSettings(r=2, alpha=4, dropout=0.0))
    rows = datasets.load_from_disk(str(folder / "qa"))
    train_adapter(vlm, rows, folder / "one-mixed", general=open_source(folder / "general.json"),
                  steps=4, batch_size=1, accumulate=2, save_steps=None)  # fmt: skip
    return folder / "one-mixed"


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2])
def test_two_processes_of_which_one_shows_no_face_train_as_one(folder, one_process_mixed, stage):
    out = f"mixed{stage}"
    command = [*FINETUNE, "--fpl-warmup-steps", 0, "--general", "general.json", "--out", out]
    if stage:
        pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
        command += ["--deepspeed", ROOT / f"scripts/zero{stage}.json"]
    _two_processes(folder, *command)
    _compare_adapters(one_process_mixed, folder / out)


@pytest.fixture(scope="module")
def one_process_preference(folder, one_process):
    """As ``one_process``, from its adapter on; without scores, none speaks against a label."""
    faces = datasets.Dataset.from_list([tiny.face(i).to_row() for i in range(4)], features=FEATURES)
    build_conversations(FacePairs(faces, 6, size=tiny.SIZE), None, folder / "uncited", seed=1)
    rows = datasets.load_from_disk(str(folder / "uncited"))
    vlm = load_trainable(one_process, str(folder / "host"), device="cpu")
    train_preference(vlm, rows, folder / "one-preference",
                     sft_weight=1, steps=4, batch_size=1, accumulate=2, learning_rate=1e-2,
                     save_steps=None)  # fmt: skip
    return folder / "one-preference"


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_preference_stage_of_two_processes_is_that_of_one(
    folder, one_process, one_process_preference, stage
):
    out = f"preference{stage}"
    command = ["train", "preference", "--model", one_process, "--base-model", "host", "--data",
               "uncited", "--out", out, "--sft-weight", 1, "--steps", 4, "--batch-size", 1,
               "--learning-rate", 0.01]  # fmt: skip
    if stage:
        pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
        command += ["--deepspeed", ROOT / f"scripts/zero{stage}.json"]
    _two_processes(folder, *command)
    _compare_adapters(one_process_preference, folder / out)
    before, after = (load_file(f / "fpl.safetensors") for f in (one_process, folder / out))
    assert any(not torch.allclose(after[name], tensor) for name, tensor in before.items())


def _trainable():
    lora = LoraSettings(r=2, alpha=4, dropout=0.0)
    return attach_forgery(*tiny.llava(), tiny.kfd(), lora=lora).trainable_names()


@pytest.mark.slow
def test_a_pseudo_word_of_two_processes_under_zero_3(folder):
    pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
    images = read_labelled(folder / "photos")
    vlm = attach_pseudo_word(*tiny.llava())
    train_pseudo_word(vlm, images, folder / "one-word", epochs=2, batch_size=2, learning_rate=0.05)
    _two_processes(folder, *PSEUDO_WORD, "--deepspeed", ROOT / "scripts/zero3.json",
                   "--out", "two-words")  # fmt: skip
    _compare(folder / "one-word", folder / "two-words", "pseudo_word.safetensors")
