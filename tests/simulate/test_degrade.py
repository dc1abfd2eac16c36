import numpy as np
import pytest

from llava_forgery.simulate.degrade import DegradeConfig, add_noise, degrade
from tests import tiny


def _degrade(seed=1, **config):
    image = tiny.picture(0, 32)
    return degrade(np.stack([image, image]), DegradeConfig(**config), np.random.default_rng(seed))


def test_both_images_are_treated_alike():
    result, _ = _degrade(probability=1.0, noise=(0.0, 0.0))
    np.testing.assert_array_equal(result[0], result[1])
    assert np.abs(result[0].astype(int) - tiny.picture(0, 32)).mean() > 5


def test_noise_is_each_images_own():
    result, _ = _degrade(probability=1.0)
    assert (result[0] != result[1]).any()


def test_nothing_happens_at_probability_zero_but_mirroring():
    result, mirrored = _degrade(probability=0.0, flip=1.0)
    assert mirrored is True
    np.testing.assert_array_equal(result[1], tiny.picture(0, 32)[:, ::-1])
    result, mirrored = _degrade(probability=0.0, flip=0.0)
    assert mirrored is False
    np.testing.assert_array_equal(result[1], tiny.picture(0, 32))


@pytest.mark.parametrize("sigma", [0.005, 0.02, 0.1])
def test_noise_is_normal_with_its_sigma(sigma):
    image = np.full((200, 200, 3), 128, np.uint8)
    change = add_noise(image, sigma, np.random.default_rng(0)).astype(float) - 128
    assert abs(change.mean()) < 0.1
    # Rounding to whole levels adds a twelfth to the variance.
    assert change.std() == pytest.approx(np.hypot(255 * sigma, 12**-0.5), rel=0.05)
    assert (np.abs(change) < 255 * sigma).mean() == pytest.approx(0.68, abs=0.1)


@pytest.mark.parametrize(
    "values",
    [
        {"probability": 2.0},
        {"flip": -1.0},
        {"jpeg_quality": (0, 5)},
        {"video": 2},
        {"crf": (30, 60)},
    ],
)
def test_wrong_configuration_is_an_error(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        DegradeConfig(**values)
