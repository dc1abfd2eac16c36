"""Changes of quality for tensors, each with a strength of its own for each sample.

All functions take images (B, 3, H, W) in [0, 1] and per-sample strengths (B,), and return images
of the same shape and range. What the simulator does to bytes is in ``pixels.py``.
"""

import numpy as np
import torch
import torch.nn.functional as F

from llava_forgery.simulate import pixels


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
            image = (images[index].permute(1, 2, 0) * 255).round().byte().cpu().numpy()
            decoded = pixels.compress(np.ascontiguousarray(image), int(value))
            result[index] = torch.from_numpy(decoded).permute(2, 0, 1).to(images) / 255
    return result


def add_noise(images: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Add ``noise`` (B, 3, H, W), standard normal, scaled by ``sigma`` (B,) in units of 1."""
    return (images + noise * sigma[:, None, None, None]).clamp(0, 1)
