import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from llava_forgery.simulate import codec
from llava_forgery.simulate.codec import compress_h264
from llava_forgery.simulate.degrade import DegradeConfig, degrade
from tests import tiny


def _lost(image, crf):
    return np.abs(compress_h264(image, crf).astype(int) - image).mean()


@pytest.fixture
def fresh():
    """Whether PyAV is there is asked anew, before and after."""
    codec.require_h264.cache_clear()
    yield
    codec.require_h264.cache_clear()


def test_more_is_lost_at_a_higher_rate_factor():
    image = tiny.picture(0, 64)
    lost = [_lost(image, crf) for crf in (0, 23, 40, 51)]
    assert lost == sorted(lost)
    # Half of the colours' resolution goes in any case.
    assert lost[0] < 12
    assert lost[3] > lost[0] + 3


def test_grey_ramps_survive():
    """Nothing is shifted, and the brightness has its full range."""
    image = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    assert np.abs(compress_h264(image, 5).astype(int) - image).max() <= 8


def test_a_frame_that_was_predicted_lies_where_it_was_given():
    # A pixel's shift changes it by some 30 grey levels.
    wave = (128 + 100 * np.sin(np.arange(64) / 2)).astype(np.uint8)
    image = np.broadcast_to(wave[:, None], (64, 64, 3)).copy()
    alone, last = compress_h264(image, 23), compress_h264(image, 23, 4, (2.5, -1.0))
    assert not np.array_equal(alone, last)
    right = np.abs(last.astype(int) - image)[8:-8, 8:-8].mean()
    for shift in (-2, -1, 1, 2):
        assert right < np.abs(np.roll(last, shift, 1).astype(int) - image)[8:-8, 8:-8].mean()


@pytest.mark.parametrize("size", [(33, 48), (48, 33), (17, 19)])
def test_odd_sizes(size):
    image = np.ascontiguousarray(tiny.picture(1, 64)[: size[0], : size[1]])
    result = compress_h264(image, 20)
    assert result.shape == image.shape
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, compress_h264(image, 20))


def test_a_picture_does_not_depend_on_those_before_it():
    pictures = [np.ascontiguousarray(tiny.picture(i, 64)[: 64 - 8 * i]) for i in range(4)]

    def lost(i):
        return compress_h264(pictures[i], 20 + 5 * i, 1 + i % 2, (1.5, 0.5))

    with ThreadPoolExecutor(1) as other:
        alone = [other.submit(lost, i).result() for i in range(4)]
    for order in ((3, 0, 2, 1), (0, 0, 3, 3)):
        for i in order:
            np.testing.assert_array_equal(lost(i), alone[i])


def test_both_pictures_of_a_pair_lose_as_much():
    """Whichever comes first: another quantizer for the second would tell the forgery."""
    config = DegradeConfig(
        probability=1.0, video=1.0, flip=0, noise=(0, 0), downscale=(1, 1), brightness=0, hue=0,
        contrast=(1, 1), saturation=(1, 1),
    )  # fmt: skip
    images = np.stack([tiny.picture(0, 64)] * 2)
    for seed in range(5):
        (first, second), _ = degrade(images, config, np.random.default_rng(seed))
        np.testing.assert_array_equal(first, second)


def test_share_of_videos_decides_between_the_codecs(monkeypatch):
    images = np.stack([tiny.picture(0, 32)] * 2)
    asked = []
    monkeypatch.setattr(
        "llava_forgery.simulate.degrade.compress_h264",
        lambda image, crf, *_: asked.append(crf) or image,
    )
    for share, expected in ((0.0, 0), (1.0, 40)):
        asked.clear()
        config = DegradeConfig(probability=1.0, video=share, crf=(20, 21))
        for seed in range(20):
            degrade(images, config, np.random.default_rng(seed))
        assert len(asked) == expected
        assert set(asked) <= {20, 21}
    # Both images of a pair at the same rate factor.
    assert asked[::2] == asked[1::2]


@pytest.mark.usefixtures("fresh")
def test_without_pyav_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"llava-forgery\[train\]"):
        compress_h264(tiny.picture(0, 32), 20)
    # Before anything is drawn.
    with pytest.raises(ImportError, match=r"llava-forgery\[train\]"):
        DegradeConfig()
    assert DegradeConfig(video=0).video == 0


@pytest.mark.usefixtures("fresh")
def test_without_its_encoder_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", SimpleNamespace(codecs_available={"h264"}))
    with pytest.raises(ImportError, match="DegradeConfig"):
        compress_h264(tiny.picture(0, 32), 20)
