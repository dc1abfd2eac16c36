"""Stage 2 on LLaVA's models: what is trained, saved, resumed, and read again by LLaVA's loader."""

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from llava_forgery.constants import REAL
from llava_forgery.data.build_qa import build_conversations
from llava_forgery.faces.extract import CropSettings
from llava_forgery.faces.identities import identity_digest
from llava_forgery.faces.prepare import prepare_sources
from llava_forgery.faces.records import load_faces
from llava_forgery.faces.sources import MediaSource
from llava_forgery.kfd.losses import LossWeights
from llava_forgery.simulate.pairs import FacePairs
from llava_forgery.train.llava_flags import parse_arguments
from llava_forgery.train.llava_train import (
    LlavaStage2,
    attach_skill,
    llava_order,
    load_host,
    main,
    make_stage,
    open_samples,
    run,
)
from llava_forgery.train.stage1 import Stage1
from llava_forgery.train.stage2 import Collator, Stage2Trainer
from tests import tiny, tiny_llava
from tests.train.interruption import interrupt

ROOT = Path(__file__).parents[2]


# Every prompt with its description and the detector's score.
PAPER = {"task_descriptions": 1.0, "kfd_results": 1.0}


@pytest.fixture(scope="module", autouse=True)
def registered():
    tiny_llava.require_llava()
    from llava_forgery.hosts.llava import register as llava_register

    llava_register.register()
    yield
    llava_register.unregister()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, samples_dir):
    """tiny-llava/, kfd/, qa/ and general.json; the faces are those of photographs."""
    folder = tmp_path_factory.mktemp("stage2")
    tiny_llava.save_llava(folder / "tiny-llava", aspect="pad")
    tiny_llava.save_kfd(folder / "kfd")
    pytest.importorskip("dlib")
    sources = [
        MediaSource(path, path.name, path.stem, path.stem, REAL, "train")
        for path in sorted(samples_dir.glob("*.jpg"))[:4]
    ]
    prepare_sources(sources, folder / "faces", settings=CropSettings(size=96))
    faces = load_faces(folder / "faces")
    pairs = FacePairs(faces, 4, size=tiny.SIZE)
    build_conversations(pairs, tiny.kfd(), folder / "qa", seed=1, **PAPER)
    turns = [{"from": "human", "value": "Who are you?"}, {"from": "gpt", "value": "A model."}]
    (folder / "general.json").write_text(json.dumps([{"id": "g", "conversations": turns}]))
    return folder


def _words(folder, out, **changes):
    flags = {
        "model_name_or_path": folder / "tiny-llava",
        "forgery_tower": f"kfd:{folder / 'kfd'}",
        "data_path": folder / "qa",
        "output_dir": folder / out,
        "lora_enable": "lora" in out,
        "freeze_backbone": "lora" not in out,
        "lora_r": 2,
        "lora_dropout": 0,
        "max_steps": 4,
        "save_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.01,
        "model_max_length": 2048,
        "report_to": "none",
        **changes,
    }
    return [str(word) for name, value in flags.items() for word in (f"--{name}", value)]


def _arguments(folder, out, **changes):
    return parse_arguments(_words(folder, out, **changes))


def _prepared(folder, out, **changes):
    arguments = _arguments(folder, out, **changes)
    vlm = attach_skill(*load_host(arguments), arguments)
    return arguments, vlm, open_samples(vlm, arguments)


def _batch(vlm, samples, *rows):
    return Collator(vlm.prompts.collate)([samples[row] for row in rows])


def _trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def _named(model, part):
    return {name for name, _ in model.named_parameters() if f".{part}." in name}


def test_lora_and_fpl_are_trained_and_nothing_else(folder):
    _, vlm, _ = _prepared(folder, "x-llava-lora")
    model = vlm.host
    prefix = "base_model.model.model"
    lora = {
        f"{prefix}.layers.{layer}.{'mlp' if 'self' not in part else 'self_attn'}."
        f"{part.removeprefix('self.')}.lora_{side}.default.weight"
        for layer in range(2)
        for part in (
            *(f"self.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")),
            "gate_proj", "up_proj", "down_proj",
        )
        for side in "AB"
    }  # fmt: skip
    fpl = _named(model, "forgery_projector")
    assert len(fpl) == len(list(model.get_model().forgery_projector.parameters()))
    assert _trained(model) == lora | fpl
    # LLaVA's own projector only where its flag asks for it.
    _, vlm, _ = _prepared(folder, "x-llava-lora", mm_projector_lr=1e-5)
    model = vlm.host
    assert _trained(model) == lora | fpl | _named(model, "mm_projector")


def test_the_fpl_alone_is_trained_and_nothing_else(folder):
    _, vlm, _ = _prepared(folder, "x-llava-fpl")
    fpl = {f"model.forgery_projector.{n}" for n, _ in vlm.fpl.named_parameters()}
    assert _trained(vlm.host) == fpl


def test_all_of_a_detector_with_a_small_encoder_is_trained_in_stage_1():
    detector = tiny.kfd()
    stage = Stage1(detector, LossWeights())
    parts = {"encoder", "consistency", "locator", "classifier", "knowledge"}
    names = {name for name, _ in stage.named_parameters()}
    assert {name.split(".")[1] for name in names} == parts
    assert _trained(stage) == names


def test_groups_have_the_learning_rates_of_their_flags(folder):
    arguments, vlm, samples = _prepared(folder, "x-llava-lora", mm_projector_lr=1e-5, fpl_lr=0.5)
    model, stage = vlm.host, make_stage(vlm, arguments)
    trainer = Stage2Trainer(
        model=stage, args=arguments.training, train_dataset=samples, order=llava_order
    )
    rates = {
        id(p): group["lr"] for group in trainer.create_optimizer().param_groups
        for p in group["params"]
    }  # fmt: skip
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            expected = 0.01
            if ".mm_projector." in name:
                expected = 1e-5
            elif ".forgery_projector." in name:
                expected = 0.5
            assert rates.pop(id(parameter)) == expected, name
    assert not rates


@pytest.fixture(scope="module")
def lora(folder):
    """The arguments and the result of a training with general data and the host's projector."""
    arguments = _arguments(
        folder, "whole-llava-lora", general_data_path=folder / "general.json",
        mm_projector_lr=1e-3, gradient_checkpointing=True,
    )  # fmt: skip
    return arguments, run(arguments)


def _files(folder):
    names = ("adapter_model.safetensors", "fpl.safetensors", "host_trainables.safetensors")
    return {name: load_file(folder / name) for name in names if (folder / name).is_file()}


def _same(one, two):
    return all(torch.equal(one[f][name], two[f][name]) for f in one for name in one[f])


def test_training_changes_what_it_should_and_writes_llavas_layout(folder, lora):
    model = lora[1].host
    out = folder / "whole-llava-lora"
    names = {path.name for path in out.iterdir()}
    assert {
        "adapter_config.json", "adapter_model.safetensors", "config.json", "fpl.safetensors",
        "kfd", "non_lora_trainables.bin", "checkpoint-2", "checkpoint-4", "log.json",
    } <= names  # fmt: skip
    assert not [name for name in names if name.startswith(".")]
    assert json.loads((out / "config.json").read_text())["mm_forgery_template"] == "v1"
    host = load_file(folder / "tiny-llava/model.safetensors")
    state = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): tensor
        for name, tensor in model.state_dict().items()
    }
    for name, tensor in host.items():
        assert torch.equal(state[name], tensor) == ("mm_projector" not in name), name
    for name, tensor in load_file(out / "kfd/kfd.safetensors").items():
        assert torch.equal(load_file(folder / "kfd/kfd.safetensors")[name], tensor)
    trained = torch.load(out / "non_lora_trainables.bin", weights_only=True)
    assert set(trained) == {name for name in host if "mm_projector" in name}


def test_resumed_equals_uninterrupted(folder, lora):
    cut = folder / "cut-llava-lora"
    interrupt(folder / "whole-llava-lora", cut, "checkpoint-2")
    (cut / ".checkpoint-4.0123abcd.tmp").mkdir()
    (folder / ".cut-llava-lora.0123abcd.tmp").mkdir()
    run(_arguments(
        folder, "cut-llava-lora", general_data_path=folder / "general.json",
        mm_projector_lr=1e-3, gradient_checkpointing=True,
    ))  # fmt: skip
    whole = _files(folder / "whole-llava-lora")
    assert len(whole) == 3
    assert not list(folder.rglob(".*"))
    assert _same(whole, _files(cut))
    assert not _same(whole, _files(cut / "checkpoint-2"))


def test_the_best_state_on_other_people_is_written(folder):
    """From LLaVA's JSON, which tells whom it shows; the adapter tells it as well."""
    rows = load_faces(folder / "faces")
    pairs = FacePairs(rows, 4, size=tiny.SIZE)
    build_conversations(pairs, tiny.kfd(), folder / "val", seed=2, **PAPER)
    data = folder / "val/conversations.json"
    entries = json.loads(data.read_text())
    held_out = {entry["identity"] for entry in entries}
    # Answers that are not those of the training: it makes them less likely with every step.
    for entry in entries:
        entry["identity"] = f"other {entry['identity']}"
        for turn in entry["conversations"]:
            if turn["from"] == "gpt":
                turn["value"] = "It may be. " * 4
    data.write_text(json.dumps(entries))
    flags = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 3, "save_strategy": "no"}
    flags |= {"learning_rate": 0.1, "mm_forgery_placement": "placeholders", "eval_data_path": data}
    run(_arguments(folder, "best-llava-lora", data_path=folder / "qa/conversations.json", **flags))
    out = folder / "best-llava-lora"
    history = json.loads((out / "validation.json").read_text())
    assert [figures["step"] for figures in history] == [1, 2, 3]
    assert min(history, key=lambda figures: figures["loss"])["step"] < 3
    for name in ("fpl.safetensors", "adapter_model.safetensors"):
        assert (out / name).read_bytes() == (out / "best" / name).read_bytes()
    people = set(json.loads((out / "kfd/kfd_config.json").read_text())["training_people"])
    assert people == {identity_digest(name) for name in held_out}
    with pytest.raises(ValueError, match="people who are validated on are trained on as well"):
        run(_arguments(folder, "leak-llava-lora", **{**flags, "eval_data_path": folder / "qa"}))


def test_the_same_flags_add_no_step_and_others_are_refused(folder, lora, caplog):
    out = folder / "whole-llava-lora"
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    words = _words(
        folder, "whole-llava-lora", general_data_path=folder / "general.json",
        mm_projector_lr=1e-3, gradient_checkpointing=True,
    )  # fmt: skip
    with caplog.at_level(logging.INFO):
        assert main([*words, "--save_steps", "3", "--logging_steps", "2"]) == 0
    assert "this training is finished" in caplog.text
    tiny.kfd(1).save_pretrained(folder / "other-kfd")
    for flag, value, name in (
        ("learning_rate", 0.02, "learning_rate"),
        ("forgery_tower", folder / "other-kfd", "detector"),
        ("general_data_path", folder / "qa", "data.general"),
        ("lora_alpha", 5, "lora.alpha"),
        ("model_max_length", 1024, "model_max_length"),
        ("fpl_lr", 0.5, "fpl_learning_rate"),
        ("fpl_warmup_steps", 5, "warm_start.steps"),
    ):
        caplog.clear()
        assert main([*words, f"--{flag}", str(value)]) == 2
        assert "holds a finished training with other settings" in caplog.text
        assert f" {name} was " in caplog.text
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    # Another length is another question to the data.
    cache = out / "validation.json"
    assert before | {cache: b""} == after | {cache: b""}


def test_checkpoints_from_elsewhere_are_refused_before_anything_is_loaded(folder, lora, caplog):
    out = folder / "elsewhere-llava-lora"
    shutil.copytree(folder / "whole-llava-lora/checkpoint-2", out / "checkpoint-2")
    words = _words(folder, out.name, model_name_or_path=folder / "none")
    assert main(words) == 2
    assert "training_run.json, which every training writes: it is from elsewhere" in caplog.text
    assert {path.name for path in out.iterdir()} == {"checkpoint-2"}


def _logits(model, vlm, samples):
    """Of the first two samples, in float32."""
    batch = _batch(vlm, samples, 0, 1)
    labels = batch.pop("labels")
    with torch.no_grad():
        output = model.eval()(**batch)
    return output.logits.float(), labels


def _loaded(out, base):
    """As LLaVA's loader reads it, brought from its float16 to float32."""
    from llava.mm_utils import get_model_name_from_path
    from llava.model import builder

    loaded = builder.load_pretrained_model(
        str(out), str(base), get_model_name_from_path(str(out)), device_map="cpu", device="cpu"
    )
    model = loaded[1].float()
    model.get_vision_tower().float()
    return model


def _agree(before, after):
    """Equal up to the rounding of LLaVA's float16; another seed's FPL is far outside."""
    scale = before.std()
    assert float((before - after).abs().mean() / scale) < 0.01
    assert float((before - after).abs().max() / scale) < 0.2


def test_llavas_loader_gives_the_answers_of_before(folder, lora):
    arguments, vlm = lora
    samples = open_samples(vlm, arguments)
    before, _ = _logits(vlm, vlm, samples)
    loaded = _loaded(folder / "whole-llava-lora", folder / "tiny-llava")
    after, _ = _logits(loaded, vlm, samples)
    _agree(before, after)
    # Without what was trained the logits are others: the comparison can fail.
    with torch.no_grad():
        for parameter in loaded.get_model().forgery_projector.parameters():
            parameter.zero_()
    with pytest.raises(AssertionError):
        _agree(before, _logits(loaded, vlm, samples)[0])


def test_the_fpl_alone_is_read_by_llavas_loader_and_the_host_is_untouched(folder):
    arguments = _arguments(folder, "whole-llava-fpl", max_steps=2, group_by_modality_length=True)
    vlm = run(arguments)
    host = load_file(folder / "tiny-llava/model.safetensors")
    state = vlm.host.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in host.items())
    samples = open_samples(vlm, arguments)
    before, _ = _logits(vlm, vlm, samples)
    after, _ = _logits(_loaded(folder / "whole-llava-fpl", folder / "tiny-llava"), vlm, samples)
    _agree(before, after)


def _general(folder, out, **changes):
    """A prepared training, a batch of general data alone and one with a face."""
    _, vlm, samples = _prepared(
        folder, out, general_data_path=folder / "general.json", **changes
    )  # fmt: skip
    batches = [_batch(vlm, samples, samples.is_skill.index(kind)) for kind in (False, True)]
    return LlavaStage2(vlm).train(), *batches


@pytest.mark.parametrize("kind", ["lite", "paper"])
def test_general_data_alone_leaves_gradients_of_zero_not_none_and_no_trace(folder, kind):
    stage, general, _ = _general(folder, "x-llava-lora", fpl_kind=kind)
    assert "forgery_images" not in general
    before = {name: buffer.clone() for name, buffer in stage.named_buffers()}
    stage(**general)["loss"].backward()
    for name, parameter in stage.vlm.fpl.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name
    assert stage.vlm.fpl.training
    assert any("running_mean" in name for name in before)
    for name, buffer in stage.named_buffers():
        assert torch.equal(buffer, before[name]), name


def _order(stage, batch):
    """Names of the modules as a training step runs them, then of the weights as their gradients
    come; the detector has a copy of its own in each process."""
    order, handles = [], []
    for name, module in stage.named_modules():
        if "forgery_tower" not in name:
            handles.append(module.register_forward_pre_hook(lambda *_, n=name: order.append(n)))
    for name, parameter in stage.named_parameters():
        if parameter.requires_grad:
            hook = parameter.register_post_accumulate_grad_hook
            handles.append(hook(lambda _, n=name: order.append(n)))
    stage(**batch)["loss"].backward()
    for handle in handles:
        handle.remove()
    return order


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", ["lite", "paper"])
def test_general_data_runs_the_modules_of_the_skill_in_the_same_order(folder, kind, shared):
    # DeepSpeed counts on it: ZeRO-2 adds gradients up as they come, ZeRO-3 gathers weights as the
    # modules run.
    changes = {}
    if shared:
        tower = tiny_llava.save_tower_kfd(folder / "tower-kfd", folder / "clip")
        changes = {"forgery_tower": f"kfd:{tower}"}
    stage, general, skill = _general(
        folder, "x-llava-lora", fpl_kind=kind, mm_projector_lr=1e-3, **changes
    )  # fmt: skip
    expected = _order(stage, skill)
    assert sum("forgery_projector" in name for name in expected) > 20
    assert _order(stage, general) == expected


def test_the_detector_sees_in_full_precision_what_it_sees_in_use(folder, monkeypatch):
    _, vlm, samples = _prepared(folder, "x-llava-lora")
    batch, seen, detect = _batch(vlm, samples, 0), [], vlm.detect
    monkeypatch.setattr(vlm, "detect", lambda images: seen.append(detect(images)) or seen[-1])
    with torch.autocast("cpu", torch.bfloat16):
        LlavaStage2(vlm)(**batch)
    assert torch.equal(seen[0].class_logits, tiny.kfd()(batch["forgery_images"]).class_logits)


def test_lora_is_trained_on_a_language_model_of_four_bits(folder):
    pytest.importorskip("bitsandbytes", reason="needs the extra quantization")
    _, vlm, samples = _prepared(folder, "x-llava-lora", bits=4)
    model = vlm.host
    inner = model.get_base_model().get_model()
    assert type(inner.layers[0].mlp.up_proj.base_layer).__name__ == "Linear4bit"
    assert type(inner.mm_projector[0]) is torch.nn.Linear
    _, plain, _ = _prepared(folder, "x-llava-lora")
    assert _trained(model) == _trained(plain.host)
    LlavaStage2(vlm)(**_batch(vlm, samples, 0))["loss"].backward()
    # B begins at zero, so A has no gradient yet.
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


def test_wrong_hosts_and_templates_are_one_line_on_the_command_line(folder, tmp_path, caplog):
    words = _words(folder, "x-llava-lora")
    assert main([*words, "--version", "v9"]) == 2
    assert "'v9' is not one of LLaVA's conversation templates" in caplog.text
    assert main([*words, "--model_name_or_path", str(tmp_path / "none")]) == 2
    assert "could not be read" in caplog.text
    assert main([*words, "--forgery_tower", str(tmp_path)]) == 2
    assert "holds no kfd_config.json" in caplog.text
    host, processor = tiny.llava()
    host.save_pretrained(tmp_path / "hf")
    processor.save_pretrained(tmp_path / "hf")
    assert main([*words, "--model_name_or_path", str(tmp_path / "hf")]) == 2
    assert "for models of transformers" in caplog.text
    (tmp_path / "file").touch()
    assert main([*words, "--output_dir", str(tmp_path / "file/x-llava-lora")]) == 2
    assert caplog.messages[-1] == f"{tmp_path / 'file/x-llava-lora'}: Not a directory"


def _environment():
    """Of processes on the CPU."""
    return {
        **os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip


def _shell(folder, out, stage):
    """``scripts/finetune_lora.sh`` with two processes on the CPU."""
    environment = {
        **_environment(), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MODEL": "tiny-llava", "KFD": "kfd", "DATA": "qa", "OUT": out, "GPUS": "2", "BATCH": "1",
        "ACCUMULATE": "1", "BF16": "False", "WORKERS": "0",
        "ZERO": str(ROOT / f"scripts/zero{stage}.json"),
    }  # fmt: skip
    result = subprocess.run(
        ["bash", ROOT / "scripts/finetune_lora.sh", "--lora_r", "2", "--lora_dropout", "0",
         "--max_steps", "4", "--save_steps", "2", "--learning_rate", "0.01"],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=3600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-6000:]


@pytest.fixture(scope="module")
def one_process(folder):
    """Two samples for each step in one process: the mean of two processes' means."""
    arguments = _arguments(
        folder, "one-llava-lora", per_device_train_batch_size=1, gradient_accumulation_steps=2,
        lora_r=2, lora_alpha=32, warmup_steps=0.03, lr_scheduler_type="cosine",
        gradient_checkpointing=True,
    )  # fmt: skip
    return arguments, run(arguments)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_two_processes_from_the_shell_and_llavas_loader(folder, one_process, stage):
    pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
    out = f"zero{stage}-llava-lora"
    _shell(folder, out, stage)
    one, two = _files(folder / "one-llava-lora"), _files(folder / out)
    for file, tensors in one.items():
        assert set(tensors) == set(two[file])
        for name, tensor in tensors.items():
            torch.testing.assert_close(two[file][name], tensor, atol=1e-4, rtol=1e-3)
    arguments, vlm = one_process
    samples = open_samples(vlm, arguments)
    before, _ = _logits(vlm, vlm, samples)
    after, _ = _logits(_loaded(folder / out, folder / "tiny-llava"), vlm, samples)
    _agree(before, after)


# Both kinds of FPL, both orders of mixed data, images in tiles, and the host's tower shared.
MIXED = {
    "paper": {"fpl_kind": "paper"},
    "lite": {"fpl_kind": "lite", "general_ratio": 0.7},
    "paper-group": {
        "fpl_kind": "paper", "general_ratio": 0.4, "group_by_modality_length": True,
    },
    "lite-tiles": {"fpl_kind": "lite", "model_name_or_path": "tiny-tiles-llava"},
    "lite-shared": {"fpl_kind": "lite", "forgery_tower": "mixed-tower-kfd"},
}  # fmt: skip


def _mixed_words(folder, out, case, **changes):
    """Of a training whose micro-batches of one sample are the skill's or general."""
    # Adam divides small gradients by themselves, and of those of a paper FPL's batch norms little
    # but the order of a sum is left: with a small epsilon two runs of one process that differ in
    # the last bit move 1e-3 apart. With this one a step grows with its gradient; so does a fault.
    flags = {"learning_rate": 2e-4, "adam_epsilon": 1e-2, "logging_steps": 1, **MIXED[case]}
    return _words(
        folder, f"{out}-{case}-llava-lora", general_data_path=folder / "mixed.json",
        image_folder=folder, per_device_train_batch_size=1, save_strategy="no", validate=False,
        **flags, **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def mixed(folder, one_thread):
    """Each case in one process that accumulates the gradients of two micro-batches."""
    tiny_llava.save_llava(folder / "tiny-tiles-llava", aspect="anyres")
    tiny_llava.save_tower_kfd(folder / "mixed-tower-kfd", folder / "clip")
    Image.fromarray(tiny.picture(1)).save(folder / "general.png")
    entries = []
    for number in range(6):
        image = {"image": "general.png"} if number % 3 == 2 else {}
        question = "<image>\n" * len(image) + "What is this?" + " And this?" * number
        turns = [
            {"from": "human", "value": question},
            {"from": "gpt", "value": "A model. " * (1 + number)},
        ]
        entries.append({"id": f"{number}", "conversations": turns, **image})
    (folder / "mixed.json").write_text(json.dumps(entries))
    with contextlib.chdir(folder):
        for case in MIXED:
            run(parse_arguments(_mixed_words(folder, "one", case, gradient_accumulation_steps=2)))
    return folder


def _losses(folder):
    log = json.loads((folder / "log.json").read_text())
    return [entry["loss"] for entry in log if "loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_two_processes_of_which_one_may_show_no_face_train_as_one(mixed, stage):
    """0 is DistributedDataParallel."""
    changes = {}
    if stage:
        pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
        content = json.loads((ROOT / f"scripts/zero{stage}.json").read_text())
        if stage == 3:
            # All weights are shared out, though they are small ones.
            content["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        changes["deepspeed"] = mixed / f"mixed-zero{stage}.json"
        changes["deepspeed"].write_text(json.dumps(content))
    out = f"zero{stage}"
    lines = [_mixed_words(mixed, out, case, **changes) for case in MIXED]
    (mixed / f"{out}.json").write_text(json.dumps(lines))
    script = Path(__file__).with_name("llava_trainings.py")
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         script, mixed / f"{out}.json"],
        cwd=mixed, env=_environment(), capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-6000:]
    for case in MIXED:
        one, two = (mixed / f"{name}-{case}-llava-lora" for name in ("one", out))
        assert _losses(two) == pytest.approx(_losses(one), rel=1e-5), case
        assert len(_losses(one)) == 4
        found = _files(two)
        for file, tensors in _files(one).items():
            assert set(tensors) == set(found[file])
            for name, tensor in tensors.items():
                # Only variances are larger than 1.
                torch.testing.assert_close(
                    found[file][name], tensor, atol=1e-5, rtol=1e-5,
                    msg=lambda text, name=name, case=case: f"{case}, {name}: {text}",
                )  # fmt: skip
