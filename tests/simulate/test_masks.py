import numpy as np
import pytest

from llava_forgery.simulate.masks import deform, fill, soft_mask

SQUARE = np.float32([[20, 20], [44, 20], [44, 40], [20, 40]])


def _whole(soft, size=(64, 64)):
    mask = np.zeros(size, np.uint8)
    height, width = soft.values.shape
    mask[soft.top : soft.top + height, soft.left : soft.left + width] = soft.values
    return mask


def test_a_field_of_zeros_and_a_constant_one_do_not_change_the_form():
    still = deform([SQUARE], np.zeros((2, 5, 5), np.float32), 3.0, (64, 64))
    assert (fill(still, (0, 0), (64, 64)) == fill([SQUARE], (0, 0), (64, 64))).all()
    moved = deform([SQUARE], np.ones((2, 5, 5), np.float32), 3.0, (64, 64))
    np.testing.assert_allclose(moved[0].min(axis=0), [23, 23], atol=1e-4)


def test_deformation_bends_each_place_by_its_own_node():
    field = np.zeros((2, 2, 2), np.float32)
    field[0, :, 1] = 1
    moved = deform([SQUARE], field, 8.0, (64, 64))[0]
    shift = moved[:, 0] - deform([SQUARE], 0 * field, 8.0, (64, 64))[0][:, 0]
    assert shift[moved[:, 0].argmax()] > shift[moved[:, 0].argmin()] + 1
    np.testing.assert_allclose(moved[:, 1].max(), 40, atol=1e-4)


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
