"""What a calibration does to scores and verdicts, and how it is kept."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from llava_forgery.kfd.calibration import (
    Calibration,
    Domain,
    Thresholds,
    map_features,
    measure_picture,
)
from llava_forgery.kfd.checkpoint import detector_digest, read_calibration, write_calibration
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from tests import tiny

DOMAIN = Domain((1.0, 3.0), (0.1, 0.6), 80.0, (0.0,) * 12, np.eye(12).tolist(), 50.0)
CALIBRATION = Calibration(2.0, 0.5, Thresholds(0.6, 0.4, 0.8), DOMAIN)


def _images():
    return torch.rand(2, 3, tiny.SIZE, tiny.SIZE, generator=torch.Generator().manual_seed(1))


def test_scores_are_calibrated_in_eval_mode_only():
    detector = tiny.kfd()
    plain = detector(_images()).class_logits
    detector.calibration = CALIBRATION
    output = detector(_images())
    logit = plain[:, 1] - plain[:, 0]
    torch.testing.assert_close(output.score, torch.sigmoid((logit - 0.5) / 2))
    assert detector.thresholds == Thresholds(0.6, 0.4, 0.8)
    trained = detector.train()(_images()).class_logits
    detector.calibration = None
    torch.testing.assert_close(trained, detector(_images()).class_logits)


@pytest.mark.parametrize(
    ("score", "band"), [(0.39, "real"), (0.4, "uncertain"), (0.79, "uncertain"), (0.8, "fake")]
)
def test_bands(score, band):
    assert CALIBRATION.thresholds.band(score) == band
    assert Thresholds().band(score) == ("fake" if score >= 0.5 else "real")


def test_a_calibration_is_saved_with_the_detector(tmp_path):
    detector = tiny.kfd()
    digest = detector_digest(detector)
    detector.calibration = CALIBRATION
    assert detector_digest(detector) != digest
    detector.save_pretrained(tmp_path)
    assert KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path).calibration == CALIBRATION
    write_calibration(tmp_path, None)
    assert read_calibration(tmp_path) is None
    other = replace(CALIBRATION, domain=None)
    write_calibration(tmp_path, other)
    assert KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path).calibration == other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calibration__temperature": 0}, "temperature must be over 0"),
        ({"calibration__slope": 1}, "slope"),
        ({"calibration__thresholds__low": 0.9}, "0 <= low <= fake <= high <= 1"),
        ({"calibration__domain__mean": [0.0]}, r"whitening must be \(1, 1\)"),
        ({"calibration": {}}, "repeat `llava-forgery eval calibrate`"),
    ],
)
def test_a_wrong_calibration_is_named(tmp_path, change, message):
    detector = tiny.kfd()
    detector.calibration = CALIBRATION
    detector.save_pretrained(tmp_path)
    tiny.edit_json(tmp_path / "kfd_config.json", **change)
    with pytest.raises(ValueError, match=message) as error:
        KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path)
    assert "kfd_config.json" in str(error.value)


def test_it_survives_json():
    assert Calibration.from_dict(json.loads(json.dumps(CALIBRATION.to_dict()))) == CALIBRATION
    assert Calibration.from_dict(Calibration().to_dict()) == Calibration()


def test_features_of_maps_by_hand():
    maps = torch.zeros(1, 1, 2, 2, 2)
    maps[0, 0, 1] = torch.tensor([[1.0, 1.0], [3.0, 3.0]])
    assert map_features(maps)[0] == pytest.approx([0, 2, 0, np.sqrt(4 / 3)])


def test_what_differs_is_said():
    rng = np.random.default_rng(0)
    noisy = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    maps = torch.zeros(3, 2, 4, 4)
    flat = np.full((64, 64, 3), 90, np.uint8)
    assert measure_picture(flat) == {"sharpness": 0.0, "flatness": 1.0}
    small = DOMAIN.warnings(flat, 40.0, maps)
    assert [text.split(" (")[0] for text in small] == [
        "the face is small", "the picture is blurred",
        "the picture is smooth or strongly compressed",
    ]  # fmt: skip
    assert [text.split(" (")[0] for text in DOMAIN.warnings(noisy, 90.0, maps + 40)] == [
        "the picture is sharpened or noisy", "the picture is grainy",
        "its features are unlike those of known faces",
    ]  # fmt: skip
    assert DOMAIN.warnings(cv2.GaussianBlur(noisy, (0, 0), 1), 90.0, maps) == ()
