"""Ranking of the two answers, its polarity, and figures by set."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from llava_forgery.constants import FAKE, REAL
from llava_forgery.data.labelled import LabelledFile, read_labelled
from llava_forgery.evaluation.pseudo_word import (
    evaluate_pseudo_word,
    rank_answers,
    summarise_sets,
    table_of,
)
from llava_forgery.hosts.pseudo_word import PseudoWordConfig, attach_pseudo_word
from tests import tiny
from tests.hosts.test_pseudo_word import instructblip


def _saying(word):
    """A host that answers one word to whatever it is asked."""
    host, processor = tiny.llava()
    tokens = processor.tokenizer(f"{word}<|im_end|>", add_special_tokens=False)["input_ids"]
    head = host.get_output_embeddings()
    bias = torch.zeros(head.weight.shape[0])
    bias[tokens] = 50.0
    head.register_forward_hook(lambda module, inputs, output: output + bias)
    return attach_pseudo_word(host, processor).eval()


@pytest.mark.parametrize(("word", "label"), [("yes", REAL), ("no", FAKE)])
def test_yes_means_real_and_no_means_fake(word, label):
    (p_fake,) = rank_answers(_saying(word), [Image.fromarray(tiny.picture(0, 32))])
    assert p_fake == pytest.approx(label, abs=1e-6)


@pytest.mark.parametrize("make", [tiny.llava, instructblip])
def test_swapped_answers_swap_the_probabilities(make):
    images = [Image.fromarray(tiny.picture(i, 32)) for i in range(3)]
    plain = attach_pseudo_word(*make(), PseudoWordConfig()).eval()
    swapped = PseudoWordConfig(real_answer="no", fake_answer="yes")
    other = attach_pseudo_word(*make(), swapped).eval()
    found = np.array([rank_answers(plain, images), rank_answers(other, images)])
    np.testing.assert_allclose(found[0], 1 - found[1], atol=1e-5)
    # One image at a time gives the same as all of them.
    alone = [rank_answers(plain, [image])[0] for image in images]
    np.testing.assert_allclose(found[0], alone, atol=1e-5)


def _record(name, label, p_fake):
    return {"set": name, "label": label, "p_fake": p_fake, "prediction": int(p_fake >= 0.5)}


RECORDS = [
    _record("real/coco", REAL, 0.1),
    _record("real/coco", REAL, 0.6),
    _record("fake/sd2", FAKE, 0.9),
    _record("fake/sd2", FAKE, 0.8),
    _record("fake/gan", FAKE, 0.2),
    _record("fake/gan", FAKE, 0.05),
    _record("fake/gan", FAKE, 0.7),
    _record("fake/gan", FAKE, 0.55),
]


def test_figures_by_set_and_held_in_and_held_out_apart():
    metrics = summarise_sets(RECORDS, trained=("real/coco", "fake/sd2", "fake/unseen"))
    sets = metrics["sets"]
    assert {n: s["held_in"] for n, s in sets.items()} == {
        "fake/gan": False,
        "fake/sd2": True,
        "real/coco": True,
    }
    assert [sets[n]["accuracy"] for n in ("real/coco", "fake/sd2", "fake/gan")] == [0.5, 1.0, 0.5]
    # Against the real photos 0.1 and 0.6: of eight pairs the fake is higher in four.
    assert sets["fake/gan"]["auc"] == 0.5
    assert sets["fake/sd2"]["auc"] == 1.0
    assert sets["real/coco"]["auc"] is None
    assert metrics["held_in"] == {"images": 4, "accuracy": 0.75, "mean_accuracy": 0.75, "auc": 1.0}
    assert metrics["held_out"] == {
        "images": 4,
        "accuracy": 0.5,
        "mean_accuracy": 0.5,
        "auc": None,
    }
    assert metrics["all"]["accuracy"] == 5 / 8
    assert metrics["all"]["mean_accuracy"] == pytest.approx(2 / 3)
    lines = table_of(metrics).splitlines()
    assert lines[2].split() == ["fake/gan", "4", "0.500", "0.500", "no"]
    assert lines[-2].split() == ["held_out", "4", "0.500", "-"]


def test_nothing_held_in():
    metrics = summarise_sets(RECORDS, trained=())
    assert metrics["held_in"] == {
        "images": 0,
        "accuracy": None,
        "mean_accuracy": None,
        "auc": None,
    }
    assert metrics["held_out"] == metrics["all"]


def test_evaluation_writes_records_and_metrics(tmp_path):
    for name in ("real/a", "fake/b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(tiny.picture(i, 32)).save(tmp_path / f"data/{name}/{i}.png")
    images = read_labelled(tmp_path / "data")
    vlm = _saying("no")
    vlm.sources = ("real/a",)
    metrics = evaluate_pseudo_word(vlm, images, tmp_path / "out", batch_size=3)
    assert metrics == json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["sets"]["fake/b"]["accuracy"] == 1.0
    assert metrics["held_in"]["accuracy"] == 0.0
    records = [json.loads(line) for line in (tmp_path / "out/records.jsonl").open()]
    assert [r["path"] for r in records] == [str(image.path) for image in images]
    assert all(r["prediction"] == FAKE and r["p_fake"] > 0.5 for r in records)


def test_a_broken_photo_is_named(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"a\.png"):
        evaluate_pseudo_word(
            attach_pseudo_word(*tiny.llava()),
            [LabelledFile(tmp_path / "a.png", REAL, "real")],
            tmp_path / "out",
        )
