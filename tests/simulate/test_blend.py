import cv2
import numpy as np
import pytest
from PIL import Image

from llava_forgery.simulate.blend import alpha_blend, poisson_blend
from tests import tiny


def _random(seed, shape=(32, 40, 3)):
    return np.random.default_rng(seed).integers(60, 200, shape, dtype=np.uint8)


def _mask(shape=(32, 40)):
    mask = np.zeros(shape, np.uint8)
    mask[10:22, 8:24] = 255
    return mask


@pytest.mark.parametrize("blend", [alpha_blend, poisson_blend])
def test_outside_the_mask_nothing_changes(blend):
    front, back, mask = _random(0), _random(1), _mask()
    result = blend(front, back, mask)
    assert (result[mask == 0] == back[mask == 0]).all()
    assert (result[mask > 0] != back[mask > 0]).any()


@pytest.mark.parametrize("blend", [alpha_blend, poisson_blend])
def test_blending_a_picture_into_itself_gives_it_back(blend):
    picture = _random(2)
    mask = np.random.default_rng(3).integers(0, 256, (32, 40), dtype=np.uint8)
    np.testing.assert_array_equal(blend(picture, picture, mask), picture)


def test_alpha_is_equation_6():
    front, back = np.full((2, 2, 3), 200, np.uint8), np.full((2, 2, 3), 50, np.uint8)
    mask = np.array([[0, 51], [102, 255]], np.uint8)
    assert alpha_blend(front, back, mask)[..., 0].tolist() == [[50, 80], [110, 200]]
    assert alpha_blend(front, back, mask, 0.5)[..., 0].tolist() == [[50, 65], [80, 125]]


def test_poisson_drops_a_constant_offset():
    """Only gradients are taken over: a foreground that is brighter by a constant blends away."""
    back = tiny.picture(0, 48) // 2 + 40
    mask = np.full((48, 48), 255, np.uint8)
    result = poisson_blend(back + 50, back, mask, erosion=3)
    np.testing.assert_array_equal(result, back)


def test_poisson_solves_the_poisson_equation():
    """The discrete Laplacian of the solution is the divergence of the guidance field."""
    front, back = (_random(seed, (24, 21, 3)) // 4 + 100 for seed in (4, 5))
    result = poisson_blend(front, back, np.full((24, 21), 255, np.uint8))
    np.testing.assert_array_equal(result[0], back[0])

    def laplacian(x):
        return cv2.filter2D(
            x.astype(np.float64), -1, np.float64([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
        )

    # Every one of the five pixels is rounded by up to a half.
    error = np.abs(laplacian(result) - laplacian(front))[3:-3, 3:-3]
    assert error.max() <= 4


@pytest.mark.parametrize("rows", [2, 1])
def test_a_mask_without_an_inner_pixel_leaves_the_background(rows):
    mask = np.zeros((32, 40), np.uint8)
    mask[5 : 5 + rows] = 255
    np.testing.assert_array_equal(poisson_blend(_random(0), _random(1), mask), _random(1))


def _compare(front, back):
    """Mean absolute difference from OpenCV's clone inside an ellipse and everywhere, in levels."""
    height, width = back.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    cv2.ellipse(mask, (width // 2, height // 2), (width // 4, height // 3), 20, 0, 360, 255, -1)
    x, y, w, h = cv2.boundingRect(mask)
    # OpenCV overwrites the mask that it is given.
    theirs = cv2.seamlessClone(
        front, back, mask.copy(), (x + w // 2, y + h // 2), cv2.NORMAL_CLONE
    ).astype(int)
    ours = poisson_blend(front, back, mask, erosion=3)
    difference = np.abs(ours - theirs)
    assert np.abs(theirs - back)[mask > 0].max() > 10, "the clone changes something"
    return difference[mask > 0].mean(), difference.max()


def _foreground(back):
    matrix = cv2.getRotationMatrix2D((back.shape[1] / 2, back.shape[0] / 2), 4, 1.06)
    moved = cv2.warpAffine(back, matrix, back.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)
    return cv2.convertScaleAbs(moved, alpha=0.8, beta=30)


@pytest.mark.parametrize("size", [64, 151])
def test_poisson_agrees_with_seamless_clone(size):
    back = cv2.GaussianBlur(tiny.picture(1, size), (3, 3), 0.8)
    inside, largest = _compare(_foreground(back), back)
    # OpenCV rounds down: half a level on the average, one at most beside float errors.
    assert inside < 0.7
    assert largest <= 1


def test_poisson_agrees_with_seamless_clone_on_photographs(samples_dir):
    for path in sorted(samples_dir.glob("*.jpg"))[:3]:
        photo = Image.open(path).convert("RGB")
        back = np.asarray(photo.resize((224, 224), Image.Resampling.BOX))
        inside, _ = _compare(_foreground(back), back)
        assert inside < 0.7, path.name
