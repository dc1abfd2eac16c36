"""Masks to words."""

import numpy as np
import pytest

from llava_forgery.constants import REGION_NAMES, WHOLE_FACE
from llava_forgery.faces.regions import hull_mask
from llava_forgery.qa.mask_regions import covered_regions
from tests import tiny

SIZE = 128
POINTS = tiny.landmarks(SIZE)


def mask(*names):
    return (hull_mask(names, POINTS, (SIZE, SIZE)) * 255).astype(np.uint8)


@pytest.mark.parametrize("name", REGION_NAMES)
def test_the_hull_of_a_region_is_that_region(name):
    assert covered_regions(mask(name), POINTS) == (name,)


def test_several():
    assert covered_regions(mask("eyes", "mouth"), POINTS) == ("eyes", "mouth")
    assert covered_regions(np.full((SIZE, SIZE), 255, np.uint8), POINTS) == (WHOLE_FACE,)


def test_little_and_nothing():
    part = mask("mouth")
    rows = np.flatnonzero(part.any(axis=1))
    part[rows[len(rows) // 4] :] = 0
    assert covered_regions(part, POINTS) == ("mouth",)
    assert covered_regions(np.zeros((SIZE, SIZE), np.uint8), POINTS) == ()
    corner = np.zeros((SIZE, SIZE), np.uint8)
    corner[:5, :5] = 255
    assert covered_regions(corner, POINTS) == ()
    # What compression leaves of a dark mask is no forgery.
    assert covered_regions(mask("mouth") // 3, POINTS) == ()


def test_input_is_checked():
    with pytest.raises(ValueError, match="expected a mask"):
        covered_regions(mask("nose").astype(np.float32), POINTS)
    with pytest.raises(ValueError, match="outside the mask"):
        covered_regions(mask("nose"), POINTS + 10 * SIZE)
