"""Fits on scores whose calibration is known, and the command on simulated forgeries."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from llava_forgery.cli import app
from llava_forgery.evaluation.calibration import _people, calibration_images
from llava_forgery.evaluation.checks import OneClassError
from llava_forgery.evaluation.images import ManifestImages
from llava_forgery.evaluation.reliability import (
    balanced_calibration_error,
    choose_thresholds,
    fit_temperature,
    reliability,
)
from llava_forgery.faces.records import load_faces, save_faces
from llava_forgery.kfd.calibration import Calibration
from llava_forgery.kfd.checkpoint import read_calibration, write_calibration
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.simulate.degrade import DegradeConfig
from llava_forgery.simulate.pairs import CENTRED, frame_face
from llava_forgery.tensors import from_bytes
from llava_forgery.train.recipe import Stage1Recipe
from tests import tiny


def _drawn(count=20000, share=0.5, temperature=3.0, offset=1.5):
    """Labels, and logits of which sigmoid((logit - offset) / temperature) is the truth."""
    rng = np.random.default_rng(0)
    calibrated = rng.normal(0, 2, 4 * count)
    labels = (rng.random(4 * count) < 1 / (1 + np.exp(-calibrated))).astype(int)
    chosen = np.concatenate(
        [
            np.flatnonzero(labels == 1)[: int(share * count)],
            np.flatnonzero(labels == 0)[: count - int(share * count)],
        ]
    )
    return labels[chosen], calibrated[chosen] * temperature + offset


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_temperature_and_offset_are_found(share):
    labels, logits = _drawn(share=share)
    temperature, offset = fit_temperature(labels, logits)
    assert temperature == pytest.approx(3, rel=0.08)
    assert offset == pytest.approx(1.5, abs=0.3)
    scores = 1 / (1 + np.exp(-(logits - offset) / temperature))
    assert balanced_calibration_error(labels, scores) < 0.02
    assert balanced_calibration_error(labels, 1 / (1 + np.exp(-logits))) > 0.1


def test_a_detector_that_ranks_backwards_is_refused():
    labels, logits = _drawn(200)
    with pytest.raises(ValueError, match="no temperature repairs"):
        fit_temperature(labels, -logits)
    with pytest.raises(OneClassError):
        fit_temperature(np.ones(4), np.arange(4))


def test_reliability_by_hand():
    # Two real and one fake: each real weighs a quarter, the fake a half.
    found = reliability([0, 0, 1], [0.1, 0.3, 0.9], bins=2)
    assert [(b.score, b.fakes, b.mass) for b in found] == [
        (pytest.approx(0.2), 0.0, 0.5), (pytest.approx(0.9), 1.0, 0.5)
    ]  # fmt: skip
    assert balanced_calibration_error([0, 0, 1], [0.1, 0.3, 0.9], 2) == pytest.approx(0.15)
    (one,) = reliability([0, 1], [0.5, 0.5])
    assert (one.fakes, one.mass) == (0.5, 1.0)


def test_thresholds_keep_their_rates():
    labels, logits = _drawn(4000)
    scores = 1 / (1 + np.exp(-logits / 3))
    found = choose_thresholds(labels, scores)
    real, fake = scores[labels == 0], scores[labels == 1]
    assert (real >= found.fake).mean() == pytest.approx((fake < found.fake).mean(), abs=0.01)
    assert (fake < found.low).mean() == pytest.approx(0.05, abs=0.002)
    assert (real >= found.high).mean() == pytest.approx(0.05, abs=0.002)
    strict = choose_thresholds(labels, scores, fpr=0.1)
    assert (real >= strict.fake).mean() == pytest.approx(0.1, abs=0.002)
    with pytest.raises(ValueError, match="between 0 and 1"):
        choose_thresholds(labels, scores, fpr=10)


def test_scores_that_are_far_apart_leave_no_band():
    found = choose_thresholds([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9])
    assert found.low == found.fake == found.high == pytest.approx(0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A detector, and faces of twelve people that are fake where it gives the higher scores."""
    folder = tmp_path_factory.mktemp("calibration")
    detector = tiny.kfd()
    detector.save_pretrained(folder / "kfd")
    faces = [tiny.face(i, "test") for i in range(12)]
    pixels = [frame_face(face, tiny.SIZE, CENTRED)[0] for face in faces]
    with torch.no_grad():
        scores = detector(torch.stack([from_bytes(image) for image in pixels])).score
    cut = scores.sort().values[4:8].mean()
    labelled = [
        replace(face, label=int(score > cut)) for face, score in zip(faces, scores, strict=True)
    ]
    save_faces(labelled, folder / "faces", {})
    save_faces(faces[:6], folder / "real", {})
    return folder


def _calibrate(*arguments):
    result = CliRunner().invoke(app, ["eval", "calibrate", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_writes_what_verdicts_use(folder, tmp_path):
    shutil.copytree(folder / "kfd", tmp_path / "kfd")
    out = tmp_path / "out"
    arguments = ["--model", tmp_path / "kfd", "--faces", folder / "faces", "--out", out]
    assert "| ECE after, cross-fitted |" in _calibrate(*arguments, "--no-write")
    assert read_calibration(tmp_path / "kfd") is None
    _calibrate(*arguments, "--plot")
    found = read_calibration(tmp_path / "kfd")
    metrics = json.loads((out / "metrics.json").read_text())
    assert found == Calibration.from_dict(metrics["calibration"])
    assert (metrics["images"], metrics["people"], metrics["auc"]) == (12, 12, 1.0)
    assert (out / "reliability.png").read_bytes()[:4] == b"\x89PNG"
    loaded = KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path / "kfd")
    images = ManifestImages(load_faces(folder / "faces"), tiny.SIZE)
    with torch.no_grad():
        scores = loaded(torch.stack([from_bytes(image.image) for image in images])).score
    assert [loaded.thresholds.fake <= score for score in scores] == [
        image.label == 1 for image in images
    ]
    # Fitting again fits the logits, not the scores of the calibration before.
    _calibrate(*arguments)
    assert read_calibration(tmp_path / "kfd") == found


def test_an_adapter_keeps_its_scores(folder, tmp_path):
    shutil.copytree(folder / "kfd", tmp_path / "adapter/kfd")
    before = Calibration(2.0, 0.1)
    write_calibration(tmp_path / "adapter/kfd", before)
    _calibrate("--model", tmp_path / "adapter", "--faces", folder / "faces",
               "--out", tmp_path / "out")  # fmt: skip
    found = read_calibration(tmp_path / "adapter/kfd")
    assert (found.temperature, found.offset) == (2.0, 0.1)
    assert found.thresholds != before.thresholds


def test_real_faces_are_forged_for_calibration(folder):
    rows = load_faces(folder / "real")
    images = calibration_images(rows, 32, recipe=Stage1Recipe(degradation=DegradeConfig(video=0)))
    assert images.pairs.role == "calibration"
    assert len(images) == 2 * 4 * len(rows)
    assert _people(images)[:2] == [rows[images.pairs.row_of(0)]["identity"]] * 2
    with pytest.raises(ValueError, match="leave pairs out"):
        calibration_images(load_faces(folder / "faces"), 32, pairs=3)
