"""Models of rows: which images they train on, what decides them."""

import pytest

from eval.papers.recipes import ModelSpec
from eval.papers.table_config import config_from_dict
from eval.papers.table_models import NotRunError, TableModels
from eval.papers.training_images import choose_images
from llava_forgery.faces.records import save_faces
from tests import tiny


def test_choices_are_nested_and_drawn_over_all_images():
    small, large = choose_images(900, 50, 1), choose_images(900, 200, 1)
    assert large[:50] == small
    assert len(set(large)) == 200
    # Of 300 people with three images each, whoever comes in does not come with all of them.
    assert len({image // 3 for image in small}) > 40


def test_choices_follow_the_seed():
    assert choose_images(18, 9, 1) == choose_images(18, 9, 1)
    assert choose_images(18, 9, 1) != choose_images(18, 9, 2)
    assert sorted(choose_images(18, 18, 3)) == list(range(18))
    with pytest.raises(ValueError, match="count must be 1 to 18, .* got 19"):
        choose_images(18, 19, 0)


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_faces([tiny.face(i) for i in range(3)], folder / "faces", {})
    (folder / "host").mkdir()
    (folder / "host/config.json").write_text("{}")
    return {
        "training_sets": {"drawn": str(folder / "faces")},
        "tests": {"drawn": {"faces": str(folder / "faces")}},
        "hosts": {"tiny": str(folder / "host"), "hub": "someone/model", "gone": "./gone"},
        "self_blended": {"model": "test_efficientnet", "image_size": 64},
        "clip": {"model": "ViT-S-32"},
    }


def describe(values, spec, seed=0, **changes):
    return TableModels(config_from_dict({**values, **changes}), "out").describe(spec, seed)


def test_settings_that_decide_a_model_and_those_that_do_not(values):
    spec = ModelSpec("adapter", lora=True)
    first = describe(values, spec)
    assert describe(values, spec, batch_size=3, resamples=7, workers=0) == first
    assert describe(values, spec, seed=1) != first
    assert describe(values, spec, detector={"steps": 9}) != first
    assert describe(values, ModelSpec("adapter")) != first
    assert describe(values, ModelSpec("adapter", lora=True, images=2)) != first
    detector = describe(values, ModelSpec("detector"))
    assert describe(values, ModelSpec("detector"), adapter={"steps": 9}) == detector
    # A bare host without the detector's sentence hangs on no training at all.
    bare = ModelSpec("host", cite_score=False)
    assert describe(values, bare, seed=0) == describe(values, bare, seed=1)


def test_changed_faces_are_other_data(values, tmp_path):
    save_faces([tiny.face(i) for i in range(4)], tmp_path / "faces", {})
    other = {"training_sets": {"drawn": str(tmp_path / "faces")}}
    spec = ModelSpec("detector")
    assert describe(values, spec) != describe(values, spec, **other)


def test_start_weights_are_known_by_their_file(values, tmp_path):
    def start(name):
        detector = {"trunk_weights": str(tmp_path / name / "trunk.safetensors")}
        return describe(values, ModelSpec("detector"), detector=detector)

    for name, content in (("a", b"12"), ("b", b"12"), ("c", b"13")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trunk.safetensors").write_bytes(content)
    assert start("a") == start("b") != start("c")
    with pytest.raises(NotRunError, match="trunk_weights: there is nothing at"):
        start("d")


def test_reasons(values):
    with pytest.raises(NotRunError, match="no section 'clip'"):
        describe(values, ModelSpec("clip"), clip=None)
    with pytest.raises(NotRunError, match="9 training images wanted, 'drawn' has 3"):
        describe(values, ModelSpec("detector", images=9))
    with pytest.raises(NotRunError, match=r"host 'gone': there is no folder ./gone"):
        describe(values, ModelSpec("adapter", host="gone"))
    assert describe(values, ModelSpec("adapter", host="hub"))["host"] == "someone/model"
    with pytest.raises(NotRunError, match="training set 'drawn': .*nowhere"):
        describe(values, ModelSpec("detector"), training_sets={"drawn": "nowhere"})


def test_random_weights_are_said(values):
    models = TableModels(config_from_dict(values), "out")
    assert "random weights of ViT-S-32" in models.note(ModelSpec("clip"))
    assert "from random weights" in models.note(ModelSpec("self_blended"))
    assert models.note(ModelSpec("detector")) == ""
    known = {**values, "clip": {"model": "ViT-S-32", "pretrained": "laion2b"}}
    assert TableModels(config_from_dict(known), "out").note(ModelSpec("clip")) == ""


def test_a_baseline_is_trained_once(values, tmp_path):
    small = {**values["self_blended"], "steps": 1, "batch_size": 2}
    config = config_from_dict({**values, "self_blended": small, "workers": 0})
    models = TableModels(config, tmp_path)
    picture = [tiny.picture(1)]
    first = models.scorer(ModelSpec("self_blended"), 0)(picture)
    (weights,) = tmp_path.glob("models/self_blended-*/model/baseline.safetensors")
    written = weights.stat().st_mtime_ns
    assert models.scorer(ModelSpec("self_blended"), 0)(picture) == first
    assert weights.stat().st_mtime_ns == written
