"""A training's folder is gone on with by the same training only, and keeps nothing of a kill."""

import json
import logging
import shutil
from dataclasses import replace

import datasets
import pytest
import torch
from safetensors.torch import load_file

from llava_forgery.data.build_qa import build_conversations
from llava_forgery.faces.records import FEATURES
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.simulate.config import SimulatorConfig
from llava_forgery.simulate.pairs import FacePairs
from llava_forgery.train.adapter import train_adapter
from llava_forgery.train.run_record import (
    RECORD,
    describe_adapter_weights,
    differences,
    files_fingerprint,
    last_checkpoint,
)
from llava_forgery.train.stage1 import train_kfd
from tests import tiny
from tests.train.interruption import interrupt


def _faces(*indices):
    rows = [tiny.face(i).to_row() for i in indices]
    return datasets.Dataset.from_list(rows, features=FEATURES)


@pytest.fixture(scope="module")
def faces():
    return _faces(0, 1, 2, 3)


def _train(faces, folder, detector_seed=0, **options):
    options = {"steps": 4, "batch_size": 2, "workers": 0, "save_steps": 2, **options}
    detector = KnowledgeGuidedForgeryDetector.from_config(tiny.kfd_config(), detector_seed)
    return train_kfd(detector, faces, folder, **options)


@pytest.fixture(scope="module")
def trained(faces, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "kfd"
    _train(faces, folder)
    return folder


def _contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_finished_training_says_so_and_adds_no_step(faces, trained, caplog):
    before = _contents(trained)
    for resume in (False, True, False):
        with caplog.at_level(logging.INFO):
            caplog.clear()
            # How results are made, not what they are.
            detector = _train(faces, trained, resume=resume, save_steps=3, workers=1)
        assert "this training is finished" in caplog.text
        assert _contents(trained) == before
    saved = load_file(trained / "kfd.safetensors")
    assert all(torch.equal(detector.state_dict()[name], t) for name, t in saved.items())
    assert not detector.training


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"learning_rate": 2e-3}, ["learning_rate was 0.001, now 0.002"]),
        ({"seed": 3}, ["data.seed was 0, now 3", "seed was 0, now 3"]),
        ({"steps": 6}, ["data.pairs was 8, now 12", "max_steps was 4, now 6"]),
        ({"batch_size": 1}, ["data.pairs was 8, now 4", "train_batch_size was 2, now 1"]),
        ({"weight_decay": 0.0}, ["weight_decay was 0.0001, now 0.0"]),
        ({"simulator": SimulatorConfig(whole_face=1.0)}, ["data.simulator.whole_face was "]),
        ({"detector_seed": 1}, ["weights.trained was 0."]),
        ({"faces": _faces(0, 1, 2, 4)}, ["data.faces was "]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_another_training_is_refused_and_what_differs_is_named(
    faces, trained, tmp_path, finished, options, named
):
    folder = trained
    if not finished:
        folder = tmp_path / "cut"
        interrupt(trained, folder, "checkpoint-2")
    before = _contents(folder)
    for resume in (False, True):
        with pytest.raises(ValueError, match="training with other settings") as error:
            _train(**{"faces": faces, "folder": folder, "resume": resume, **options})
        message = str(error.value)
        assert all(text in message for text in named), message
        assert message.count(" was ") == len(named)
        assert ("holds a finished" if finished else "holds an interrupted") in message
        assert "give another output folder" in message
    assert _contents(folder) == before


def test_the_same_faces_made_again_or_copied_are_the_same(faces, trained, tmp_path, caplog):
    faces.save_to_disk(str(tmp_path / "faces"))
    shutil.copytree(tmp_path / "faces", tmp_path / "copy")
    shutil.move(tmp_path / "faces", tmp_path / "moved")
    with caplog.at_level(logging.INFO):
        for where in ("copy", "moved"):
            _train(datasets.load_from_disk(str(tmp_path / where)), trained)
    assert caplog.text.count("this training is finished") == 2


def test_checkpoints_and_results_from_elsewhere_are_refused(faces, trained, tmp_path):
    shutil.copytree(trained / "checkpoint-2", tmp_path / "cut/checkpoint-2")
    shutil.copytree(trained, tmp_path / "result", ignore=shutil.ignore_patterns("check*", RECORD))
    for folder in (tmp_path / "cut", tmp_path / "result"):
        before = _contents(folder)
        for resume in (False, True):
            with pytest.raises(ValueError, match=r"exists, but not .*training_run\.json"):
                _train(faces, folder, resume=resume)
        assert _contents(folder) == before


def test_an_interrupted_training_without_checkpoints_can_be_begun_with_other_settings(
    faces, trained, tmp_path
):
    folder = tmp_path / "kfd"
    interrupt(trained, folder, "checkpoint-2")
    shutil.rmtree(folder / "checkpoint-2")
    _train(faces, folder, learning_rate=2e-3, save_steps=None)
    record = json.loads((folder / RECORD).read_text())
    assert record["settings"]["learning_rate"] == 2e-3
    assert record["finished"]


def test_a_training_killed_behind_its_last_step_adds_none(faces, trained, tmp_path):
    folder = tmp_path / "kfd"
    interrupt(trained, folder, "checkpoint-4")
    _train(faces, folder, resume=True)
    assert (folder / "kfd.safetensors").read_bytes() == (trained / "kfd.safetensors").read_bytes()
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-4"}


def test_what_a_kill_leaves_is_removed(faces, trained, tmp_path):
    folder = tmp_path / "kfd"
    interrupt(trained, folder, "checkpoint-2")
    # A checkpoint without its last file, or with half of it, and files under temporary names.
    shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-3")
    (folder / "checkpoint-3/trainer_state.json").write_text('{"global_step": 3, ')
    (folder / "checkpoint-4").mkdir()
    (folder / ".log.json.0123abcd.tmp").touch()
    (folder / ".checkpoint-4.0123abcd.tmp").mkdir()
    (tmp_path / ".kfd.0123abcd.tmp").mkdir()
    assert last_checkpoint(folder) == str(folder / "checkpoint-2")
    assert last_checkpoint(tmp_path / "nowhere") is None
    _train(faces, folder, resume=True)
    assert {path.name for path in tmp_path.iterdir()} == {"kfd"}
    assert {path.name for path in folder.iterdir()} == {path.name for path in trained.iterdir()}
    assert (folder / "kfd.safetensors").read_bytes() == (trained / "kfd.safetensors").read_bytes()


def _adapter(
    conversations, folder, kfd_seed=0, lora=None, host_seed=0, dtype=None, greeting="", **options
):
    host, processor = tiny.llava(host_seed)
    host = host.to(dtype or torch.float32)
    processor.chat_template = greeting + processor.chat_template
    settings = replace(LoraSettings(r=2, alpha=4, dropout=0.0), **(lora or {}))
    vlm = attach_forgery(host, processor, tiny.kfd(kfd_seed), lora=settings)
    options = {"steps": 2, "batch_size": 2, "save_steps": 2, **options}
    return train_adapter(vlm, conversations, folder, **options)


@pytest.fixture(scope="module")
def conversations(faces, tmp_path_factory):
    folder = tmp_path_factory.mktemp("qa")
    return [
        build_conversations(FacePairs(faces, 3, size=tiny.SIZE), tiny.kfd(), folder / name, seed=n)
        for n, name in enumerate(("one", "two"))
    ]


def test_an_adapter_of_another_detector_host_or_data_is_refused(conversations, tmp_path, caplog):
    one, two = conversations
    vlm = _adapter(one, tmp_path / "adapter")
    before = _contents(tmp_path)
    with caplog.at_level(logging.INFO):
        again = _adapter(one, tmp_path / "adapter", gradient_checkpointing=True)
    assert "this training is finished" in caplog.text
    state = vlm.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in again.state_dict().items())
    for changes, name in (
        ({"conversations": two}, "data.skill"),
        ({"kfd_seed": 1}, "detector"),
        ({"host_seed": 1}, "host.embedding_probe"),
        ({"dtype": torch.bfloat16}, "host.dtype"),
        ({"greeting": "Hello. "}, "data.tokens"),
        ({"lora": {"alpha": 8}}, "lora.alpha"),
        ({"lora": {"dropout": 0.1}}, "lora.dropout"),
        ({"fpl_learning_rate": 1e-5}, "fpl_learning_rate"),
        ({"fpl_warmup_steps": 2}, "warm_start.steps"),
        ({"accumulate": 2}, "gradient_accumulation_steps"),
    ):
        with pytest.raises(ValueError, match=rf"[ ;]{name} was "):
            _adapter(**{"conversations": one, "folder": tmp_path / "adapter", **changes})
    assert _contents(tmp_path) == before


def test_an_adapter_killed_in_the_midst_of_an_epoch_behind_its_last_step_adds_none(
    conversations, tmp_path
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    # Of three steps in each epoch.
    _adapter(conversations[0], whole)
    interrupt(tmp_path / "whole-training", tmp_path / "cut-training", "checkpoint-2")
    _adapter(conversations[0], cut, resume=True)
    assert _contents(cut) == _contents(whole)
    names = {path.name for path in (tmp_path / "cut-training").iterdir()}
    assert names == {"checkpoint-2", "log.json", RECORD}


def test_an_adapter_whose_record_is_gone_is_not_replaced(conversations, tmp_path):
    _adapter(conversations[0], tmp_path / "adapter", save_steps=None)
    shutil.rmtree(tmp_path / "adapter-training")
    with pytest.raises(ValueError, match=r"adapter/forgery_config\.json exists, but not"):
        _adapter(conversations[0], tmp_path / "adapter")


def test_a_lora_that_was_trained_before_is_another_start(conversations, tmp_path):
    fresh = _adapter(conversations[0], tmp_path / "a", steps=1, save_steps=None)
    start = describe_adapter_weights(fresh)
    with torch.no_grad():
        for name, parameter in fresh.named_parameters():
            if ".lora_A." in name:
                parameter.normal_()
    assert describe_adapter_weights(fresh) == start
    with torch.no_grad():
        next(p for n, p in fresh.named_parameters() if ".lora_B." in n).add_(0.01)
    assert abs(describe_adapter_weights(fresh) / start - 1) > 1e-5


def test_differences_are_named_with_both_values():
    before = {"a": {"b": 1, "c": [0.1, 2.0]}, "d": None, "e": 0.3, "gone": "x"}
    now = {
        "a": {"b": 2, "c": [0.1 + 1e-9, 2.0]},
        "d": "y" * 100,
        "e": 0.3 * (1 + 1e-7),
        "new": True,
    }
    found = differences(before, now)
    assert found[0] == "a.b was 1, now 2"
    assert found[1].startswith('d was null, now "yyyy')
    assert len(found[1]) < 120
    assert found[2:] == ['gone was "x", now null', "new was null, now true"]
    assert differences(now, now) == []


def test_files_are_told_apart_by_names_and_sizes_not_by_folder_or_time(tmp_path):
    for name, text in (("a", "x"), ("b", "x"), ("c", "xy")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_text(text)
    names = [["1.png", 0]]
    one, copy, other = (files_fingerprint(names, [tmp_path / n / "1.png"]) for n in "abc")
    assert one == copy != other
    assert files_fingerprint([["1.png", 1]], [tmp_path / "a/1.png"]) != one
