"""Detectors without a host, faces that are asked about, and the shipped model."""

import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from llava_forgery.cli import app
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.infer import default
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.kfd.calibration import Calibration, Thresholds
from tests import tiny

IMAGES = [tiny.picture(i) for i in range(3)]


@pytest.fixture(scope="module")
def vlm():
    host, processor = tiny.llava()
    return attach_forgery(host, processor, tiny.kfd(), lora=LoraSettings(r=2, alpha=4)).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, vlm):
    folder = tmp_path_factory.mktemp("default")
    host, processor = tiny.llava()
    host.save_pretrained(folder / "host")
    processor.save_pretrained(folder / "host")
    vlm.save_pretrained(folder / "adapter")
    Image.fromarray(IMAGES[0]).save(folder / "face.png")
    return folder


def _faces(predictor):
    return [predictor.find_faces(image, cropped=True)[0] for image in IMAGES]


def test_a_detector_alone_gives_scores_and_maps(vlm):
    alone = ForgeryPredictor(vlm.kfd)
    whole = ForgeryPredictor(vlm, max_new_tokens=3)
    assert (alone.answers, whole.answers, alone.vlm) == ("none", "all", None)
    pairs = zip(alone.predict_faces(_faces(alone)), whole.predict_faces(_faces(whole)), strict=True)
    for one, two in pairs:
        assert one.score == pytest.approx(two.score, abs=1e-6)
        assert np.allclose(one.mask, two.mask, atol=1e-5)
        assert (one.p_yes, one.answer, one.regions, one.agree) == (None, None, (), None)
    assert alone.predict_scores(_faces(alone))[1] == [None] * 3
    with pytest.raises(ValueError, match="no language model to talk to"):
        alone.dialogue(IMAGES[0], cropped=True)
    with pytest.raises(ValueError, match="detector alone"):
        ForgeryPredictor(vlm.kfd, answers="flagged")
    with pytest.raises(ValueError, match="none, flagged, all"):
        ForgeryPredictor(vlm, answers="some")


def test_flagged_faces_are_asked_about(vlm):
    whole = ForgeryPredictor(vlm, max_new_tokens=3)
    everything = whole.predict_faces(_faces(whole))
    scores = sorted(verdict.score for verdict in everything)
    middle = (scores[0] + scores[1]) / 2
    vlm.kfd.calibration = Calibration(thresholds=Thresholds(0.9, middle, 1.0))
    try:
        flagged = ForgeryPredictor(vlm, max_new_tokens=3, answers="flagged")
        found = flagged.predict_faces(_faces(flagged))
    finally:
        vlm.kfd.calibration = None
    assert sum(verdict.answer is None for verdict in found) == 1
    for one, two in zip(found, everything, strict=True):
        if one.score < middle:
            assert (one.band, one.answer, one.p_yes) == ("real", None, None)
        else:
            assert one.band == "uncertain"
            assert one.answer == two.answer
            assert one.p_yes == pytest.approx(two.p_yes, abs=1e-5)


def test_without_answers_an_adapter_needs_no_host(folder):
    predictor = ForgeryPredictor.from_pretrained(
        folder / "adapter", folder / "no host", answers="none"
    )
    assert predictor.vlm is None
    alone = ForgeryPredictor.from_pretrained(folder / "adapter/kfd")
    for one in (predictor, alone):
        assert one.predict(IMAGES[0], cropped=True).answer is None


@pytest.fixture
def shipped(folder, tmp_path, monkeypatch):
    """The folder of the shipped weights: another one, with an adapter."""
    shutil.copytree(folder / "adapter", tmp_path / "default")
    monkeypatch.setattr(default, "FOLDER", tmp_path / "default")
    monkeypatch.setattr(default, "missing_packages", lambda: None)
    monkeypatch.setattr(
        default,
        "build_small_llava",
        lambda path: (
            shutil.copytree(folder / "host", path),
            (path / default.RECIPE).write_text("{}"),
        ),
    )
    return tmp_path / "default"


def test_the_shipped_model_is_the_default(folder, shipped, tmp_path, caplog):
    cache = tmp_path / "cache"
    runner = CliRunner()
    detect = ["detect", str(folder / "face.png"), "--cropped", "--cache", str(cache)]
    result = runner.invoke(app, [*detect, "--answers", "none"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "score 0." in result.stdout
    assert "P(yes)" not in result.stdout
    assert not cache.exists()
    result = runner.invoke(app, detect, catch_exceptions=False)
    assert "P(yes)" in result.stdout
    assert [path.name[:12] for path in cache.iterdir()] == ["small-llava-"]
    (shipped / "forgery_config.json").unlink()
    predictor = ForgeryPredictor.from_pretrained(answers="all")
    assert predictor.answers == "none"
    assert "scores without answers: the shipped model is a detector alone" in caplog.text


def test_packages_that_are_missing_are_named(shipped, monkeypatch, caplog):
    sentence = "the default's language model needs gguf: pip install gguf"
    monkeypatch.setattr(default, "missing_packages", lambda: sentence)
    assert ForgeryPredictor.from_pretrained().predict(IMAGES[0], cropped=True).answer is None
    assert sentence in caplog.text
    shutil.rmtree(shipped)
    with pytest.raises(FileNotFoundError, match="ships no model"):
        ForgeryPredictor.from_pretrained()


def test_the_cache_is_where_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAVA_FORGERY_CACHE", str(tmp_path / "one"))
    assert default.cache_folder() == tmp_path / "one"
    assert default.cache_folder(tmp_path / "two") == tmp_path / "two"
    monkeypatch.delenv("LLAVA_FORGERY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default.cache_folder() == tmp_path / "llava-forgery"
