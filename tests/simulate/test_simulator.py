from dataclasses import replace
from itertools import islice

import cv2
import numpy as np
import pytest
import torch

from llava_forgery.constants import REGION_NAMES, WHOLE_FACE
from llava_forgery.simulate.config import SimulatorConfig
from llava_forgery.simulate.plan import draw_plans
from llava_forgery.simulate.render import plan_colours, render_forgery, source_matrix, warp_layer
from llava_forgery.simulate.simulator import ForgerySimulator
from tests import tiny


def _inputs(count=4):
    images = torch.stack([torch.from_numpy(tiny.picture(i)).permute(2, 0, 1) for i in range(count)])
    landmarks = torch.from_numpy(tiny.landmarks()).expand(count, -1, -1)
    return images.float() / 255, landmarks


def _forge(seed=0, count=4, **config):
    images, landmarks = _inputs(count)
    simulator = ForgerySimulator(SimulatorConfig(**config))
    return simulator(images, landmarks, torch.Generator().manual_seed(seed))


def test_shapes_and_ranges():
    forged = _forge(count=6)
    assert forged.image.shape == forged.pristine.shape == (6, 3, 64, 64)
    assert forged.mask.shape == (6, 1, 64, 64)
    for tensor in (forged.image, forged.pristine, forged.mask):
        assert tensor.dtype == torch.float32
        assert 0 <= float(tensor.min()) <= float(tensor.max()) <= 1
    assert len(forged.regions) == 6


def test_pristine_equals_forged_where_the_mask_is_zero():
    forged = _forge(count=12, poisson=0.5)
    difference = (forged.image - forged.pristine).abs()
    assert float(difference[(forged.mask == 0).expand_as(difference)].max()) < 1e-6
    inside = (forged.mask > 0.5).expand_as(difference)
    assert 255 * float(difference[inside].mean()) > 2


def test_same_seed_same_forgery_and_other_seed_another():
    first, second, other = _forge(3), _forge(3), _forge(4)
    assert torch.equal(first.image, second.image)
    assert first.regions == second.regions
    assert not torch.equal(first.image, other.image)


def test_a_sample_depends_on_its_own_generator_alone():
    images, landmarks = _inputs(3)
    simulator = ForgerySimulator()

    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]

    together = simulator(images, landmarks, generators())
    alone = simulator(images[1:2], landmarks[1:2], generators()[1:2])
    assert torch.equal(together.image[1:2], alone.image)
    assert together.regions[1:2] == alone.regions


def test_one_by_one_in_a_batch_and_as_tensors_are_the_same_bytes():
    images, landmarks = _inputs(4)
    simulator = ForgerySimulator()
    pictures, points = [tiny.picture(i) for i in range(4)], [tiny.landmarks()] * 4
    alone = [simulator.forge(pictures[i], points[i], 7 + i) for i in range(4)]
    batch = simulator.forge_batch(pictures, points, range(7, 11))
    tensors = simulator(images, landmarks, range(7, 11))
    for i, (one, two) in enumerate(zip(alone, batch, strict=True)):
        for a, b in zip(one[:3], two[:3], strict=True):
            np.testing.assert_array_equal(a, b)
        assert one.plan.regions == two.plan.regions == tensors.regions[i]
        pixels = (tensors.image[i] * 255).round().byte().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(one.image, pixels)
    assert not np.array_equal(alone[0].image, alone[1].image)
    with pytest.raises(ValueError, match="each of 4 images, got 4 and 3"):
        simulator.forge_batch(pictures, points, range(3))


def test_a_plan_rendered_twice_is_equal():
    for plan in islice(draw_plans(SimulatorConfig(poisson=0.5), 0), 20):
        first, second = (
            render_forgery(tiny.picture(0, 96), tiny.landmarks(96), plan) for _ in range(2)
        )
        for a, b in zip(first[:3], second[:3], strict=True):
            np.testing.assert_array_equal(a, b)
        assert first.difference == second.difference


def test_working_on_the_rectangle_equals_working_on_the_whole_picture():
    """The foreground on its rectangle is what moving and recolouring everything would give."""
    image = cv2.GaussianBlur(tiny.picture(0, 128), (5, 5), 1)
    for plan in islice(draw_plans(SimulatorConfig(), 5), 12):
        colours = plan_colours(plan, 0.5)
        whole = warp_layer(image, plan, (0, 0, 128, 128), colours)
        part = warp_layer(image, plan, (30, 17, 51, 64), colours)
        np.testing.assert_allclose(part, whole[17:81, 30:81], atol=1)


def test_foreground_moves_right_and_down_turns_clockwise_and_grows():
    plan = replace(
        next(draw_plans(SimulatorConfig(), 0)),
        angle=np.pi / 2, scale=2.0, shift_x=0.25, shift_y=0.1,
    )  # fmt: skip
    # The source of the centre moved by the shift is the centre itself.
    matrix = source_matrix(plan, (40, 40))
    np.testing.assert_allclose(matrix @ [30, 24, 1], [20, 20], atol=1e-9)
    # What stood 5 to the right of it now stands 10 below.
    np.testing.assert_allclose(matrix @ [30, 34, 1], [25, 20], atol=1e-9)


def test_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    _forge()
    assert torch.equal(before, torch.random.get_rng_state())


def test_regions_are_one_to_three_known_names_in_order():
    seen = set()
    for regions in _forge(count=40).regions:
        assert 1 <= len(regions) <= 3
        assert list(regions) == [name for name in REGION_NAMES if name in regions]
        assert WHOLE_FACE not in regions or regions == (WHOLE_FACE,)
        seen.update(regions)
    assert seen == set(REGION_NAMES)


def test_faint_forgeries_are_drawn_anew():
    faint = {"rgb": 0.0, "hue": 0.0, "brightness": 0.0, "contrast": (1.0, 1.0),
             "saturation": (1.0, 1.0), "angle": 0.0, "shift": 0.0, "scale": (1.0, 1.0),
             "sharpness": (-1.0, 1.0)}  # fmt: skip
    weak = _forge(count=4, min_difference=0.0, **faint)
    strong = _forge(count=4, min_difference=12.0, max_draws=16, **faint)

    def change(forged):
        inside = (forged.mask > 0.5).expand_as(forged.image)
        return float((forged.image - forged.pristine).abs()[inside].mean())

    assert change(strong) > change(weak)


def test_recoloured_background_is_the_pristine_image():
    """Whatever side is recoloured, the pair differs inside the mask alone."""
    images, _ = _inputs()
    forged = _forge(on_foreground=0.0)
    assert not torch.allclose(forged.pristine, images, atol=0.01)
    forged = _forge(on_foreground=1.0)
    assert torch.equal(forged.pristine, images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, "expected float images"),
        ({"images": torch.full((2, 3, 64, 64), 255.0)}, "divide bytes by 255"),
        ({"landmarks": torch.zeros(2, 5, 2)}, r"landmarks \(2, 68, 2\)"),
        ({"generator": [torch.Generator()]}, "each of the 2 images"),
        ({"landmarks": torch.full((2, 68, 2), -500.0)}, "inside the image"),
    ],
)
def test_wrong_input_is_an_error(change, message):
    images, landmarks = _inputs(2)
    values = {"images": images, "landmarks": landmarks, "generator": torch.Generator(), **change}
    with pytest.raises(ValueError, match=message):
        ForgerySimulator()(**values)


@pytest.mark.parametrize(
    "values",
    [{"max_regions": 0}, {"poisson": 1.5}, {"scale": (1.1, 0.9)}, {"opacity": ()},
     {"softness": (0.0, 0.1)}, {"jpeg_quality": (0, 50)}, {"downscale": (0.5, 2.0)},
     {"cells": (1, 3)}, {"swap": 1.5}, {"swap": 0.7, "reenactment": 0.5}],
)  # fmt: skip
def test_wrong_configuration_is_an_error(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        SimulatorConfig(**values)
