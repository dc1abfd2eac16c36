import pytest
import torch

from llava_forgery.simulate import augment


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.rand(2, 3, 24, 32)


NEUTRAL = {
    "shift_rgb": lambda x: augment.shift_rgb(x, torch.zeros(2, 3)),
    "shift_hsv": lambda x: augment.shift_hsv(x, torch.zeros(2), torch.ones(2), torch.ones(2)),
    "change_contrast": lambda x: augment.change_contrast(x, torch.zeros(2), torch.ones(2)),
    "sharpen": lambda x: augment.sharpen(x, torch.zeros(2)),
    "downscale": lambda x: augment.downscale(x, torch.ones(2)),
    "compress_jpeg": lambda x: augment.compress_jpeg(x, torch.zeros(2)),
    "add_noise": lambda x: augment.add_noise(x, torch.ones_like(x), torch.zeros(2)),
    "affine": lambda x: augment.affine(x, torch.zeros(2), torch.ones(2), torch.zeros(2, 2)),
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_strength_changes_nothing(name, images):
    torch.testing.assert_close(NEUTRAL[name](images), images, atol=1e-4, rtol=0)


def test_each_sample_has_its_own_strength(images):
    result = augment.sharpen(images, torch.tensor([0.0, 1.0]))
    assert torch.equal(result[0], images[0])
    assert not torch.allclose(result[1], images[1])


def test_affine_moves_right_and_down():
    image = torch.zeros(1, 3, 40, 40)
    image[..., 10, 10] = 1
    moved = augment.affine(image, torch.zeros(1), torch.ones(1), torch.tensor([[0.25, 0.1]]))
    place = moved[0, 0].flatten().argmax()
    assert divmod(int(place), 40) == (14, 20)


def test_affine_turns_clockwise_and_enlarges():
    image = torch.zeros(1, 3, 41, 41)
    image[..., 20, 30] = 1
    turned = augment.affine(image, torch.tensor([torch.pi / 2]), torch.ones(1), torch.zeros(1, 2))
    assert divmod(int(turned[0, 0].flatten().argmax()), 41) == (30, 20)
    image[..., 20, 30] = 0
    image[..., 20, 25] = 1
    large = augment.affine(image, torch.zeros(1), torch.tensor([2.0]), torch.zeros(1, 2))
    assert divmod(int(large[0, 0].flatten().argmax()), 41)[1] == 30


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
