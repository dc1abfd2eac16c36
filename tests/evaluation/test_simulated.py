"""The figures of an evaluation from its records."""

import json

import pytest
from PIL import Image

from llava_forgery.evaluation.simulated import draw_roc, summarise

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


def test_roc_is_drawn_from_the_records_on_disk(tmp_path):
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    (tmp_path / "records.jsonl").write_text(lines)
    draw_roc(tmp_path)
    with Image.open(tmp_path / "roc.png") as picture:
        assert picture.text["Description"] == "ROC curves on simulated forgeries"
