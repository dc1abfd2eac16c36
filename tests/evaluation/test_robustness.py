import csv
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from llava_forgery.evaluation.checks import OneClassError
from llava_forgery.evaluation.figures import roc_figure, save_figure
from llava_forgery.evaluation.images import (
    LabelledImage,
    ManifestImages,
    PairImages,
    evaluation_images,
)
from llava_forgery.evaluation.metrics import auc
from llava_forgery.evaluation.perturb import PERTURBATIONS, choose_perturbations, perturb
from llava_forgery.evaluation.robustness import measure_robustness, write_robustness
from llava_forgery.evaluation.scorers import AdapterScorer, DetectorScorer, load_scorer
from llava_forgery.faces.records import FEATURES
from llava_forgery.hosts.transformers.loading import load_host
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.infer.answering import write_answers
from llava_forgery.qa.build import build_prompt
from llava_forgery.tensors import from_bytes
from tests import tiny


def faces(labels):
    rows = [{**tiny.face(i).to_row(), "label": label} for i, label in enumerate(labels)]
    return datasets.Dataset.from_list(rows, features=FEATURES)


class Detail:
    """Calls a picture fake by its fine detail, which blur and noise change in a known way."""

    names = ("kfd",)
    size = 64
    model = nn.Identity()

    def __call__(self, images):
        steps = [np.abs(np.diff(image.astype(float), axis=1)).mean() for image in images]
        return {"kfd": [step / 255 for step in steps]}


class Rough(ManifestImages):
    """Fakes are noisy, real pictures smooth."""

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        spread = 30 if self.labels[index] else 8
        image = (128 + rng.normal(0, spread, (64, 64, 3))).clip(0, 255).astype(np.uint8)
        return LabelledImage(image, self.labels[index], str(index), self.groups[index])


def test_curve_falls_where_the_trace_is_lost():
    images = Rough(faces([0, 1] * 6), 64)
    kinds = choose_perturbations(["blur", "noise", "gamma"])
    points = measure_robustness(Detail(), images, kinds, batch_size=5, resamples=20)
    assert len(points) == 1 + 3 * 5
    assert (points[0].perturbation, points[0].level, points[0].auc) == ("none", 0, 1.0)
    curves = {kind.name: [p for p in points if p.perturbation == kind.name] for kind in kinds}
    assert [p.strength for p in curves["blur"]] == list(kinds[0].strengths)
    # Noise covers the fakes' own noise, which a change of light leaves.
    assert curves["noise"][-1].auc <= 1.0
    assert curves["gamma"][-1].auc == 1.0
    assert all(p.low <= p.auc <= p.high for p in points)


def test_points_are_the_auc_of_perturbed_images_one_by_one():
    images, scorer = Rough(faces([0, 1] * 4), 64), DetectorScorer(tiny.kfd())
    kinds = choose_perturbations(["noise"])
    points = measure_robustness(scorer, images, kinds, seed=3, batch_size=3, resamples=5)
    for point in points:
        changed = [perturb(one.image, kinds[0], point.level, one.key, seed=3) for one in images]
        alone = [scorer([image])["kfd"][0] for image in changed]
        assert point.auc == pytest.approx(auc(images.labels, alone), abs=1e-9)
    again = measure_robustness(scorer, images, kinds, seed=3, batch_size=8, resamples=5)
    assert again == points


def test_faces_of_both_labels_are_judged_as_they_are():
    rows = faces([0, 1, 0])
    images = evaluation_images(rows, 64)
    assert images.source == "labelled faces"
    assert images.labels == [0, 1, 0]
    assert [one.label for one in images] == [0, 1, 0]
    assert images[1].image.shape == (64, 64, 3)
    assert images.groups == ["p0", "p1", "p2"] == [one.group for one in images]
    assert len({one.key for one in images}) == 3
    with pytest.raises(ValueError, match="judged as they are"):
        evaluation_images(rows, 64, pairs=4)
    with pytest.raises(ValueError, match="labelled fake"):
        evaluation_images(faces([1, 1]), 64)


def test_real_faces_are_forged():
    images = evaluation_images(faces([0, 0, 0]), 64, seed=5)
    assert isinstance(images, PairImages)
    assert images.labels == [1, 0] * 6
    assert len(images) == 12
    forged, pristine = images[4], images[5]
    assert (forged.label, pristine.label) == (1, 0)
    assert forged.key == pristine.key
    assert forged.group == pristine.group == images.groups[4]
    assert not np.array_equal(forged.image, pristine.image)
    assert np.array_equal(images[4].image, evaluation_images(faces([0, 0, 0]), 64, seed=5)[4].image)
    with pytest.raises(ValueError, match="2 of 2 are labelled fake"):
        evaluation_images(faces([1, 1]), 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """host/, kfd/ and adapter/."""
    folder = tmp_path_factory.mktemp("models")
    host, processor = tiny.llava()
    host.save_pretrained(folder / "host")
    processor.save_pretrained(folder / "host")
    tiny.kfd().save_pretrained(folder / "kfd")
    vlm = attach_forgery(*load_host(folder, str(folder / "host")), tiny.kfd())
    vlm.save_pretrained(folder / "adapter")
    return folder


def test_detector_and_adapter_are_told_apart(folder):
    pictures = [tiny.picture(i) for i in range(3)]
    detector, adapter = load_scorer(folder / "kfd"), load_scorer(folder / "adapter", device="cpu")
    assert isinstance(detector, DetectorScorer)
    assert isinstance(adapter, AdapterScorer)
    assert detector.size == adapter.size == tiny.SIZE
    scores = adapter(pictures)
    assert scores["kfd"] == pytest.approx(detector(pictures)["kfd"], abs=1e-5)
    verdict = adapter.predictor.predict(pictures[1], cropped=True)
    assert scores["p_yes"][1] == pytest.approx(verdict.p_yes, abs=1e-5)
    # Asked without the score, about the same embeddings.
    uncited = AdapterScorer(adapter.predictor, uncited=True)
    both = uncited(pictures)
    assert tuple(both) == uncited.names == ("kfd", "p_yes", "p_yes_uncited")
    assert both["p_yes"] == pytest.approx(scores["p_yes"], abs=1e-6)
    prompts = [build_prompt() for _ in pictures]
    shown = [Image.fromarray(picture) for picture in pictures]
    with torch.inference_mode():
        detection = adapter.model.detect(torch.stack([from_bytes(p) for p in pictures]))
        said = write_answers(adapter.model, prompts, shown, detection, max_new_tokens=1)
    assert both["p_yes_uncited"] == pytest.approx([answer.p_yes for answer in said], abs=1e-5)
    with pytest.raises(ValueError, match="no prompt"):
        load_scorer(folder / "kfd", uncited=True)
    with pytest.raises(FileNotFoundError, match="holds neither"):
        load_scorer(folder / "host")
    with pytest.raises(ValueError, match="needs no host"):
        load_scorer(folder / "kfd", base_model="x")


def test_files_of_an_adapter(folder, tmp_path):
    images = evaluation_images(faces([0] * 3), tiny.SIZE, pairs=3)
    scorer = load_scorer(folder / "adapter", device="cpu")
    kinds = choose_perturbations(["jpeg"])
    points = measure_robustness(scorer, images, kinds, batch_size=8, resamples=5)
    assert [p.score for p in points] == ["kfd"] * 6 + ["p_yes"] * 6
    write_robustness(points, tmp_path / "out", {"source": images.source})
    record = json.loads((tmp_path / "out/robustness.json").read_text())
    assert record["source"] == "simulated forgeries"
    assert [p["auc"] for p in record["points"]] == [p.auc for p in points]
    with (tmp_path / "out/robustness.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["auc"]) for row in rows] == [p.auc for p in points]
    assert rows[0]["strength"] == ""
    with Image.open(tmp_path / "out/robustness.png") as picture:
        assert picture.text["Software"] == "llava-forgery"
        assert picture.width > 300
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_one_class_and_nothing_to_do_are_errors():
    images = Rough(faces([0, 1]), 64)
    with pytest.raises(ValueError, match="at least one kind"):
        measure_robustness(Detail(), images, [])
    images.labels = [1, 1]
    with pytest.raises(OneClassError, match="robustness needs real and fake"):
        measure_robustness(Detail(), images, PERTURBATIONS)


def test_roc_figure(tmp_path):
    labels = np.arange(40) % 2
    scores = np.random.default_rng(0).normal(labels, 1)
    figure = roc_figure(labels, {"kfd": scores, "other": -scores}, resamples=20)
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend[0].startswith(f"detector (score): AUC {auc(labels, scores):.3f} [")
    assert legend[1].startswith("other: AUC")
    line = figure.axes[0].lines[0]
    assert (line.get_xdata()[-1], line.get_ydata()[-1]) == (1, 1)
    save_figure(figure, tmp_path / "roc.png", "a note")
    with Image.open(tmp_path / "roc.png") as picture:
        assert picture.text["Description"] == "a note"
