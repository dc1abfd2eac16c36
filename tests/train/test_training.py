"""Both stages on the smallest models: what is trained, saved, resumed."""

import copy
import json
import shutil
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from llava_forgery.constants import FAKE, REAL
from llava_forgery.data.build_qa import build_conversations, conversation_of
from llava_forgery.faces.identities import identity_digest
from llava_forgery.faces.records import FEATURES
from llava_forgery.files import read_json, sentence
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.kfd.losses import LossWeights
from llava_forgery.qa import templates
from llava_forgery.simulate.degrade import DegradeConfig
from llava_forgery.simulate.pairs import FacePairs
from llava_forgery.tensors import from_bytes
from llava_forgery.train.adapter import train_adapter
from llava_forgery.train.run_record import last_checkpoint
from llava_forgery.train.stage1 import Stage1, collate_pairs, recalibrate_batch_norm, train_kfd
from llava_forgery.train.stage2 import Collator, Stage2, training_samples
from llava_forgery.train.trainer import ForgeryTrainer, fill_statistics, running_statistics
from llava_forgery.train.validation import measure
from tests import tiny
from tests.train.interruption import interrupt


@pytest.fixture(scope="module")
def faces():
    rows = [tiny.face(i).to_row() for i in range(4)]
    return datasets.Dataset.from_list(rows, features=FEATURES)


# Every prompt with its description and the detector's score.
PAPER = {"task_descriptions": 1.0, "kfd_results": 1.0}


@pytest.fixture(scope="module")
def conversations(faces, tmp_path_factory):
    folder = tmp_path_factory.mktemp("qa") / "conversations"
    return build_conversations(
        FacePairs(faces, 6, size=tiny.SIZE), tiny.kfd(), folder, seed=1, **PAPER
    )


def _train_kfd(faces, folder, **options):
    options = {"steps": 4, "batch_size": 2, "workers": 0, "save_steps": 2, **options}
    detector = KnowledgeGuidedForgeryDetector.from_config(tiny.kfd_config())
    return train_kfd(detector, faces, folder, **options)


class _OnFrozen(nn.Module):
    """A frozen encoder with batch norms under a trained head, with its own eval mode or without."""

    def __init__(self, stays_in_eval_mode):
        super().__init__()
        self.stays = stays_in_eval_mode
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).requires_grad_(False)
        self.head = nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))

    def train(self, mode=True):
        super().train(mode)
        if self.stays:
            self.encoder.eval()
        return self

    def forward(self, images):
        return self.head(self.encoder(images))


@pytest.mark.parametrize("stays_in_eval_mode", [True, False])
def test_frozen_batch_norms_keep_their_statistics_and_trained_ones_are_measured(
    faces, stays_in_eval_mode
):
    torch.manual_seed(0)
    model = _OnFrozen(stays_in_eval_mode).eval()
    with torch.no_grad():
        model.encoder[1].running_mean.fill_(0.25)
        model.encoder[1].running_var.fill_(4.0)
        model.head[1].running_mean.fill_(99.0)
    frozen = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    pairs = FacePairs(faces, 4, size=tiny.SIZE)
    recalibrate_batch_norm(model, pairs, batch_size=2)
    assert _same(frozen, model.encoder.state_dict())
    assert not any(module.training for module in model.modules())
    assert model.head[1].momentum == 0.1
    # The mean of what reaches the norm, on the encoder as it is used.
    with torch.no_grad():
        batch = collate_pairs([pairs[i] for i in range(4)])
        images = torch.cat([batch["forged"], batch["pristine"]])
        seen = model.head[0](model.encoder(images)).mean(dim=(0, 2, 3))
    torch.testing.assert_close(model.head[1].running_mean, seen, atol=1e-5, rtol=1e-4)


def _same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def test_stage_1_trains_saves_and_logs(faces, tmp_path):
    before = tiny.kfd().state_dict()
    detector = _train_kfd(faces, tmp_path)
    assert not detector.training
    changed = {n for n, t in detector.state_dict().items() if not torch.equal(t, before[n])}
    for part in ("encoder.", "consistency.", "locator.", "classifier.", "knowledge.context"):
        assert any(name.startswith(part) for name in changed), part
    loaded = KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path)
    images = torch.rand(2, 3, tiny.SIZE, tiny.SIZE)
    assert torch.equal(loaded(images).class_logits, detector(images).class_logits)
    log = json.loads((tmp_path / "log.json").read_text())
    assert log[-1]["step"] == 4


@pytest.mark.parametrize("masked", [True, False])
def test_stage_1_learns_from_labelled_fakes(faces, tmp_path, masked):
    fake = replace(tiny.face(7), label=FAKE, mask=np.full((96, 96), 255, np.uint8))
    fake = fake if masked else replace(fake, mask=None)
    rows = [face.to_row() for face in (fake, tiny.face(8))]
    labelled = datasets.Dataset.from_list(rows, features=FEATURES)
    options = {"labelled": labelled, "fake_ratio": 1.0, "steps": 1, "save_steps": None}
    detector = _train_kfd(faces, tmp_path / "mixed", **options)
    # No labelled fake has a reference.
    log = json.loads((tmp_path / "mixed/log.json").read_text())
    assert all(entry["reference"] == 0 for entry in log if "reference" in entry)
    assert not _same(tiny.kfd().state_dict(), detector.state_dict())
    with pytest.raises(ValueError, match=r"data\.labelled"):
        _train_kfd(faces, tmp_path / "mixed", steps=1, save_steps=None)


def test_masks_that_are_not_known_are_not_learned_from(faces):
    detector = tiny.kfd()
    stage = Stage1(detector, LossWeights(classification=0.0))
    batch = collate_pairs([FacePairs(faces, 2, size=tiny.SIZE)[i] for i in range(2)])
    known = torch.tensor([True, False])
    losses = stage(**batch, masked=known, paired=known)
    batch["mask"][1] = 1 - batch["mask"][1]
    again = stage(**batch, masked=known, paired=known)
    for name in ("dice", "focal", "reference", "loss"):
        assert torch.equal(losses[name], again[name]), name
    assert not torch.equal(stage(**batch)["dice"], losses["dice"])
    neither = stage(**batch, masked=~known, paired=torch.tensor([False, False]))
    assert float(neither["reference"]) == 0
    neither["loss"].backward()
    assert all(p.grad.isfinite().all() for p in detector.locator.parameters())


def test_stage_1_forges_with_torch_on_its_device(faces, tmp_path):
    whole = _train_kfd(faces, tmp_path / "torch", renderer="cpu:0", workers=1)
    interrupt(tmp_path / "torch", tmp_path / "cut", "checkpoint-2")
    resumed = _train_kfd(faces, tmp_path / "cut", renderer="cpu:0", resume=True)
    assert _same(whole.state_dict(), resumed.state_dict())
    with pytest.raises(ValueError, match="renderer was"):
        _train_kfd(faces, tmp_path / "torch")
    with pytest.raises(ValueError, match="auto, cpu or a device of this machine, got 'gpu'"):
        _train_kfd(faces, tmp_path / "wrong", renderer="gpu")


def test_stage_1_resumed_equals_uninterrupted(faces, tmp_path):
    whole = _train_kfd(faces, tmp_path / "whole").state_dict()
    interrupt(tmp_path / "whole", tmp_path / "cut", "checkpoint-2")
    # What an interruption while saving leaves behind.
    (tmp_path / "cut/checkpoint-3").mkdir()
    with pytest.raises(ValueError, match="--resume"):
        _train_kfd(faces, tmp_path / "cut")
    resumed = _train_kfd(faces, tmp_path / "cut", resume=True).state_dict()
    assert _same(whole, resumed)


@pytest.mark.parametrize(
    ("owner", "method", "call", "file"),
    [
        (Stage1, "save_checkpoint", 2, "checkpoint-4/kfd.safetensors"),
        (ForgeryTrainer, "_save_optimizer_and_scheduler", 2, "checkpoint-4"),
        (Stage1, "save_checkpoint", 3, "kfd.safetensors"),
    ],
)
def test_a_full_disk_leaves_the_last_checkpoint(
    faces, tmp_path, monkeypatch, fill_disk, owner, method, call, file
):
    whole = _train_kfd(faces, tmp_path / "whole").state_dict()
    saving, calls = getattr(owner, method), []

    def fill(self, *args):
        calls.append(args)
        if len(calls) == call:
            fill_disk(100_000)
        saving(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, fill)
        with pytest.raises(OSError, match="training stopped") as caught:
            _train_kfd(faces, tmp_path / "out")
    fill_disk(None)
    kept = tmp_path / "out" / ("checkpoint-4" if call == 3 else "checkpoint-2")
    said = sentence(caught.value)
    assert said.startswith(f"{tmp_path / 'out' / file}: ")
    assert said.endswith(f"training stopped at step 4, {kept} is complete: free space and resume")
    assert last_checkpoint(tmp_path / "out") == str(kept)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    resumed = _train_kfd(faces, tmp_path / "out", resume=True).state_dict()
    assert _same(whole, resumed)


def test_averaged_weights_are_written_and_resumed(faces, tmp_path):
    options = {"average": 0.9, "schedule": "constant_with_warmup"}
    plain = _train_kfd(faces, tmp_path / "plain", schedule=options["schedule"]).state_dict()
    whole = _train_kfd(faces, tmp_path / "whole", **options).state_dict()
    interrupt(tmp_path / "whole", tmp_path / "cut", "checkpoint-2")
    resumed = _train_kfd(faces, tmp_path / "cut", resume=True, **options).state_dict()
    assert _same(whole, resumed)
    # The average lags behind the last step, whose weights the checkpoint goes on from.
    name = "consistency.linears.0.weight"
    start = tiny.kfd().state_dict()[name]
    last = load_file(tmp_path / "whole/checkpoint-4/kfd.safetensors")[name]
    assert torch.equal(last, plain[name])
    assert 0 < (whole[name] - start).norm() < (last - start).norm()
    with pytest.raises(ValueError, match="average is a decay"):
        _train_kfd(faces, tmp_path / "wrong", average=1.0)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_the_best_state_is_written_and_an_interruption_changes_nothing(faces, tmp_path, average):
    """Of four measurements, also where one behind the checkpoint was the best so far."""
    others = datasets.Dataset.from_list(
        [{**row, "identity": f"other {i}"} for i, row in enumerate(faces)], features=FEATURES
    )
    options = {"val_faces": others, "eval_steps": 1, "val_pairs": 6, "average": average}
    whole = _train_kfd(faces, tmp_path / "whole", **options)
    history = read_json(tmp_path / "whole/validation.json")
    assert [figures["step"] for figures in history] == [1, 2, 3, 4]
    best = max(history, key=lambda figures: figures["auc"])
    kept = KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path / "whole/best")
    pairs = FacePairs(others, 6, size=tiny.SIZE, degradation=DegradeConfig(), role="validation")
    assert measure(kept, pairs) == {name: best[name] for name in ("auc", "loss")}
    trained = dict(whole.named_parameters())
    assert all(torch.equal(trained[name], value) for name, value in kept.named_parameters()
               if not name.startswith("knowledge"))  # fmt: skip
    interrupt(tmp_path / "whole", tmp_path / "cut", "checkpoint-2")
    shutil.copytree(tmp_path / "whole/best", tmp_path / "cut/best")
    resumed = _train_kfd(faces, tmp_path / "cut", resume=True, **options)
    assert read_json(tmp_path / "cut/validation.json") == history
    assert _same(whole.state_dict(), resumed.state_dict())


def test_batch_norms_can_be_measured_on_other_pictures(faces, tmp_path):
    """What is trained stays as it is; only running statistics change, and the scores with them."""
    options = {"norm_degradation": DegradeConfig(probability=1.0, video=1.0), "norm_batches": 2}
    plain = _train_kfd(faces, tmp_path / "plain")
    other = _train_kfd(faces, tmp_path / "other", **options)
    assert _same(dict(plain.named_parameters()), dict(other.named_parameters()))
    changed = {
        n for n, t in other.state_dict().items() if not torch.equal(t, plain.state_dict()[n])
    }
    assert changed
    assert all("running_" in name or "num_batches" in name for name in changed)
    with pytest.raises(ValueError, match="norms was"):
        _train_kfd(faces, tmp_path / "other", resume=True)


def test_whom_a_detector_was_trained_on_is_recorded(faces, tmp_path):
    with pytest.raises(ValueError, match="4 of 4 people who are validated on"):
        _train_kfd(faces, tmp_path / "leak", val_faces=faces)
    _train_kfd(faces, tmp_path / "kfd")
    read = KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path / "kfd")
    assert read.training_people == {identity_digest(name) for name in faces["identity"]}
    assert identity_digest("Jos\u00e9") == identity_digest("Jose\u0301")


def test_an_average_is_that_of_its_decay():
    stage = Stage1(tiny.kfd(), LossWeights(), average=0.5)
    weight = stage.detector.consistency.linears[0].weight
    expected = None
    for step, value in enumerate((1.0, 2.0, 4.0)):
        with torch.no_grad():
            weight.fill_(value)
        stage.average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = value if expected is None else decay * expected + (1 - decay) * value
    stage.average.take()
    assert weight.unique().item() == pytest.approx(expected)
    assert not any("averaged" in name for name, _ in stage.named_parameters())


def test_conversations_cite_the_detectors_score_of_the_stored_picture(conversations):
    detector = tiny.kfd()
    assert len(conversations) == 12
    assert sorted(set(conversations["label"])) == [REAL, FAKE]
    for row in conversations:
        conversation = conversation_of(row)
        with torch.no_grad():
            score = float(detector(from_bytes(row["image"])[None]).score)
        assert score == pytest.approx(row["score"], abs=1e-5)
        assert f"the forgery score is {row['score']:.2f}." in conversation.messages[0].text
        assert conversation.messages[1].text.startswith("Yes" if row["label"] else "No")


def test_task_description_and_detectors_result_can_be_left_out(faces, tmp_path):
    def first_texts(**shares):
        pairs = FacePairs(faces, 6, size=tiny.SIZE)
        rows = build_conversations(pairs, tiny.kfd(), tmp_path / "qa", **shares)
        return [row["messages"][0]["text"] for row in rows]

    assert set(first_texts(task_descriptions=0.0, kfd_results=0.0)) <= set(templates.QUESTIONS)
    some = first_texts(task_descriptions=0.5)
    assert 0 < sum(text.startswith(templates.TASK_DESCRIPTIONS) for text in some) < len(some)
    with pytest.raises(ValueError, match="kfd_results is a probability"):
        first_texts(kfd_results=1.5)


def _vlm(lora):
    host, processor = tiny.llava()
    settings = LoraSettings(r=2, alpha=4, dropout=0.0) if lora else None
    return attach_forgery(host, processor, tiny.kfd(), lora=settings)


@pytest.mark.parametrize("lora", [True, False])
def test_stage_2_changes_what_it_should_and_nothing_else(conversations, tmp_path, lora):
    vlm = _vlm(lora)
    before = {name: tensor.clone() for name, tensor in vlm.state_dict().items()}
    train_adapter(vlm, conversations, tmp_path / "adapter", steps=3, batch_size=2, save_steps=None)
    changed = {n for n, t in vlm.state_dict().items() if not torch.equal(t, before[n])}
    assert changed
    assert changed <= set(_vlm(lora).trainable_names())
    assert any(name.startswith("fpl.") for name in changed)
    assert any(".lora_B." in name for name in changed) == lora
    saved = load_file(tmp_path / "adapter/fpl.safetensors")
    assert _same(saved, vlm.fpl.state_dict())


def test_stage_2_resumed_equals_uninterrupted(conversations, tmp_path):
    options = {"steps": 4, "batch_size": 2, "save_steps": 2}
    train_adapter(_vlm(True), conversations, tmp_path / "whole", **options)
    interrupt(tmp_path / "whole-training", tmp_path / "cut-training", "checkpoint-2")
    train_adapter(_vlm(True), conversations, tmp_path / "cut", resume=True, **options)
    for name in ("fpl.safetensors", "adapter_model.safetensors"):
        assert _same(load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name))


def test_stage_2_writes_the_state_of_the_lowest_validation_loss(faces, conversations, tmp_path):
    """A rate that overshoots, so that it is not the last one; an interruption changes nothing."""
    rows = [{**row, "identity": f"other {i}"} for i, row in enumerate(faces)]
    others = datasets.Dataset.from_list(rows, features=FEATURES)
    pairs = FacePairs(others, 3, size=tiny.SIZE)
    held_out = build_conversations(pairs, tiny.kfd(), tmp_path / "val", seed=1, **PAPER)
    options = {"steps": 4, "batch_size": 2, "save_steps": 2, "eval_steps": 1, "learning_rate": 0.5}
    options["val_conversations"] = held_out
    train_adapter(_vlm(True), conversations, tmp_path / "whole", **options)
    history = read_json(tmp_path / "whole-training/validation.json")
    assert [figures["step"] for figures in history] == [1, 2, 3, 4]
    best = min(history, key=lambda figures: figures["loss"])
    assert best["step"] < 4
    interrupt(tmp_path / "whole-training", tmp_path / "cut-training", "checkpoint-2")
    shutil.copytree(tmp_path / "whole-training/best", tmp_path / "cut-training/best")
    train_adapter(_vlm(True), conversations, tmp_path / "cut", resume=True, **options)
    assert read_json(tmp_path / "cut-training/validation.json") == history
    for name in ("fpl.safetensors", "adapter_model.safetensors"):
        written = load_file(tmp_path / "whole" / name)
        assert _same(written, load_file(tmp_path / "whole-training/best" / name))
        assert _same(written, load_file(tmp_path / "cut" / name))
        assert not _same(written, load_file(tmp_path / "whole-training/checkpoint-4" / name))
    vlm = _vlm(True)
    vlm.load_weights(tmp_path / "whole")
    collate = Collator(vlm.prompts.collate)
    samples = training_samples(vlm, held_out)
    batches = [collate([samples[i] for i in range(s, s + 2)]) for s in range(0, len(samples), 2)]
    with torch.no_grad():
        losses = [float(Stage2(vlm.eval())(**batch)["loss"]) for batch in batches]
    assert np.mean(losses) == pytest.approx(best["loss"], rel=1e-5)


def test_whom_an_adapter_was_trained_on_is_recorded(faces, conversations, tmp_path):
    options = {"steps": 1, "batch_size": 2, "save_steps": None}
    leak = {"val_conversations": conversations, **options}
    with pytest.raises(ValueError, match="4 of 4 people who are validated on"):
        train_adapter(_vlm(False), conversations, tmp_path / "leak", **leak)
    vlm = _vlm(False)
    vlm.kfd.training_people = frozenset({identity_digest("of stage 1")})
    more = FacePairs(
        datasets.Dataset.from_list([{**faces[0], "identity": "of the warm start"}], FEATURES),
        1, size=tiny.SIZE,
    )  # fmt: skip
    train_adapter(
        vlm, conversations, tmp_path / "adapter", fpl_warmup_steps=1, fpl_warmup_pairs=more,
        **options,
    )  # fmt: skip
    read = KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path / "adapter/kfd")
    names = ["of stage 1", "of the warm start", *faces["identity"]]
    assert read.training_people == {identity_digest(name) for name in names}


@pytest.mark.parametrize("rate", [0.0, None])
def test_the_fpl_can_have_a_learning_rate_of_its_own(conversations, tmp_path, rate):
    vlm = _vlm(True)
    before = {name: tensor.clone() for name, tensor in vlm.state_dict().items()}
    train_adapter(
        vlm, conversations, tmp_path / "adapter", steps=2, batch_size=2, save_steps=None,
        fpl_learning_rate=rate,
    )  # fmt: skip
    changed = {n for n, t in vlm.state_dict().items() if not torch.equal(t, before[n])}
    assert any(".lora_B." in name for name in changed)
    assert any(name.startswith("fpl.") for name in changed) == (rate is None)


def test_stage_2_loss_is_the_hosts_own(conversations):
    """Logits of the answers alone give the loss that the host computes from all of them."""
    vlm = _vlm(False)
    samples = training_samples(vlm, conversations, max_length=512)
    batch = Collator(vlm.prompts.collate)([samples[i] for i in range(4)])
    with torch.no_grad():
        expected = vlm(**batch).loss
        torch.testing.assert_close(Stage2(vlm)(**batch)["loss"], expected)


def test_samples_hold_what_host_and_detector_see(conversations):
    vlm = _vlm(False)
    sample = training_samples(vlm, conversations, max_length=512)[0]
    assert sample["pixel_values"].shape == (1, 3, 32, 32)
    assert sample["forgery_images"].shape == (1, 3, tiny.SIZE, tiny.SIZE)
    assert int((sample["input_ids"] == vlm.token_id).sum()) == vlm.n_forgery
    answers = vlm.processor.tokenizer.decode(sample["labels"][sample["labels"] != -100])
    assert conversation_of(conversations[0]).messages[1].text in answers


def test_too_long_samples_are_an_error(conversations):
    with pytest.raises(ValueError, match="max_length"):
        training_samples(_vlm(False), conversations, max_length=20)[0]


def test_statistics_of_several_processes_are_those_of_one():
    batches = torch.randn(3, 2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    one = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4, momentum=0.3)])
    processes = [copy.deepcopy(one) for _ in range(3)]
    for step in range(2):
        before = running_statistics(processes[0])
        # The second process shows no face at all, the third one at every other step.
        for process, batch in enumerate(batches):
            if process == 0 or (process == 2 and step):
                for norm, own in zip(one, processes[process], strict=True):
                    norm(batch + step)
                    own(batch + step)
        after = torch.stack([running_statistics(norms) for norms in processes])
        for norms in processes:
            fill_statistics(norms, before, after)
    for norms in processes:
        torch.testing.assert_close(norms.state_dict(), one.state_dict())
    assert int(processes[1][0].num_batches_tracked) == 3
