import json

import datasets
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from llava_forgery.faces.records import FEATURES
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.infer.explain import (
    explain,
    explain_pair,
    explain_photograph,
    explanation_panels,
    grad_cam,
)
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.kfd.config import EncoderConfig
from llava_forgery.simulate.pairs import CENTRED, FacePairs
from llava_forgery.tensors import from_bytes, to_bytes
from tests import tiny


@pytest.fixture(scope="module")
def predictor():
    return ForgeryPredictor(attach_forgery(*tiny.llava(), tiny.kfd()), max_new_tokens=3)


def pictures(count):
    return torch.stack([from_bytes(tiny.picture(i)) for i in range(count)])


def test_grad_cam_depends_on_the_image_and_on_the_target():
    kfd, images = tiny.kfd(), pictures(2)
    fake, real = grad_cam(kfd, images), grad_cam(kfd, images, target=0)
    assert fake.shape == (2, 64, 64)
    assert fake.min() >= 0
    assert fake.max() == pytest.approx(1, abs=1e-3)
    assert np.abs(fake[0] - fake[1]).max() > 0.05
    assert np.abs(fake - real).max() > 0.05
    # Neither the batch nor what was asked before has a say.
    np.testing.assert_allclose(grad_cam(kfd, images[1:])[0], fake[1], atol=1e-4)


def test_grad_cam_by_hand():
    """Selvaraju et al., equations 1 and 2, on the last tap."""
    kfd, image = tiny.kfd(), pictures(1)
    features = [f.detach().requires_grad_(True) for f in kfd.encoder(image)]
    kfd.read_features(features).class_logits[0, 1].backward()
    weights = features[-1].grad.mean(dim=(2, 3), keepdim=True)
    expected = (weights * features[-1]).sum(dim=1).relu().detach()[0].numpy()
    assert expected.max() > 0
    found = grad_cam(kfd, image)[0]
    # The same coarse grid, enlarged: the peaks lie in the same cell.
    cell = np.array(np.unravel_index(found.argmax(), found.shape)) * len(expected) // len(found)
    assert expected[tuple(cell)] == pytest.approx(expected.max(), rel=0.25)


def test_grad_cam_leaves_the_detector_as_it_was():
    kfd = tiny.kfd().requires_grad_(False)
    before = kfd(pictures(1)).class_logits
    with torch.inference_mode():
        grad_cam(kfd, pictures(1))
    assert torch.equal(kfd(pictures(1)).class_logits, before)
    assert all(p.grad is None and not p.requires_grad for p in kfd.parameters())
    assert not kfd.encoder._forward_hooks
    with pytest.raises(ValueError, match="target must be 0"):
        grad_cam(kfd, pictures(1), target=2)


def test_grad_cam_of_a_frozen_tower(tmp_path):
    """open_clip's image tower runs under no_grad; its patch grid is read all the same."""
    model = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 32, "head_width": 16,
                       "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2,
                     "layers": 1},
    }  # fmt: skip
    torch.manual_seed(0)
    weights = open_clip.CLIP(**model).state_dict()
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    settings = json.dumps({"model_cfg": model, "preprocess_cfg": {}})
    (tmp_path / "open_clip_config.json").write_text(settings)
    kfd = tiny.kfd(
        encoder=EncoderConfig("open_clip", f"local-dir:{tmp_path}", None, (1, 2), 16, 64)
    )
    fake = grad_cam(kfd, pictures(2))
    assert fake.shape == (2, 64, 64)
    assert np.abs(fake[0] - fake[1]).max() > 0.01


def test_panels_show_what_the_detector_gave(predictor):
    face = predictor.find_faces(tiny.picture(1), cropped=True)
    (explanation,) = explain(predictor, face)
    assert explanation.verdict.score == pytest.approx(
        predictor.predict_faces(face)[0].score, abs=1e-6
    )
    maps = predictor.vlm.detect(pictures(2)[1:]).consistency_maps[0]
    fake = maps.softmax(dim=1)[:, 1].numpy()
    np.testing.assert_allclose(explanation.consistency, fake, atol=1e-5)
    panels = explanation_panels(explanation)
    captions = [caption.replace("\n", " ") for caption, _ in panels]
    assert captions[0].startswith(("real  score 0.", "fake  score 0."))
    assert captions[3:] == [f"nearer to fake (layer {tap})" for tap in (1, 2, 3)]
    assert all(panel.shape == (64, 64, 3) for _, panel in panels)
    assert np.array_equal(panels[0][1], tiny.picture(1))
    assert explain(predictor, []) == []


def test_sheet_of_a_photograph(predictor, tmp_path):
    sheet, record = explain_photograph(predictor, tiny.picture(2), tmp_path, cropped=True)
    with Image.open(sheet) as picture:
        assert picture.size == (6 * 64, 64 + 46)
        assert "simulated" not in picture.text["Description"]
    verdict = json.loads(record.read_text())
    assert verdict["answer"] == predictor.predict(tiny.picture(2), cropped=True).answer
    assert sorted(p.name for p in tmp_path.iterdir()) == ["explanation.json", "explanation.png"]


def test_sheets_of_a_pair_show_the_true_mask_and_are_marked(predictor, tmp_path):
    rows = datasets.Dataset.from_list([tiny.face(0).to_row()], features=FEATURES)
    pair = FacePairs(rows, 1, size=64, framing=CENTRED)[0]
    images = map(to_bytes, (pair.forged, pair.pristine))
    written = explain_pair(predictor, *images, pair.mask[0].numpy(), pair.regions, tmp_path)
    assert [path.name for path in written] == [
        "forged.png", "forged.json", "pristine.png", "pristine.json"
    ]  # fmt: skip
    with Image.open(written[0]) as picture:
        assert "simulated forgery" in picture.text["Description"]
        true = np.asarray(picture)[46:, 64:128, 0] / 255
    np.testing.assert_allclose(true, pair.mask[0].numpy(), atol=0.01)
    with Image.open(written[2]) as picture:
        assert not np.asarray(picture)[46:, 64:128].any()
