import cv2
import numpy as np
import pytest

from llava_forgery.simulate import pixels
from tests import tiny


@pytest.fixture
def image():
    return cv2.GaussianBlur(tiny.picture(0, 48), (5, 5), 1)


NEUTRAL = {
    "recolour": lambda x: pixels.recolour(x, pixels.colour_matrix()),
    "sharpen": lambda x: pixels.sharpen(x, 0.0),
    "reduce": lambda x: pixels.reduce(x, 1.0),
    "enlarge": lambda x: pixels.enlarge(x, (48, 48)),
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_strength_changes_nothing(name, image):
    np.testing.assert_array_equal(NEUTRAL[name](image), image)


def _colour(red, green, blue, **changes):
    pixel = np.array([red, green, blue], np.float64) / 255
    return pixels.colour_matrix(**changes) @ [*pixel, 1] * 255


def test_each_change_of_colour_does_what_it_says():
    np.testing.assert_allclose(
        _colour(10, 20, 30, shift=(0.1, 0, -0.1)), [35.5, 20, 4.5], atol=1e-9
    )
    np.testing.assert_allclose(_colour(90, 90, 90, hue=1.0, saturation=0.5), [90] * 3, atol=1e-9)
    # A third of a turn brings red to green.
    np.testing.assert_allclose(_colour(255, 0, 0, hue=2 * np.pi / 3), [0, 255, 0], atol=1e-9)
    grey = _colour(200, 100, 50, saturation=0.0)
    np.testing.assert_allclose(grey, [0.299 * 200 + 0.587 * 100 + 0.114 * 50] * 3, atol=1e-9)
    np.testing.assert_allclose(
        _colour(51, 102, 153, contrast=2.0, grey=0.4, brightness=0.1),
        [25.5, 127.5, 229.5],
        atol=1e-9,
    )


def test_matrices_of_many_pictures_are_those_of_each():
    rng = np.random.default_rng(0)
    values = {name: rng.uniform(0.5, 1.5, 4) for name in ("hue", "saturation", "contrast")}
    values["brightness"] = rng.uniform(-0.1, 0.1, 4)
    shifts = rng.uniform(-0.1, 0.1, (3, 4))
    together = pixels.colour_matrix(shift=tuple(shifts), grey=0.4, **values)
    assert together.shape == (3, 4, 4)
    for i in range(4):
        one = {name: float(column[i]) for name, column in values.items()}
        alone = pixels.colour_matrix(shift=tuple(shifts[:, i]), grey=0.4, **one)
        np.testing.assert_allclose(together[..., i], alone, atol=1e-12)


def test_recolouring_rounds_and_saturates(image):
    matrix = pixels.colour_matrix(shift=(0.5, 0, -0.5), hue=0.2, contrast=1.3)
    expected = image @ matrix[:, :3].T + 255 * matrix[:, 3]
    found = pixels.recolour(image, matrix).astype(int)
    # OpenCV keeps ten bits of the factors.
    assert np.abs(found - expected.clip(0, 255)).max() < 1.1
    assert (found.min(), found.max()) == (0, 255)


def test_sharpening_raises_the_edges_and_reduction_lowers_them(image):
    def edges(x):
        return np.abs(np.diff(x.astype(int), axis=1)).mean()

    assert edges(pixels.sharpen(image, 1.0)) > 1.1 * edges(image)
    blurred = pixels.enlarge(pixels.reduce(image, 2.5), (48, 48))
    assert blurred.shape == image.shape
    assert edges(blurred) < 0.9 * edges(image)


def test_compression_keeps_the_channel_order_and_loses_with_the_quality(image):
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 255
    assert pixels.compress(red, 90)[..., 0].mean() > 230
    losses = [np.abs(pixels.compress(image, q).astype(int) - image).mean() for q in (95, 20)]
    assert losses[0] < losses[1]
