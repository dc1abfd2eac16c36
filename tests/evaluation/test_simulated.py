"""The figures of an evaluation from its records."""

import json

import numpy as np
import pytest
from PIL import Image

from llava_forgery.evaluation.perturb import as_on_the_web
from llava_forgery.evaluation.simulated import draw_roc, summarise
from llava_forgery.evaluation.summary import summary_table

# Person, label, score, P(yes), label of the answer, named regions.
ROWS = [
    ("a", 1, 0.9, 0.8, 1, ["nose"]),
    ("a", 0, 0.2, 0.6, 0, []),
    ("b", 1, 0.7, 0.4, None, ["eyes", "chin"]),
    ("b", 0, 0.8, 0.1, 0, []),
    ("c", 1, 0.6, 0.9, 1, ["mouth"]),
    ("c", 0, 0.1, 0.2, 1, []),
]
RECORDS = [
    {
        "identity": person,
        "source": f"{person}.jpg",
        "face_size": 300.0,
        "label": label,
        "score": score,
        "p_yes": p_yes,
        "answer_label": answer,
        "answer_regions": regions,
        "regions": ["nose", "eyes"] if label else [],
        "mask_iou": 0.25 if label else None,
    }
    for person, label, score, p_yes, answer, regions in ROWS
]


def test_summary():
    metrics = summarise(RECORDS)
    # Of nine pairs, the real one at 0.8 lies above two fakes; the real P(yes) of 0.6 above one.
    assert metrics["kfd"]["auc"] == pytest.approx(7 / 9)
    assert metrics["text"]["auc"] == pytest.approx(8 / 9)
    assert metrics["kfd"]["eer"] == pytest.approx(1 / 3)
    assert metrics["kfd"]["mask_iou"] == 0.25
    assert (metrics["text"]["accuracy"], metrics["text"]["unparsed"]) == (4 / 6, 1)
    # Two of four named are right, two of six found.
    assert metrics["regions_f1"] == pytest.approx(4 / 10)
    assert metrics["agreement"] == pytest.approx(3 / 6)
    for part in ("kfd", "text"):
        low, high = metrics[part]["auc_interval"]
        assert low <= metrics[part]["auc"] <= high
    json.dumps(metrics, allow_nan=False)


def test_a_second_column_and_who_is_counted():
    seen = [{**r, "web_score": 1 - r["score"], "web_p_yes": r["p_yes"]} for r in RECORDS]
    metrics = summarise(seen)
    assert (metrics["photographs"], metrics["people"]) == (3, 3)
    assert metrics["web"]["kfd"]["auc"] == pytest.approx(1 - metrics["kfd"]["auc"])
    assert metrics["web"]["text"]["tpr_at_fpr_1"] == metrics["text"]["tpr_at_fpr_1"] == 2 / 3
    table = summary_table(metrics)
    assert "| detector: AUC | 0.778 | 0.222 |" in table
    assert "6 images of 3 people in 3 photographs;" in table
    assert "web" not in summarise(RECORDS)


def test_an_answer_without_the_score_has_a_row_of_its_own():
    metrics = summarise([{**r, "p_yes_uncited": 1 - r["p_yes"]} for r in RECORDS])
    assert metrics["text_uncited"]["auc"] == pytest.approx(1 - metrics["text"]["auc"])
    assert "| answer, score not cited: AUC | 0.111 |" in summary_table(metrics)
    assert "text_uncited" not in summarise(RECORDS)


def test_pictures_on_the_web_are_the_same_again_and_alike_in_a_pair():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (64, 64, 3), np.uint8)
    for place in range(4):
        changed = as_on_the_web(np.stack([image, image]), 2, place)
        assert np.array_equal(*changed)
        assert np.array_equal(changed, as_on_the_web(np.stack([image, image]), 2, place))
        assert not np.array_equal(changed[0], image)
    other = as_on_the_web(image[None], 3, 0)
    assert not np.array_equal(other[0], as_on_the_web(image[None], 2, 0)[0])


def test_roc_is_drawn_from_the_records_on_disk(tmp_path):
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    (tmp_path / "records.jsonl").write_text(lines)
    draw_roc(tmp_path)
    with Image.open(tmp_path / "roc.png") as picture:
        assert picture.text["Description"] == "ROC curves on simulated forgeries"
