import pytest
import torch

from llava_forgery.simulate.blend import alpha_blend, poisson_blend


def _mask(size=32):
    mask = torch.zeros(1, 1, size, size)
    mask[..., 10:22, 8:24] = 1
    return mask


@pytest.mark.parametrize("blend", [alpha_blend, poisson_blend])
def test_outside_the_mask_nothing_changes(blend):
    torch.manual_seed(0)
    front, back = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    result = blend(front, back, _mask())
    outside = (_mask() == 0).expand_as(back)
    assert torch.equal(result[outside], back[outside])


@pytest.mark.parametrize("blend", [alpha_blend, poisson_blend])
def test_blending_a_picture_into_itself_gives_it_back(blend):
    picture = torch.rand(2, 3, 32, 40)
    mask = torch.rand(2, 1, 32, 40)
    torch.testing.assert_close(blend(picture, picture, mask), picture)


def test_alpha_is_equation_6():
    front, back, mask = torch.full((1, 3, 2, 2), 0.8), torch.full((1, 3, 2, 2), 0.2), torch.full(
        (1, 1, 2, 2), 0.25)  # fmt: skip
    torch.testing.assert_close(alpha_blend(front, back, mask), torch.full((1, 3, 2, 2), 0.35))


def test_poisson_drops_a_constant_offset():
    """Only gradients are taken over: a foreground that is brighter by a constant blends away."""
    back = torch.rand(1, 3, 48, 48) * 0.5 + 0.2
    mask = torch.zeros(1, 1, 48, 48)
    mask[..., 1:-1, 1:-1] = 1
    # Inside nearly everything, the solution is the foreground's gradients with the background's
    # border: the background itself up to the seam.
    result = poisson_blend(back + 0.2, back, mask)
    torch.testing.assert_close(result[..., 8:-8, 8:-8], back[..., 8:-8, 8:-8], atol=0.12, rtol=0)
    assert float((result - back).abs().mean()) < 0.05


def test_poisson_solves_the_poisson_equation():
    """The discrete Laplacian of the solution is the divergence of the guidance field."""
    torch.manual_seed(1)
    front, back = torch.rand(1, 3, 24, 20) * 0.2 + 0.4, torch.rand(1, 3, 24, 20) * 0.2 + 0.4
    inside = torch.zeros(1, 1, 24, 20)
    inside[..., 1:-1, 1:-1] = 1
    result = poisson_blend(front, back, inside)

    def laplacian(x):
        middle = x[..., 1:-1, 1:-1]
        around = x[..., 1:-1, 2:] + x[..., 1:-1, :-2] + x[..., 2:, 1:-1] + x[..., :-2, 1:-1]
        return around - 4 * middle

    # Away from the seam all four gradients come from the foreground.
    torch.testing.assert_close(
        laplacian(result)[..., 1:-1, 1:-1], laplacian(front)[..., 1:-1, 1:-1], atol=1e-4, rtol=0
    )
