"""Masks of simulated forgeries: convex hulls of regions, deformed and softened.

Source: LVLM-DFD, section 3.3 and equation 6 (convex hull mask M in [0, 1]); the deformation and
the softening follow the idea of self-blended images (Shiohara & Yamasaki, 2022).
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from llava_forgery.simulate.regions import region_polygons

# cv2 takes fixed-point vertices: four fractional bits keep hulls of small faces smooth.
_SHIFT = 4


def hull_mask(
    regions: Sequence[str], landmarks: np.ndarray, size: tuple[int, int], growth: float = 1.0
) -> np.ndarray:
    """Union of the convex hulls of the regions' polygons.

    Args:
        regions: Names out of ``REGION_NAMES``.
        landmarks: (68, 2) pixels.
        size: (height, width) of the mask.
        growth: Scale of each hull about its centre.

    Returns:
        (height, width) float32, 0 or 1.
    """
    mask = np.zeros(size, dtype=np.uint8)
    for name in regions:
        for polygon in region_polygons(name, landmarks):
            centre = polygon.mean(axis=0)
            hull = cv2.convexHull(np.float32(centre + (polygon - centre) * growth))
            points = np.round(hull * (1 << _SHIFT)).astype(np.int32)
            cv2.fillConvexPoly(mask, points, 1, lineType=cv2.LINE_8, shift=_SHIFT)
    return mask.astype(np.float32)


def deform(mask: torch.Tensor, field: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Elastic deformation by a smooth random displacement.

    Args:
        mask: (B, 1, H, W) in [0, 1].
        field: (B, 2, h, w) coarse displacements, standard normal; enlarged bicubically to (H, W).
        strength: (B,) standard deviation of the displacement as a share of the image's side.

    Returns:
        (B, 1, H, W) in [0, 1].
    """
    height, width = mask.shape[-2:]
    # One unit of grid_sample's coordinates is half the image's side.
    offset = F.interpolate(field, (height, width), mode="bicubic", align_corners=True)
    offset = offset * (2 * strength)[:, None, None, None]
    identity = torch.eye(2, 3, device=mask.device).expand(len(mask), 2, 3)
    grid = F.affine_grid(identity, list(mask.shape), align_corners=False)
    grid = grid + offset.permute(0, 2, 3, 1)
    return F.grid_sample(mask, grid, padding_mode="zeros", align_corners=False)


def soften(mask: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Gaussian blur with a width of its own for each sample.

    Args:
        mask: (B, 1, H, W) in [0, 1].
        sigma: (B,) in pixels, over 0.

    Returns:
        (B, 1, H, W) in [0, 1].
    """
    radius = int(np.ceil(3 * float(sigma.max())))
    distance = torch.arange(-radius, radius + 1, device=mask.device, dtype=mask.dtype)
    kernel = torch.exp(-0.5 * (distance[None] / sigma[:, None]) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    # One group per sample: the batch becomes the channels of a single image.
    batch = len(mask)
    planes = mask.transpose(0, 1)
    planes = F.conv2d(planes, kernel[:, None, :, None], padding=(radius, 0), groups=batch)
    planes = F.conv2d(planes, kernel[:, None, None, :], padding=(0, radius), groups=batch)
    return planes.transpose(0, 1).clamp(0, 1)
