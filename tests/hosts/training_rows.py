"""The contract's rows about training (:mod:`tests.hosts.test_contract`)."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets import Value
from PIL import Image
from safetensors.torch import load_file

from llava_forgery.data.build_qa import build_conversations
from llava_forgery.data.labelled import LabelledFile
from llava_forgery.faces.records import FEATURES
from llava_forgery.hosts.attach import attach_new
from llava_forgery.hosts.base import ForgeryModel
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.placement import ALWAYS
from llava_forgery.hosts.projector import TRAINABLES
from llava_forgery.hosts.pseudo_word import attach_pseudo_word
from llava_forgery.hosts.transformers.loading import load_host
from llava_forgery.simulate.pairs import FacePairs
from llava_forgery.train.adapter import train_adapter
from llava_forgery.train.antifake_prompt import train_pseudo_word
from llava_forgery.train.dialogues import RowSource, open_source
from llava_forgery.train.dpo import load_trainable, train_preference
from llava_forgery.train.run_record import training_folder
from llava_forgery.train.stage2 import Collator, Stage2, training_samples
from llava_forgery.train.warmup import WarmUp, warm_up_fpl
from tests import tiny
from tests.train.interruption import interrupt

LORA = LoraSettings(r=2, alpha=4, dropout=0.0)


def new(backend: Any, lora: LoraSettings | None = LORA, **options: Any) -> ForgeryModel:
    """The backend's host with a new skill."""
    kfd = backend.root / "kfd"
    return attach_new(str(backend.host), kfd, lora, backend=backend.name, **options)


def conversations(folder: Path) -> datasets.Dataset:
    rows = [tiny.face(i).to_row() for i in range(2)]
    faces = datasets.Dataset.from_list(rows, features=FEATURES)
    return build_conversations(
        FacePairs(faces, 3, size=tiny.SIZE), tiny.kfd(), folder / "qa", seed=1
    )


def general(folder: Path) -> Any:
    """Dialogues with an image and without."""
    Image.fromarray(tiny.picture(3, 40)).save(folder / "cat.png")
    entries = []
    for i in range(4):
        image = {"image": "cat.png"} if i % 2 else {}
        question = "<image>\nWhat is this?" if image else "Who are you?"
        turns = [
            {"from": "human", "value": question},
            {"from": "gpt", "value": "A cat." + " No" * i},
        ]
        entries.append({"id": f"g{i}", "conversations": turns, **image})
    (folder / "general.json").write_text(json.dumps(entries))
    return open_source(folder / "general.json")


def train(vlm: ForgeryModel, data: datasets.Dataset, folder: Path, **options: Any) -> ForgeryModel:
    options = {"steps": 2, "batch_size": 2, "save_steps": None, **options}
    return train_adapter(vlm, data, folder, **options)


def resumed_is_whole(backend: Any, data: Any, folder: Path, new_options: dict, **options) -> Path:
    """Train whole, and from its first checkpoint on; the result's folder."""
    whole, cut = folder / "whole-llava-lora", folder / "cut-llava-lora"
    train(new(backend, **new_options), data, whole, **options)
    interrupt(training_folder(whole), training_folder(cut), f"checkpoint-{options['save_steps']}")
    train(new(backend, **new_options), data, cut, resume=True, **options)
    files = [path.relative_to(whole) for path in whole.glob("*.safetensors")]
    assert len(files) >= 2
    for file in files:
        one, two = load_file(whole / file), load_file(cut / file)
        assert all(torch.equal(one[name], two[name]) for name in one), file
    return whole


def mixing_general_data(backend: Any, folder: Path) -> None:
    data, more = conversations(folder), general(folder)
    samples = training_samples(new(backend), data, more)
    assert samples.is_skill == [True, False] * 6
    resumed_is_whole(
        backend, data, folder, {}, general=more, steps=4, save_steps=2, learning_rate=0.01
    )


def general_steps_leave_no_trace(backend: Any, folder: Path) -> None:
    """Gradients of zero for the FPL, not None: DistributedDataParallel waits for them. A question
    about an image is no such step where E_forgery always stands behind images."""
    vlm = new(backend)
    samples = training_samples(vlm, conversations(folder), general(folder))
    stage = Stage2(vlm).train()
    before = {name: buffer.clone() for name, buffer in stage.named_buffers()}
    of_text = next(i for i, length in enumerate(samples.lengths) if length < 0)
    of_image = next(i for i, skill in enumerate(samples.is_skill) if not skill and i != of_text)
    while samples.lengths[of_image] < 0:
        of_image += 2
    for row in (of_text, of_image):
        batch = Collator(vlm.prompts.collate)([samples[row]])
        # Placed always, E_forgery stands in general questions about an image as well.
        placed = row == of_image and vlm.prompts.placement == ALWAYS
        assert ("forgery_images" in batch) == placed
        stage.zero_grad()
        stage(**batch)["loss"].backward()
        assert all(p.grad is not None for p in vlm.fpl.parameters())
        assert any(p.grad.any() for p in vlm.fpl.parameters()) == placed
        assert vlm.fpl.training
        assert placed or all(torch.equal(b, before[n]) for n, b in stage.named_buffers())


def warming_up(backend: Any, folder: Path) -> None:
    vlm = new(backend, None)
    before = {name: tensor.clone() for name, tensor in vlm.state_dict().items()}
    dialogues = RowSource(conversations(folder), "the conversations")
    first = warm_up_fpl(vlm, dialogues, WarmUp(2))
    assert warm_up_fpl(vlm, dialogues, WarmUp(40)) < 0.7 * first
    learner = {id(tensor) for tensor in (*vlm.fpl.parameters(), *vlm.fpl.buffers())}
    for name, tensor in vlm.state_dict(keep_vars=True).items():
        assert id(tensor) in learner or torch.equal(tensor, before[name]), name


def training_the_projector(backend: Any, folder: Path) -> None:
    data = conversations(folder)
    options = {"steps": 2, "save_steps": 1, "projector_learning_rate": 0.01}
    whole = resumed_is_whole(backend, data, folder, {"train_projector": True}, **options)
    vlm = new(backend, train_projector=True)
    before = {name: tensor.clone() for name, tensor in vlm.projector.state().items()}
    written = load_file(whole / TRAINABLES)
    assert all(not torch.equal(written[name], tensor) for name, tensor in before.items())
    vlm.load_weights(whole)
    loaded = backend.load(whole)
    for name, tensor in written.items():
        assert torch.equal(vlm.projector.state()[name], tensor)
        assert torch.equal(loaded.projector.state()[name].cpu(), tensor)
    for model in (vlm, loaded):
        bare = model.detach()
        assert all(torch.equal(bare.get_parameter(n).cpu(), p) for n, p in before.items())
    with pytest.raises(ValueError, match="weights of the host's own projector"):
        new(backend).load_weights(whole)


def pseudo_word(backend: Any, folder: Path) -> None:
    """One vector is trained, and nothing else."""
    host, processor = load_host(folder, str(backend.host))
    vlm = attach_pseudo_word(host, processor)
    before = {name: tensor.clone() for name, tensor in vlm.state_dict().items()}
    images = []
    for i, name in enumerate(("real", "fake")):
        path = folder / f"{name}.png"
        Image.fromarray(tiny.picture(i)).save(path)
        images.append(LabelledFile(path, i, name))
    train_pseudo_word(vlm, images, folder / "word", epochs=3, batch_size=2, learning_rate=0.05)
    changed = {n for n, t in vlm.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == set(vlm.trainable_names())


def preferring(backend: Any, folder: Path) -> None:
    """FPL and LoRA are trained, from the reference on, and an interruption changes nothing."""
    data, known = conversations(folder), {"score": [None] * 6}
    data = data.remove_columns("score").add_column(
        "score", known["score"], feature=Value("float32")
    )
    whole, cut = folder / "whole-llava-lora", folder / "cut-llava-lora"
    options = {"steps": 4, "batch_size": 2, "save_steps": 2, "learning_rate": 0.01}

    def further() -> ForgeryModel:
        base = str(backend.host)
        return load_trainable(backend.adapter, base, backend.name, device="cpu")

    before = further()
    weights = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    trained = train_preference(before, data, whole, **options)
    changed = {n for n, t in trained.state_dict().items() if not torch.equal(t, weights[n])}
    parts = {"fpl" if "lora_" not in name else "lora" for name in changed}
    assert changed <= set(trained.trainable_names())
    assert parts == {"fpl", "lora"}
    interrupt(training_folder(whole), training_folder(cut), "checkpoint-2")
    train_preference(further(), data, cut, resume=True, **options)
    for file in whole.glob("*.safetensors"):
        one, two = load_file(file), load_file(cut / file.name)
        assert all(torch.equal(one[name], two[name]) for name in one), file
    with pytest.raises(ValueError, match="beta was 0.1, now 0.2"):
        train_preference(further(), data, whole, beta=0.2, **options)


ROWS = {
    "general data mixed in during training": (mixing_general_data, False),
    "training steps that show no face": (general_steps_leave_no_trace, False),
    "warm start of the FPL": (warming_up, False),
    "preference training (DPO)": (preferring, True),
    "training the host's projector": (training_the_projector, True),
}
