"""Baselines: what is trained, saved and kept frozen."""

import datasets
import pytest
import torch

from eval.papers.baselines import (
    BaselineScorer,
    ClipBaseline,
    SelfBlendedBaseline,
    fill_baseline,
    train_baseline,
)
from eval.papers.table_settings import ClipSettings, SelfBlendedSettings
from llava_forgery.faces.records import FEATURES
from tests import tiny
from tests.kfd.test_open_clip import folder  # noqa: F401 - a tiny CLIP on disk

OPTIONS = {"steps": 2, "batch_size": 2, "learning_rate": 0.05, "workers": 0}
BLENDED = SelfBlendedSettings(model="test_efficientnet", image_size=64)


@pytest.fixture(scope="module")
def faces():
    rows = [tiny.face(i).to_row() for i in range(3)]
    return datasets.Dataset.from_list(rows, features=FEATURES)


def _clip(folder, head, seed=0):  # noqa: F811
    settings = ClipSettings(model=f"local-dir:{folder}", image_size=32, context_length=3)
    return ClipBaseline(settings, head, seed)


@pytest.mark.parametrize("head", ["context", "probe"])
def test_clip_trains_its_head_alone_and_loads_it(folder, head, faces, tmp_path):  # noqa: F811
    model = _clip(folder, head)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_baseline(model, faces, tmp_path, **OPTIONS)
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    head_names = {"knowledge.context"} if head == "context" else {"probe.weight", "probe.bias"}
    assert changed == head_names == set(model.trained())
    loaded = _clip(folder, head, seed=1)
    fill_baseline(loaded, tmp_path)
    pictures = [tiny.picture(i, 32) for i in range(3)]
    found = BaselineScorer(model)(pictures)["classifier"]
    assert BaselineScorer(loaded)(pictures)["classifier"] == pytest.approx(found, abs=1e-6)
    assert all(0 < value < 1 for value in found)


def test_clip_knows_when_its_weights_are_random(folder):  # noqa: F811
    assert ClipSettings(model="ViT-S-32").is_random
    assert not ClipSettings(model="ViT-S-32", pretrained="openai").is_random
    assert not ClipSettings(model=f"local-dir:{folder}").is_random
    with pytest.raises(ValueError, match='"context" or "probe", got \'both\''):
        _clip(folder, "both")


def test_self_blended_classifier_trains_and_loads_with_its_statistics(faces, tmp_path):
    model = SelfBlendedBaseline(BLENDED)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_baseline(model, faces, tmp_path, **OPTIONS)
    moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert any(name.endswith("running_mean") for name in moved)
    assert any("classifier" in name for name in moved)
    loaded = SelfBlendedBaseline(BLENDED, seed=1)
    fill_baseline(loaded, tmp_path)
    picture = [tiny.picture(1)]
    assert BaselineScorer(loaded)(picture) == BaselineScorer(model)(picture)


def test_it_sees_whole_faces_alone():
    assert SelfBlendedBaseline(BLENDED).simulator.whole_face == 1.0


def test_same_seed_same_start():
    one, two, other = (SelfBlendedBaseline(BLENDED, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_another_models_weights_are_refused(folder, faces, tmp_path):  # noqa: F811
    train_baseline(_clip(folder, "probe"), faces, tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match=r"missing knowledge.context.*unknown probe"):
        fill_baseline(_clip(folder, "context"), tmp_path)
