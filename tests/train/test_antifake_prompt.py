"""Training a pseudo-word on the smallest hosts: what is learned, and that nothing else changes."""

import hashlib
import json
import logging
import shutil

import datasets
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from llava_forgery.constants import FAKE, REAL
from llava_forgery.data.forge import forge_folders
from llava_forgery.data.labelled import read_labelled
from llava_forgery.evaluation.pseudo_word import evaluate_pseudo_word
from llava_forgery.faces.records import FEATURES, load_faces
from llava_forgery.hosts.likelihood import label_log_likelihoods
from llava_forgery.hosts.pseudo_word import PseudoWordConfig, attach_pseudo_word, load_pseudo_word
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.simulate.pairs import FacePairs
from llava_forgery.train.antifake_prompt import (
    AnswerCollator,
    LabelledAnswers,
    PseudoWordTraining,
    encode_answer,
    train_pseudo_word,
)
from tests import tiny
from tests.hosts.test_pseudo_word import instructblip
from tests.train.interruption import interrupt

VECTOR = "vectors.language_model.weight"


def digest(module):
    """SHA-256 over the names and bytes of a module's weights and buffers."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        hashed.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return hashed.hexdigest()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Forged and pristine faces as folders."""
    folder = tmp_path_factory.mktemp("forged") / "data"
    rows = [tiny.face(i).to_row() for i in range(4)]
    faces = datasets.Dataset.from_list(rows, features=FEATURES)
    forge_folders(FacePairs(faces, 4, size=tiny.SIZE), folder)
    return read_labelled(folder)


def _train(images, folder, **options):
    vlm = attach_pseudo_word(*tiny.llava())
    return train_pseudo_word(vlm, images, folder, **{"learning_rate": 0.1, "epochs": 2, **options})


def test_forged_folders_say_what_they_hold(images):
    assert [image.label for image in images] == [REAL] * 4 + [FAKE] * 4
    for image in images:
        note = Image.open(image.path).text["Description"]
        assert ("simulated forgery" in note) == (image.label == FAKE)
    real, fake = images[0].path, images[4].path
    assert real.name == fake.name
    assert Image.open(real).tobytes() != Image.open(fake).tobytes()


@pytest.mark.parametrize("make", [tiny.llava, instructblip])
def test_only_the_word_is_trained_and_the_loss_falls(make, images, tmp_path):
    host, processor = make()
    before = digest(host)
    vlm = attach_pseudo_word(host, processor)
    batch = AnswerCollator(processor)([LabelledAnswers(images, vlm)[i] for i in range(8)])
    start = {name: tensor.clone() for name, tensor in vlm.word.state_dict().items()}
    with torch.no_grad():
        first = float(PseudoWordTraining(vlm)(**batch)["loss"])
    train_pseudo_word(vlm, images, tmp_path / "word", epochs=10, learning_rate=0.1)
    with torch.no_grad():
        last = float(PseudoWordTraining(vlm)(**batch)["loss"])
    assert last < first
    assert digest(host) == before
    assert all(not torch.equal(vlm.word.state_dict()[name], start[name]) for name in start)
    loaded = load_pseudo_word(tmp_path / "word", *make())
    assert digest(loaded.word) == digest(vlm.word)
    assert loaded.sources == ("fake", "real")


def test_resumed_equals_uninterrupted(images, tmp_path):
    options = {"epochs": 4, "batch_size": 4, "save_steps": 4}
    _train(images, tmp_path / "whole", **options)
    interrupt(tmp_path / "whole-training", tmp_path / "cut-training", "checkpoint-4")
    with pytest.raises(ValueError, match="--resume"):
        _train(images, tmp_path / "cut", **options)
    _train(images, tmp_path / "cut", resume=True, **options)
    name = "pseudo_word.safetensors"
    whole, cut = (load_file(tmp_path / run / name)[VECTOR] for run in ("whole", "cut"))
    assert torch.equal(whole, cut)


def test_a_finished_word_is_not_trained_again_and_another_is_refused(images, tmp_path, caplog):
    word = _train(images, tmp_path / "word").word
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with caplog.at_level(logging.INFO):
        again = _train(images, tmp_path / "word").word
    assert "this training is finished" in caplog.text
    assert digest(again) == digest(word)
    for changes, name in (
        ({"epochs": 3}, "num_train_epochs"),
        ({"weight_decay": 0.0}, "weight_decay"),
        ({"images": images[1:]}, "data"),
    ):
        with pytest.raises(ValueError, match=rf"[ ;]{name} was "):
            _train(**{"images": images, "folder": tmp_path / "word", **changes})
    config = PseudoWordConfig(fake_answer="never")
    vlm = attach_pseudo_word(*tiny.llava(), config)
    with pytest.raises(ValueError, match=r'word\.fake_answer was "no", now "never"'):
        train_pseudo_word(vlm, images, tmp_path / "word", learning_rate=0.1, epochs=2)
    assert files == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("make", [tiny.llava, instructblip])
def test_labels_are_the_answers_tokens_and_the_end(make, images):
    host, processor = make()
    config = PseudoWordConfig(real_answer="yes, it is", fake_answer="no")
    attach_pseudo_word(host, processor, config)
    for label, answer in ((REAL, "yes, it is"), (FAKE, "no")):
        sample = encode_answer(processor, config, label, Image.open(images[0].path))
        kept = sample["labels"] != -100
        end = processor.tokenizer.eos_token
        assert processor.tokenizer.decode(sample["labels"][kept]) == answer + end
        assert torch.equal(sample["labels"][kept], sample["input_ids"][kept])
        assert bool(kept[kept.nonzero()[0] :].all()) or make is tiny.llava


@pytest.mark.parametrize("make", [tiny.llava, instructblip])
def test_likelihoods_are_those_of_a_step_by_step_reading(make, images):
    """Answers of different length in one padded batch, against each token predicted by itself."""
    host, processor = make()
    config = PseudoWordConfig(real_answer="yes, it is a real photo", fake_answer="no")
    vlm = attach_pseudo_word(host, processor, config).eval()
    image = Image.open(images[0].path)
    samples = [encode_answer(processor, config, label, image) for label in (REAL, FAKE)]
    assert len(samples[0]["input_ids"]) > len(samples[1]["input_ids"])
    with torch.no_grad():
        batch = AnswerCollator(processor)(samples)
        found = label_log_likelihoods(vlm, **batch)[0].sum(dim=1)
        for sample, likelihood in zip(samples, found, strict=True):
            alone = AnswerCollator(processor)([sample])
            labels = alone.pop("labels")[0]
            logs = vlm(**alone).logits[0].log_softmax(dim=-1)
            expected = sum(logs[i - 1, labels[i]] for i in range(1, len(labels)) if labels[i] >= 0)
            torch.testing.assert_close(likelihood, expected, atol=1e-4, rtol=1e-4)


def test_wrong_use(images, tmp_path):
    vlm = attach_pseudo_word(*tiny.llava())
    with pytest.raises(ValueError, match="4 real and 0 fake"):
        train_pseudo_word(vlm, [i for i in images if i.label == REAL], tmp_path / "word")
    host, processor = tiny.llava()
    skilled = attach_pseudo_word(attach_forgery(host, processor, tiny.kfd()), processor)
    with pytest.raises(ValueError, match="train the pseudo-word on the bare host"):
        train_pseudo_word(skilled, images, tmp_path / "word")


@pytest.mark.slow
def test_photographs_against_simulated_forgeries(samples_dir, tmp_path):
    """Loss falls on real photographs, the host stays as it was, held-out people are judged."""
    from llava_forgery.faces.prepare import prepare

    pytest.importorskip("dlib", reason="needs the extra faces")
    photos = tmp_path / "photos"
    photos.mkdir()
    for file in sorted(samples_dir.glob("*.jpg"))[:16]:
        shutil.copy(file, photos)
    prepare(photos, tmp_path / "faces", identity_pattern="^([^_]+)_", test_share=0.25)
    data = {}
    for split, pairs in (("train", 24), ("test", 8)):
        faces = load_faces(tmp_path / "faces", split=split)
        forge_folders(FacePairs(faces, pairs, size=64), tmp_path / split)
        data[split] = read_labelled(tmp_path / split)
    host, processor = tiny.llava()
    before = digest(host)
    vlm = attach_pseudo_word(host, processor)
    train_pseudo_word(vlm, data["train"], tmp_path / "word", epochs=10, learning_rate=0.05)
    assert digest(host) == before
    log = json.loads((tmp_path / "word-training/log.json").read_text())
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0]
    metrics = evaluate_pseudo_word(vlm, data["test"], tmp_path / "evaluation")
    assert metrics["all"]["images"] == 16
    assert 0 <= metrics["all"]["accuracy"] <= 1
