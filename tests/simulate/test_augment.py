import pytest
import torch

from llava_forgery.simulate import augment


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.rand(2, 3, 24, 32)


NEUTRAL = {
    "downscale": lambda x: augment.downscale(x, torch.ones(2)),
    "compress_jpeg": lambda x: augment.compress_jpeg(x, torch.zeros(2)),
    "add_noise": lambda x: augment.add_noise(x, torch.ones_like(x), torch.zeros(2)),
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_strength_changes_nothing(name, images):
    torch.testing.assert_close(NEUTRAL[name](images), images, atol=1e-4, rtol=0)


def test_each_sample_has_its_own_strength(images):
    result = augment.downscale(images, torch.tensor([1.0, 2.0]))
    assert torch.equal(result[0], images[0])
    assert not torch.allclose(result[1], images[1])


def test_lower_jpeg_quality_loses_more(images):
    low = augment.compress_jpeg(images, torch.tensor([20.0, 20.0]))
    high = augment.compress_jpeg(images, torch.tensor([95.0, 95.0]))
    assert (low - images).abs().mean() > (high - images).abs().mean()


def test_jpeg_keeps_the_channel_order():
    red = torch.zeros(1, 3, 16, 16)
    red[:, 0] = 1
    decoded = augment.compress_jpeg(red, torch.tensor([90.0]))
    assert decoded[0, 0].mean() > 0.9
    assert decoded[0, 2].mean() < 0.1
