"""Figures of faces that are real or fake by themselves."""

import json
from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from llava_forgery.evaluation.labelled import evaluate_labelled, summarise_labelled
from llava_forgery.evaluation.metrics import auc
from llava_forgery.evaluation.summary import summary_table
from llava_forgery.faces.records import load_faces, save_faces
from tests import tiny

# Video, method, label, score, P(yes) of each frame.
FRAMES = [
    ("real/1", None, 0, 0.2, 0.4),
    ("real/1", None, 0, 0.4, 0.2),
    ("real/2", None, 0, 0.7, 0.3),
    ("swap/1", "swap", 1, 0.9, 0.8),
    ("swap/1", "swap", 1, 0.1, 0.6),
    ("warp/1", "warp", 1, 0.8, 0.1),
    ("new/1", None, 1, 0.6, 0.9),
]
RECORDS = [
    {
        "video_id": video,
        "method": method,
        "label": label,
        "score": score,
        "p_yes": p_yes,
        "identity": video[-1],
    }
    for video, method, label, score, p_yes in FRAMES
]


class Bright:
    """Scores a face by its mean brightness."""

    def __init__(self, *names):
        self.names, self.size, self.batches = names, 32, []
        self.model = nn.Identity()

    def __call__(self, images):
        self.batches.append(len(images))
        values = [float(image.mean() / 255) for image in images]
        return {name: values if name == "kfd" else [1 - v for v in values] for name in self.names}


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    crops = []
    for i in range(6):
        face = tiny.face(i, "test")
        level = 40 * i + 10
        crops.append(
            replace(
                face,
                image=np.full_like(face.image, level),
                label=i % 2,
                video_id=f"v{i % 4}",
                method="swap" if i % 2 else None,
            )
        )
    save_faces(crops, folder, {})
    return load_faces(folder)


def test_figures_by_hand():
    metrics = summarise_labelled(RECORDS)
    assert (metrics["images"], metrics["videos"], metrics["pooling"]) == (7, 5, "mean")
    # Videos: real 0.3 and 0.7, fake 0.5, 0.8 and 0.6: four of six pairs in order.
    assert metrics["kfd"]["video"]["auc"] == pytest.approx(4 / 6)
    assert metrics["kfd"]["frame"]["auc"] == auc(
        [r["label"] for r in RECORDS], [r["score"] for r in RECORDS]
    )
    # P(yes) of the videos: real 0.3 and 0.3, fake 0.7, 0.1 and 0.9.
    assert metrics["text"]["video"]["auc"] == pytest.approx(4 / 6)
    by_method = {row["group"]: row for row in metrics["kfd"]["methods"]}
    assert set(by_method) == {"swap", "warp", "unknown"}
    assert {name: row["auc"] for name, row in by_method.items()} == {
        "swap": 0.5, "warp": 1.0, "unknown": 0.5
    }  # fmt: skip
    assert all((row["real"], row["fake"]) == (2, 1) for row in by_method.values())
    # Frames on the same side of 0.5: all but real/2, the second of swap/1 and warp/1.
    assert metrics["agreement"] == pytest.approx(4 / 7)
    json.dumps(metrics, allow_nan=False)


def test_pooling_is_the_one_asked_for():
    assert summarise_labelled(RECORDS, "max")["kfd"]["video"]["auc"] == pytest.approx(5 / 6)
    with pytest.raises(ValueError, match="reduce must be one of"):
        summarise_labelled(RECORDS, "mode")


@pytest.mark.parametrize("names", [("kfd",), ("kfd", "p_yes")])
def test_every_face_is_scored_and_recorded(faces, tmp_path, names):
    scorer = Bright(*names)
    metrics = evaluate_labelled(scorer, faces, tmp_path / "out", batch_size=4)
    assert scorer.batches == [4, 2]
    lines = (tmp_path / "out/records.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["score"] for r in records] == pytest.approx([(40 * i + 10) / 255 for i in range(6)])
    assert [r["label"] for r in records] == [0, 1] * 3
    assert [r["video_id"] for r in records] == ["v0", "v1", "v2", "v3", "v0", "v1"]
    assert records[1]["method"] == "swap"
    assert ("p_yes" in records[0], "text" in metrics, "agreement" in metrics) == (
        (len(names) == 2,) * 3
    )
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    assert written == json.loads(json.dumps(metrics))


def test_labels_that_do_not_fit_show_before_anything_is_scored(faces, tmp_path):
    clash = faces.remove_columns("video_id").add_column("video_id", ["v"] * 6)
    scorer = Bright("kfd")
    with pytest.raises(ValueError, match="differ in label"):
        evaluate_labelled(scorer, clash, tmp_path / "out")
    assert scorer.batches == []


@pytest.mark.parametrize(
    ("rows", "fpr", "fnr"), [([1, 3, 5], None, 1 / 3), ([0, 2, 4], 1 / 3, None)]
)
def test_one_class_alone(faces, tmp_path, rows, fpr, fnr):
    metrics = evaluate_labelled(Bright("kfd"), faces.select(rows), tmp_path / "out")
    frame = metrics["kfd"]["frame"]
    # Scores are 50, 130 and 210 of 255, or 10, 90 and 170.
    assert frame["auc"] is None
    assert (frame["fpr"], frame["fnr"]) == (
        pytest.approx(fpr), pytest.approx(fnr)
    )  # fmt: skip


class Masked(Bright):
    """Draws the upper half of a face, whatever it sees."""

    def masks(self, images):
        mask = np.zeros((self.size, self.size), np.float32)
        mask[: self.size // 2] = 0.9
        return [mask] * len(images)


def test_masks_of_a_benchmark_are_compared_by_video(tmp_path):
    """Two frames of one video and one of another, whose masks are the upper and the lower half."""
    upper = np.zeros((96, 96), np.uint8)
    upper[:48] = 255
    crops = [
        replace(tiny.face(i, "test"), label=int(i < 3), video_id=video, identity=video, mask=mask)
        for i, (video, mask) in enumerate(
            [("a", upper), ("a", upper), ("b", 255 - upper), ("c", None), ("d", None)]
        )
    ]
    save_faces(crops, tmp_path / "faces", {})
    faces = load_faces(tmp_path / "faces")
    metrics = evaluate_labelled(Masked("kfd"), faces, tmp_path / "out")
    records = [json.loads(line) for line in (tmp_path / "out/records.jsonl").open()]
    found = [record.get("mask_iou") for record in records]
    # The face is framed anew, so that its middle is not that of the crop.
    assert found[0] == found[1] > 0.7
    assert found[2] < 0.3
    assert found[3:] == [None, None]
    assert metrics["mask"]["iou"] == pytest.approx((found[0] + found[2]) / 2)
    assert (metrics["mask"]["frames"], metrics["mask"]["videos"]) == (3, 2)
    assert "eyes" in records[0]["regions"]
    assert "mouth" in records[2]["regions"]
    both = [(r["mask_regions"], r["regions"]) for r in (records[0], records[2])]
    hits = sum(len(set(one) & set(two)) for one, two in both)
    named = sum(len(one) + len(two) for one, two in both)
    assert metrics["mask"]["region_f1"] == pytest.approx(2 * hits / named)
    assert "the maps of 2 videos with masks have IoU" in summary_table(metrics)
