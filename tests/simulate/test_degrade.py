import numpy as np
import pytest

from llava_forgery.simulate.degrade import DegradeConfig, add_noise, compress_before, degrade
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
        {"frames": (0, 2)},
        {"video_scale": (0.01, 1)},
        {"sharpness": (-1.0, 1)},
        {"again": 3},
    ],
)
def test_wrong_configuration_is_an_error(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        DegradeConfig(**values)


def test_videos_of_another_size_are_brought_back(monkeypatch):
    """Both images go through the same codec at the same size, with the same motion."""
    asked = []
    monkeypatch.setattr(
        "llava_forgery.simulate.degrade.compress_h264",
        lambda image, *settings: asked.append((image.shape, *settings)) or image,
    )
    config = {"video": 1.0, "frames": (2, 4), "video_scale": (0.5, 1.5), "again": 1.0}
    for seed in range(10):
        result, _ = _degrade(seed, probability=1.0, noise=(0.0, 0.0), **config)
        assert result.shape == (2, 32, 32, 3)
        np.testing.assert_array_equal(result[0], result[1])
    # Twice for each image of a pair.
    assert len(asked) == 40
    assert asked[::2] == asked[1::2]
    sides = {shape[0] for shape, *_ in asked}
    assert 16 <= min(sides) < 24 < 40 < max(sides) <= 48
    assert {frames for _, _, frames, _ in asked} == {2, 3, 4}


def test_photographs_are_compressed_before_only_where_asked():
    image, rng = tiny.picture(0, 32), np.random.default_rng(0)
    assert compress_before(image, DegradeConfig(before=0.0), rng) is image
    changed = compress_before(image, DegradeConfig(before=1.0, probability=0.0), rng)
    assert 0 < np.abs(changed.astype(int) - image).mean() < 30
