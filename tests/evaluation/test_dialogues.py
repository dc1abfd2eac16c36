"""Dialogues held in batches are those held one by one; their figures from records."""

import json

import datasets
import pytest
import torch

from llava_forgery.evaluation.dialogues import (
    FOLLOW_UPS,
    evaluate_dialogues,
    hold_dialogues,
    summarise_dialogues,
)
from llava_forgery.faces.records import FEATURES
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.infer.dialogue import Dialogue
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.kfd.calibration import Thresholds
from llava_forgery.simulate.pairs import CENTRED, FacePairs
from tests import tiny, tiny_hosts


@pytest.fixture(scope="module")
def vlm():
    vlm = attach_forgery(*tiny_hosts.build("llava"), tiny.kfd()).eval()
    tiny.tell_apart(vlm.fpl, 20.0)
    return vlm


def test_a_batch_says_what_single_dialogues_say(vlm):
    faces = [tiny.picture(i) for i in range(3)]
    held = hold_dialogues(vlm, faces, max_new_tokens=8)
    assert len({dialogue.answers for dialogue in held}) > 1
    for face, found in zip(faces, held, strict=True):
        alone = Dialogue(vlm, face, max_new_tokens=8)
        for question in ("Is this a deepfake image?", *FOLLOW_UPS):
            alone.ask(question)
        assert found.answers == tuple(m.text for m in alone.messages[1::2])
        assert found.score == pytest.approx(alone.score, abs=1e-6)


def test_records_are_written_and_summed_up(vlm, tmp_path):
    rows = datasets.Dataset.from_list([tiny.face(i).to_row() for i in range(2)], features=FEATURES)
    pairs = FacePairs(rows, 2, size=tiny.SIZE, framing=CENTRED, role="test")
    predictor = ForgeryPredictor(vlm, max_new_tokens=4)
    with torch.inference_mode():
        metrics = evaluate_dialogues(predictor, pairs, tmp_path)
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["label"] for record in records] == [1, 0, 1, 0]
    assert [bool(record["regions"]) for record in records] == [True, False, True, False]
    found = {**summarise_dialogues(records), "people_in_training": metrics["people_in_training"]}
    assert metrics == json.loads((tmp_path / "metrics.json").read_text()) == found


def test_figures():
    def record(label, score, p_yes, regions, *answers):
        return {
            "label": label, "score": score, "p_yes": p_yes, "regions": regions, "answers": answers
        }  # fmt: skip

    records = (
        record(1, 0.9, 0.8, ["nose"], "Yes. It is at the nose.", "The nose.", "The chin."),
        record(1, 0.4, 0.6, ["chin"], "Yes. It is at the nose.", "Nowhere.", "The nose."),
        record(0, 0.2, 0.7, [], "Yes. It is at the nose.", "The nose.", "The nose."),
        record(0, 0.1, 0.1, [], "No.", "Nowhere.", "All of them."),
    )
    metrics = summarise_dialogues(records)
    assert metrics == {
        "dialogues": 4,
        "contradicting": 2,
        "place": 1,
        "untouched": 2,
        "auc": 0.75,
        "accuracy": 0.75,
        "unparsed": 0,
        "agreement": 0.5,
        "regions_f1": 0.5,
        "kfd_auc": 1.0,
    }
    # Three are called fake by the score from 0.2 on, and three by P(yes): the same ones.
    assert summarise_dialogues(records, Thresholds(0.2, 0.2, 0.2))["agreement"] == 1.0
