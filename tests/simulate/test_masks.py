import numpy as np
import pytest

from llava_forgery.faces.regions import fill
from llava_forgery.simulate.config import SimulatorConfig
from llava_forgery.simulate.masks import _densify, deform, plan_outlines, soft_mask
from llava_forgery.simulate.plan import draw_plans
from tests import tiny

SQUARE = np.float32([[20, 20], [44, 20], [44, 40], [20, 40]])


def _deform(field, strength):
    ((moved,),) = deform([[SQUARE]], [field], np.float32([strength]), (64, 64))
    return moved


def _whole(soft, size=(64, 64)):
    mask = np.zeros(size, np.uint8)
    height, width = soft.values.shape
    mask[soft.top : soft.top + height, soft.left : soft.left + width] = soft.values
    return mask


def test_a_field_of_zeros_and_a_constant_one_do_not_change_the_form():
    still = _deform(np.zeros((2, 5, 5), np.float32), 3.0)
    assert (fill([still], (0, 0), (64, 64)) == fill([SQUARE], (0, 0), (64, 64))).all()
    moved = _deform(np.ones((2, 5, 5), np.float32), 3.0)
    np.testing.assert_allclose(moved.min(axis=0), [23, 23], atol=1e-4)


def test_deformation_bends_each_place_by_its_own_node():
    field = np.zeros((2, 2, 2), np.float32)
    field[0, :, 1] = 1
    moved = _deform(field, 8.0)
    shift = moved[:, 0] - _deform(0 * field, 8.0)[:, 0]
    assert shift[moved[:, 0].argmax()] > shift[moved[:, 0].argmin()] + 1
    np.testing.assert_allclose(moved[:, 1].max(), 40, atol=1e-4)


def test_outlines_of_a_face_are_the_same_alone_and_in_a_batch():
    plans = [next(draw_plans(SimulatorConfig(), seed)) for seed in range(20)]
    landmarks = np.stack([tiny.landmarks() + np.float32(i) for i in range(20)])
    together = plan_outlines(plans, landmarks, (64, 64))
    for i, plan in enumerate(plans):
        (alone,) = plan_outlines([plan], landmarks[i : i + 1], (64, 64))
        assert len(alone) == len(together[i])
        for one, other in zip(alone, together[i], strict=True):
            np.testing.assert_array_equal(one, other)


def test_points_lie_along_the_outline_at_equal_distances_also_where_it_is_a_point():
    point = np.float32([[5, 6]])
    points, counts = _densify([SQUARE, point, SQUARE + 1], 1.5)
    assert counts.tolist() == [59, 8, 59]
    square = points[:59]
    # 88 pixels around, corners included as far as a point falls on them.
    np.testing.assert_array_equal(square[0], SQUARE[0])
    steps = np.abs(np.diff(square, axis=0, append=square[:1])).sum(axis=1)
    np.testing.assert_allclose(steps, 88 / 59, atol=1e-4)
    np.testing.assert_array_equal(points[59:67], np.repeat(point, 8, axis=0))
    np.testing.assert_allclose(points[67:], square + 1, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.5, 2.0, 6.5])
def test_soft_mask_keeps_the_middle_and_the_edge(sigma):
    mask = _whole(soft_mask([SQUARE], sigma, (64, 64)))
    assert mask[30, 32] > 220
    # The blurred step is a half at the edge: 20 lies between columns 19 and 20.
    assert 100 < int(mask[30, 19]) // 2 + int(mask[30, 20]) // 2 < 160
    assert (mask > 127).sum() == pytest.approx(24 * 20, rel=0.12)


def test_reduced_blur_equals_the_full_one():
    """Twice the size and twice the blur: the same picture at half the resolution."""
    small = _whole(soft_mask([SQUARE], 1.4, (64, 64))).astype(float)
    large = _whole(soft_mask([4 * SQUARE], 5.6, (256, 256)), (256, 256)).astype(float)
    shrunk = large.reshape(64, 4, 64, 4).mean(axis=(1, 3))
    # The outline that filling draws is up to half a pixel wider at the resolution of the
    # filling: along an edge of 88 pixels that is a few levels, and nothing elsewhere.
    assert np.abs(shrunk - small).max() < 60
    assert np.abs(shrunk - small).mean() < 4


def test_a_hull_over_the_edge_does_not_fade_there():
    mask = _whole(soft_mask([SQUARE - np.float32([40, 0])], 3.0, (64, 64)))
    assert mask[30, 0] == mask[30, :3].max()
    soft = soft_mask([SQUARE - np.float32([500, 0])], 3.0, (64, 64))
    assert soft.values.size == 0
