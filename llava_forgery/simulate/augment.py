"""Changes of colour, sharpness and quality, each with a strength of its own for each sample.

All functions take images (B, 3, H, W) in [0, 1] and per-sample strengths (B,), and return images
of the same shape and range.
"""

import cv2
import kornia.enhance
import kornia.filters
import numpy as np
import torch
import torch.nn.functional as F


def _column(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None]


def shift_rgb(images: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Add ``shift`` (B, 3), in [-1, 1], to the channels."""
    return (images + shift[:, :, None, None]).clamp(0, 1)


def shift_hsv(
    images: torch.Tensor, hue: torch.Tensor, saturation: torch.Tensor, gain: torch.Tensor
) -> torch.Tensor:
    """Turn the hue by ``hue`` (B,) radians, scale the saturation and the value, each (B,)."""
    hsv = kornia.color.rgb_to_hsv(images)
    h, s, v = hsv.unbind(dim=1)
    h = torch.remainder(h + hue[:, None, None], 2 * torch.pi)
    s = (s * saturation[:, None, None]).clamp(0, 1)
    v = (v * gain[:, None, None]).clamp(0, 1)
    return kornia.color.hsv_to_rgb(torch.stack([h, s, v], dim=1))


def change_contrast(
    images: torch.Tensor, brightness: torch.Tensor, contrast: torch.Tensor
) -> torch.Tensor:
    """``mean + (image - mean) * contrast + brightness``; the mean is the image's own."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (mean + (images - mean) * _column(contrast) + _column(brightness)).clamp(0, 1)


def sharpen(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Unsharp mask with a 5 x 5 Gaussian; ``amount`` (B,): over 0 sharper, -1 blurred."""
    blurred = kornia.filters.gaussian_blur2d(images, (5, 5), (1.2, 1.2))
    return (images + _column(amount) * (images - blurred)).clamp(0, 1)


def downscale(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Reduce each image by its ``factor`` (B,), 1 or more, and bring it back to its size."""
    height, width = images.shape[-2:]
    result = images.clone()
    for index, value in enumerate(factor.tolist()):
        if value > 1:
            small = (max(1, round(height / value)), max(1, round(width / value)))
            reduced = F.interpolate(images[index : index + 1], small, mode="area")
            result[index] = F.interpolate(reduced, (height, width), mode="bilinear")[0]
    return result


def compress_jpeg(images: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
    """Encode and decode as JPEG with each image's ``quality`` (B,), 1 to 100; 0 leaves it alone."""
    result = images.clone()
    for index, value in enumerate(quality.tolist()):
        if value > 0:
            # OpenCV's channel order is blue, green, red.
            pixels = (images[index].flip(0).permute(1, 2, 0) * 255).round().byte().cpu().numpy()
            _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(value)])
            decoded = np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])
            result[index] = torch.from_numpy(decoded).permute(2, 0, 1).to(images) / 255
    return result


def add_noise(images: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Add ``noise`` (B, 3, H, W), standard normal, scaled by ``sigma`` (B,) in units of 1."""
    return (images + noise * _column(sigma)).clamp(0, 1)


def affine(
    images: torch.Tensor, angle: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor
) -> torch.Tensor:
    """Turn by ``angle`` (B,) radians and scale by ``scale`` (B,) about the centre, then move.

    Args:
        images: (B, 3, H, W) in [0, 1]; what comes in from outside repeats the border.
        angle: (B,) radians, positive turns clockwise on the screen.
        scale: (B,), over 1 enlarges.
        shift: (B, 2) x and y as a share of the side, positive moves right and down.
    """
    # grid_sample asks where each output pixel comes from: the inverse map.
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    x, y = (-2 * shift).unbind(dim=1)
    theta = torch.stack(
        [
            torch.stack([cos, sin, cos * x + sin * y], dim=1),
            torch.stack([-sin, cos, cos * y - sin * x], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
