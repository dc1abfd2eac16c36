"""Blending a foreground into a background under a mask: alpha and Poisson.

Source: LVLM-DFD, equation 6; Perez et al., "Poisson Image Editing" (2003).
"""

from functools import lru_cache

import torch


def alpha_blend(
    foreground: torch.Tensor, background: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """``mask * foreground + (1 - mask) * background`` (equation 6).

    Args:
        foreground: (B, 3, H, W) in [0, 1].
        background: (B, 3, H, W) in [0, 1].
        mask: (B, 1, H, W) in [0, 1].

    Returns:
        (B, 3, H, W) in [0, 1]; exactly the background where the mask is 0.
    """
    return background + mask * (foreground - background)


@lru_cache(maxsize=8)
def _sine_basis(n: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal type-I sine transform (n, n) and the eigenvalues (n,) of the 1-D Laplacian."""
    k = torch.arange(1, n + 1, device=device, dtype=torch.float64)
    basis = torch.sin(torch.pi * k[:, None] * k[None, :] / (n + 1)) * (2 / (n + 1)) ** 0.5
    eigenvalues = 2 * torch.cos(torch.pi * k / (n + 1)) - 2
    return basis.float(), eigenvalues.float()


def poisson_blend(
    foreground: torch.Tensor, background: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Seamless cloning: the gradients of the foreground inside the mask, of the background outside.

    The Poisson equation with the background on the image's border as boundary value is solved
    exactly for the whole batch by sine transforms, on the full rectangle as ``cv2.seamlessClone``
    does. The result is then composed by the mask, so that what lies outside stays untouched.

    Args:
        foreground: (B, 3, H, W) in [0, 1].
        background: (B, 3, H, W) in [0, 1].
        mask: (B, 1, H, W) in [0, 1]; over 0.5 counts as inside for the gradients.

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    inside = (mask > 0.5).to(background.dtype)
    # The solution is background + correction with the correction 0 on the border, so that only
    # the difference of the two pictures' gradients inside the mask enters the right-hand side.
    difference = foreground - background
    right = (difference[..., :, 1:] - difference[..., :, :-1]) * inside[..., :, :-1]
    down = (difference[..., 1:, :] - difference[..., :-1, :]) * inside[..., :-1, :]
    divergence = torch.zeros_like(background)
    divergence[..., :, :-1] += right
    divergence[..., :, 1:] -= right
    divergence[..., :-1, :] += down
    divergence[..., 1:, :] -= down
    height, width = background.shape[-2] - 2, background.shape[-1] - 2
    rows, row_values = _sine_basis(height, background.device)
    columns, column_values = _sine_basis(width, background.device)
    spectrum = rows @ divergence[..., 1:-1, 1:-1] @ columns
    spectrum = spectrum / (row_values[:, None] + column_values[None, :])
    solved = background.clone()
    solved[..., 1:-1, 1:-1] += rows @ spectrum @ columns
    return alpha_blend(solved.clamp(0, 1), background, mask)
