from dataclasses import replace

import cv2
import numpy as np
import pytest

from llava_forgery.simulate.config import SimulatorConfig
from llava_forgery.simulate.foreground import (
    Donor,
    draw_foreground,
    express,
    match_colours,
    warp,
)
from llava_forgery.simulate.plan import REENACTMENT, SELF, SWAP, TEXTURES, draw_plans
from llava_forgery.simulate.render import render_forgery
from llava_forgery.simulate.simulator import ForgerySimulator
from tests import tiny

SIDE = 96


def _picture(seed=0):
    return cv2.GaussianBlur(tiny.picture(seed, SIDE), (5, 5), 1.0)


def _plan(**changes):
    draws = np.linspace(-1.5, 1.5, 12, dtype=np.float32)
    plan = next(draw_plans(SimulatorConfig(), 0))
    return replace(plan, draws=draws, on_foreground=True, poisson=False, **changes)


def test_warping_by_nothing_changes_nothing():
    image, points = _picture(), tiny.landmarks(SIDE)
    np.testing.assert_allclose(warp(image, points, points, (SIDE, SIDE)), image, atol=1)


def test_warping_brings_points_where_they_belong():
    """White dots on the donor's landmarks come to lie on the face's."""
    source = tiny.landmarks(SIDE)
    turn = np.float32([[0.97, -0.2], [0.2, 0.97]])
    target = (source - SIDE / 2) @ turn.T + SIDE / 2 + [3, -2]
    for point in (8, 30, 36, 54):
        image = np.zeros((SIDE, SIDE, 3), np.uint8)
        x, y = source[point]
        cv2.circle(image, (round((x - 0.5) * 16), round((y - 0.5) * 16)), 32, (255,) * 3, -1, 8, 4)
        moved = warp(image, target, source, (SIDE, SIDE))[..., 0].astype(float)
        rows, columns = np.indices(moved.shape) + 0.5
        centre = [(moved * columns).sum() / moved.sum(), (moved * rows).sum() / moved.sum()]
        np.testing.assert_allclose(centre, target[point], atol=0.7)


def test_colours_are_matched_inside_the_face():
    points, image, reference = tiny.landmarks(SIDE), _picture(0), 255 - _picture(1) // 2
    inside = np.zeros((SIDE, SIDE), np.uint8)
    cv2.fillConvexPoly(inside, cv2.convexHull(points.astype(np.int32)), 1)
    for strength, off in ((1.0, 2.0), (0.0, None)):
        matched = match_colours(image, reference, points, strength)
        if off is None:
            np.testing.assert_allclose(matched, image, atol=1)
            continue
        apart = matched[inside > 0].mean(axis=0) - reference[inside > 0].mean(axis=0)
        assert np.abs(apart).max() < off


def test_an_expression_moves_mouth_jaw_and_brows_alone():
    points = tiny.landmarks(SIDE)
    moved = np.linalg.norm(express(points, np.ones(12)) - points, axis=1)
    still = [*range(6), *range(11, 17), *range(27, 48)]
    assert moved[still].max() == 0
    assert moved[[6, 8, 10, 17, 26, 48, 54, 57]].min() > 0.3
    # The mouth opens: its lower lip sinks from the upper.
    opened = express(points, np.eye(12)[1] * 2)
    assert (opened[66] - opened[62])[1] > (points[66] - points[62])[1] + 1
    np.testing.assert_array_equal(express(points, np.zeros(12)), points)


def test_a_swap_brings_the_donors_face_and_needs_one():
    points, donor = tiny.landmarks(SIDE), Donor(_picture(1)[:, ::-1], tiny.landmarks(SIDE))
    plan = _plan(kind=SWAP)
    drawn = draw_foreground(_picture(), points, plan, donor)
    expected = match_colours(donor.image, _picture(), points, 1.0)
    assert (
        np.abs(drawn.astype(int) - expected).mean() < np.abs(drawn - _picture().astype(int)).mean()
    )
    with pytest.raises(ValueError, match=r"needs a donor.*SimulatorConfig.swap"):
        draw_foreground(_picture(), points, plan)


@pytest.mark.parametrize("texture", TEXTURES)
def test_textures_are_seeded_and_leave_the_picture_what_it_is(texture):
    plan, image = _plan(texture=texture), tiny.picture(0, SIDE)
    drawn = draw_foreground(image, tiny.landmarks(SIDE), plan)
    np.testing.assert_array_equal(drawn, draw_foreground(image, tiny.landmarks(SIDE), plan))
    np.testing.assert_allclose(drawn.mean(), image.mean(), atol=2)
    spread = [cv2.Laplacian(x, cv2.CV_32F).std() for x in (drawn, image)]
    if texture == "camera":
        assert drawn is image
    elif texture == "grain":
        assert spread[0] > spread[1]
    else:
        assert spread[0] < spread[1]


@pytest.mark.parametrize("kind", [SELF, SWAP, REENACTMENT])
@pytest.mark.parametrize("on_foreground", [True, False])
def test_masks_are_true_of_each_kind(kind, on_foreground):
    """Forged and pristine differ inside the mask, and there alone."""
    donor = Donor(_picture(1), tiny.landmarks(SIDE))
    plan = replace(_plan(kind=kind, texture="network"), on_foreground=on_foreground)
    made = render_forgery(_picture(), tiny.landmarks(SIDE), plan, donor)
    apart = np.abs(made.image.astype(int) - made.pristine).max(axis=2)
    assert apart[made.mask == 0].max() == 0
    assert made.difference > 0.5
    if on_foreground:
        np.testing.assert_array_equal(made.pristine, _picture())


def test_batches_of_tensors_have_no_donors():
    simulator = ForgerySimulator(SimulatorConfig(swap=1.0))
    with pytest.raises(ValueError, match="needs a donor"):
        simulator.forge(_picture(), tiny.landmarks(SIDE), 0)
    donor = Donor(_picture(1), tiny.landmarks(SIDE))
    forged = simulator.forge(_picture(), tiny.landmarks(SIDE), 0, donor)
    assert forged.plan.kind == SWAP
