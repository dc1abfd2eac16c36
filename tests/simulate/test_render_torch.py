"""The batched renderer against the one with OpenCV, plan by plan.

Both round to bytes after each step. Bilinear reading and blurs round differently by a level, which
sharpening multiplies; Poisson spreads it. JPEG turns a level into a step of its quantisation.
"""

from dataclasses import replace
from itertools import islice

import cv2
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from llava_forgery.constants import WHOLE_FACE
from llava_forgery.simulate import staging
from llava_forgery.simulate.blend import poisson_blend
from llava_forgery.simulate.config import SimulatorConfig
from llava_forgery.simulate.drawing import draw_masks
from llava_forgery.simulate.foreground import Donor
from llava_forgery.simulate.plan import draw_plans
from llava_forgery.simulate.render import render_forgery
from llava_forgery.simulate.render_torch import _poisson, render_batch
from llava_forgery.simulate.simulator import ForgerySimulator
from tests import tiny

SIZE = 96
PLAIN = {"poisson": 0.0, "jpeg": 0.0}
KINDS = {
    "alpha": {**PLAIN, "sharpness": (-1.0, -0.5), "downscale": (1.0, 1.0)},
    "sharpen": {**PLAIN, "sharpness": (0.5, 1.5)},
    "downscale": {**PLAIN, "sharpness": (-1.0, -0.5), "downscale": (1.5, 2.5)},
    "Poisson": {"poisson": 1.0, "jpeg": 0.0},
    "whole face": {**PLAIN, "whole_face": 1.0},
    "background": {**PLAIN, "on_foreground": 0.0},
    "JPEG": {"poisson": 0.5, "jpeg": 1.0},
    "swap": {**PLAIN, "swap": 1.0},
    "reenactment": {**PLAIN, "reenactment": 1.0, "texture": 1.0},
    "swap onto background": {**PLAIN, "swap": 1.0, "on_foreground": 0.0},
}


def _pictures(count, size=SIZE):
    # Noise alone would measure the interpolation's rounding, not the rendering of a picture.
    return [cv2.GaussianBlur(tiny.picture(i, size), (5, 5), 1.0) for i in range(count)]


def _batch(pictures):
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def _plans(count, seed=0, **config):
    return list(islice(draw_plans(SimulatorConfig(**config), seed), count))


def _compare(pictures, landmarks, plans, mean, largest):
    donors = [Donor(*donor) for donor in zip(pictures[::-1], landmarks, strict=True)]
    torch_made = render_batch(_batch(pictures), landmarks, plans, donors=donors)
    for i, plan in enumerate(plans):
        made = render_forgery(pictures[i], landmarks[i], plan, donors[i])
        np.testing.assert_array_equal(torch_made.mask[i, 0].numpy(), made.mask)
        assert float(torch_made.difference[i]) == pytest.approx(made.difference, abs=mean)
        for ours, theirs in ((torch_made.image, made.image), (torch_made.pristine, made.pristine)):
            apart = np.abs(ours[i].permute(1, 2, 0).numpy().astype(int) - theirs)
            assert apart.mean() <= mean
            assert apart.max() <= largest
        same = torch_made.image[i] == torch_made.pristine[i]
        assert same[:, torch_made.mask[i, 0] == 0].all()
    return torch_made


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_plan_is_the_same_forgery(kind):
    plans = _plans(8, **KINDS[kind])
    mean, largest = (1.0, 40) if kind == "JPEG" else (0.5, 4)
    made = _compare(_pictures(8), [tiny.landmarks(SIZE)] * 8, plans, mean, largest)
    # The comparison says something only where the forgery is seen.
    assert float(made.difference.mean()) > 1.5
    if kind == "whole face":
        assert {plan.regions for plan in plans} == {(WHOLE_FACE,)}


def test_pictures_may_be_oblong_and_plans_written_by_hand():
    """Sharpening what was reduced is never drawn, but a plan may ask for it."""
    pictures = [picture[:80] for picture in _pictures(4)]
    plans = [
        replace(plan, sharpness=0.8, downscale=2.2, on_foreground=i % 2 == 0)
        for i, plan in enumerate(_plans(4, seed=3, **KINDS["Poisson"]))
    ]
    _compare(pictures, [tiny.landmarks(80)] * 4, plans, 0.5, 4)


def test_poisson_is_exact_on_each_rectangle_of_a_batch():
    """Rectangles of three sizes, one against the picture's edge and one with nothing inside."""
    fronts, backs = _pictures(4, 64), _pictures(8, 64)[4:]
    mask = np.zeros((4, 64, 64), np.uint8)
    mask[0, 10:30, 5:60] = mask[1, 1:63, 1:63] = mask[2, 40:45, 20:23] = 255
    cv2.circle(mask[0], (30, 35), 12, 255, -1)
    rectangles = np.array([cv2.boundingRect(one) for one in mask])
    solved = _poisson(
        _batch(fronts).float(),
        _batch(backs).float(),
        torch.from_numpy(mask > 0).float()[:, None],
        rectangles,
    )
    for i in range(4):
        expected = poisson_blend(fronts[i], backs[i], mask[i])
        ours = solved[i].permute(1, 2, 0).numpy()
        assert np.abs(ours - expected).max() <= 1
        assert np.abs(ours - expected).mean() < 0.01
    np.testing.assert_array_equal(solved[3].permute(1, 2, 0).numpy(), backs[3])


def test_a_batch_is_its_samples_and_twice_the_same():
    pictures, landmarks = _pictures(4), [tiny.landmarks(SIZE)] * 4
    plans = _plans(4, seed=5, poisson=0.5, jpeg=0.0)
    assert len({plan.poisson for plan in plans}) == 2
    together = render_batch(_batch(pictures), landmarks, plans)
    again = render_batch(_batch(pictures), landmarks, plans)
    for i in range(4):
        alone = render_batch(_batch(pictures[i : i + 1]), landmarks[:1], plans[i : i + 1])
        for one, part, second in zip(alone, together, again, strict=True):
            assert torch.equal(part, second)
            # A sum in another order may round to the next level, seldom.
            apart = (one[0].float() - part[i].float()).abs()
            assert float(apart.max()) <= 1
            assert float(apart.mean()) < 0.01


def test_bytes_and_floats_are_the_same_and_come_back_as_bytes():
    pictures, landmarks, plans = _pictures(2), [tiny.landmarks(SIZE)] * 2, _plans(2)
    kept = _batch(pictures).clone()
    for images in (kept, kept.float() / 255, kept.double() / 255):
        before = images.clone()
        made = render_batch(images, landmarks, plans)
        assert torch.equal(images, before)
        assert [tensor.dtype for tensor in made] == [torch.uint8] * 3 + [torch.float32]
        assert {tensor.device for tensor in made} == {images.device}
        assert made.image.shape == made.pristine.shape == (2, 3, SIZE, SIZE)
        assert made.mask.shape == (2, 1, SIZE, SIZE)
        assert torch.equal(made.image, render_batch(kept, landmarks, plans).image)


def test_autocast_changes_nothing():
    batch, landmarks, plans = _batch(_pictures(3)), [tiny.landmarks(SIZE)] * 3, _plans(3, poisson=1)
    plain = render_batch(batch, landmarks, plans)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = render_batch(batch, landmarks, plans)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


def test_a_face_outside_its_image_leaves_it_alone():
    batch, plans = _batch(_pictures(2)), _plans(2, on_foreground=0.0)
    made = render_batch(batch, [tiny.landmarks(SIZE), tiny.landmarks(SIZE) - 500], plans)
    assert float(made.difference[0]) > 0
    assert float(made.difference[1]) == -1
    assert torch.equal(made.image[1], batch[1])
    assert torch.equal(made.pristine[1], batch[1])
    assert not made.mask[1].any()


def _on_a_pretended_gpu(monkeypatch, upload):
    """Render with tensors that have a shape, a dtype and a CUDA device, but no values."""
    plans = _plans(8, poisson=0.5, jpeg=0.5, on_foreground=0.5)
    assert {plan.poisson for plan in plans} == {plan.on_foreground for plan in plans} == {0, 1}
    assert {plan.jpeg > 0 for plan in plans} == {plan.sharpness > 0 for plan in plans} == {0, 1}
    landmarks = [tiny.landmarks(SIZE)] * 8
    masks = draw_masks(plans, np.float32(landmarks), (SIZE, SIZE))
    gathered = staging.gather_masks(masks, np.array([plan.poisson for plan in plans]), (SIZE, SIZE))
    # Pinned memory needs a driver; JPEG needs values.
    monkeypatch.setattr(staging, "gather_masks", lambda *_, **__: gathered)
    monkeypatch.setattr(staging, "compress", lambda *_: None)
    monkeypatch.setattr(staging, "download", lambda tensor: tensor.cpu())
    monkeypatch.setattr(staging, "upload", upload)
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.empty(8, 3, SIZE, SIZE, dtype=torch.uint8, device="cuda")
        return render_batch(images, landmarks, plans, masks)


def test_no_operation_mixes_a_gpu_with_the_cpu(monkeypatch):
    def upload(values, device):
        return torch.as_tensor(values).to(device)

    made = _on_a_pretended_gpu(monkeypatch, upload)
    assert {tensor.device.type for tensor in made} == {"cuda"}
    assert [tensor.dtype for tensor in made] == [torch.uint8] * 3 + [torch.float32]
    assert made.image.shape == made.pristine.shape == (8, 3, SIZE, SIZE)
    # The same where a copy is forgotten: the check sees it.
    with pytest.raises(RuntimeError, match="same device|different devices"):
        _on_a_pretended_gpu(monkeypatch, lambda values, _: torch.as_tensor(values))


@pytest.mark.parametrize(
    ("images", "count", "points", "message"),
    [
        (torch.zeros(2, 1, 8, 8), 2, (68, 2), r"expected images \(B, 3, H, W\)"),
        (torch.zeros(0, 3, 8, 8), 0, (68, 2), "one or more"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), 2, (68, 2), "uint8 images or floats"),
        (torch.zeros(2, 3, 8, 8), 1, (68, 2), "each of 2 images, got 1 and 2"),
        (torch.zeros(2, 3, 8, 8), 2, (5, 2), r"expected landmarks \(68, 2\)"),
    ],
)
def test_wrong_input_is_an_error(images, count, points, message):
    with pytest.raises(ValueError, match=message):
        render_batch(images, [np.zeros(points)] * count, _plans(len(images)))


def _simulate(renderer, seeds, **config):
    batch = _batch(_pictures(len(seeds))).float() / 255
    landmarks = torch.from_numpy(tiny.landmarks(SIZE)).expand(len(seeds), -1, -1)
    return ForgerySimulator(SimulatorConfig(**config), renderer)(batch, landmarks, seeds)


def test_the_simulator_forges_the_same_with_either_renderer():
    # Without redrawing: a forgery at the threshold may be redrawn by one of them alone.
    seeds, changes = range(20, 28), {"min_difference": 0.0}
    bytes_made = _simulate("opencv", seeds, **changes)
    ours = _simulate("torch", seeds, **changes)
    assert ours.regions == bytes_made.regions
    assert torch.equal(ours.mask, bytes_made.mask)
    for a, b in ((ours.image, bytes_made.image), (ours.pristine, bytes_made.pristine)):
        assert a.dtype == b.dtype
        assert 255 * float((a - b).abs().mean()) < 0.5
    again = _simulate("torch", seeds, **changes)
    assert all(torch.equal(a, b) for a, b in zip(ours[:3], again[:3], strict=True))


def test_on_the_cpu_tensors_are_forged_with_opencv_unless_asked():
    seeds = range(4)
    automatic, bytes_made = _simulate("auto", seeds), _simulate("opencv", seeds)
    assert torch.equal(automatic.image, bytes_made.image)
    with pytest.raises(ValueError, match="renderer must be one of auto, opencv, torch, got 'cuda'"):
        ForgerySimulator(renderer="cuda")


def test_faint_forgeries_of_a_batch_are_drawn_anew():
    """The strongest of all draws is kept, as for single faces, where none is strong enough."""
    seeds = range(4)
    bytes_made = _simulate("opencv", seeds, min_difference=200.0, max_draws=4, jpeg=0.0)
    ours = _simulate("torch", seeds, min_difference=200.0, max_draws=4, jpeg=0.0)
    first = _simulate("torch", seeds, min_difference=0.0, jpeg=0.0)
    assert ours.regions == bytes_made.regions
    assert torch.equal(ours.mask, bytes_made.mask)
    assert not torch.equal(ours.mask, first.mask)


def test_a_face_outside_is_an_error_of_the_batch():
    batch = _batch(_pictures(2)).float() / 255
    landmarks = torch.from_numpy(np.stack([tiny.landmarks(SIZE), tiny.landmarks(SIZE) - 500]))
    with pytest.raises(ValueError, match="inside the image"):
        ForgerySimulator(renderer="torch")(batch, landmarks, [0, 1])
