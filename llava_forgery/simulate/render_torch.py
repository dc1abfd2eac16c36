"""From plans to forged pictures with torch, a whole batch at a time, on the tensors' device.

The same plans as in ``render.py`` with bytes rounded at the same steps, so that both renderers
give the same forgery within a few grey levels. Hulls, their deformation and their softness are
drawn by ``masks.py`` on the CPU: outlines are a few hundred points, and the rectangles are then
known without waiting for the device. JPEG is OpenCV's on the CPU as well: another encoder would
give other bytes. All else happens on the device, where each reduction, blur and sine transform is
a pair of matrices, one for the rows and one for the columns, so that samples of different
rectangles are one batch and each of them is exact.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from llava_forgery.simulate import pixels, staging
from llava_forgery.simulate.drawing import draw_masks
from llava_forgery.simulate.foreground import Donor, draw_foreground, is_plain
from llava_forgery.simulate.masks import SoftMask
from llava_forgery.simulate.plan import ForgeryPlan, PlanColumns
from llava_forgery.simulate.render import plan_colours, source_matrix


class Renderings(NamedTuple):
    """Forgeries and what they were made of, on the images' device."""

    image: torch.Tensor
    """(B, 3, H, W) uint8, the forged faces."""
    pristine: torch.Tensor
    """(B, 3, H, W) uint8, equal to ``image`` wherever the mask is 0."""
    mask: torch.Tensor
    """(B, 1, H, W) uint8, over 127 inside the forged area; byte for byte that of ``render.py``."""
    difference: torch.Tensor
    """(B,) float32: mean change inside the area in grey levels; -1 if no pixel lies inside."""


@torch.no_grad()
def render_batch(
    images: torch.Tensor,
    landmarks: Sequence[np.ndarray],
    plans: Sequence[ForgeryPlan],
    drawn: Sequence[SoftMask] | None = None,
    donors: Sequence[Donor | None] | None = None,
) -> Renderings:
    """Forge a batch of faces, each by its plan.

    Args:
        images: (B, 3, H, W) RGB, uint8 or float in [0, 1]; floats are read with 8 bits. On the CPU
            or a CUDA device.
        landmarks: (68, 2) pixels of each image, on the CPU.
        plans: What to do with each.
        drawn: The plans' masks if they are drawn already.
        donors: One for each image, of the swaps.

    Raises:
        ValueError: Shapes, dtype or counts are not as above.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[0] == 0:
        raise ValueError(f"expected images (B, 3, H, W), one or more, got {tuple(images.shape)}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"expected uint8 images or floats in [0, 1], got {images.dtype}")
    if not len(images) == len(landmarks) == len(plans):
        raise ValueError(
            f"expected landmarks and a plan for each of {len(images)} images, got "
            f"{len(landmarks)} and {len(plans)}"
        )
    points = [np.asarray(item, dtype=np.float32) for item in landmarks]
    for item in points:
        if item.shape != (68, 2):
            raise ValueError(f"expected landmarks (68, 2) of each image, got {item.shape}")
    original = images.float() if images.dtype == torch.uint8 else _bytes(images.float() * 255)
    device, size = images.device, (images.shape[2], images.shape[3])
    numbers = PlanColumns(plans)
    extents = np.array([pixels.reduced_size(size, plan.downscale) for plan in plans])

    sources = _sources(original, points, plans, donors)
    chosen = staging.upload(numbers.on_foreground, device)[:, None, None, None]
    altered = _recolour_layers(torch.where(chosen, sources, original), numbers, extents)
    # While the device does this, the CPU draws. JPEG then needs the device's result.
    drawn = draw_masks(plans, np.stack(points), size) if drawn is None else drawn
    gathered = staging.gather_masks(drawn, numbers.poisson, size, pinned=device.type == "cuda")
    values = staging.upload(gathered.values, device)
    _compress(altered, numbers.jpeg, extents)

    matrices = source_matrix(numbers, size).transpose(2, 0, 1)
    share = extents / np.array(size)
    # A recoloured foreground is read from the changed picture, which may be a smaller one.
    matrices = matrices * np.where(numbers.on_foreground[:, None], share, 1)[:, ::-1, None]
    reach = np.where(numbers.on_foreground[:, None], extents, np.array(size))
    foreground = _sample(torch.where(chosen, altered, sources), matrices, reach)
    pristine = original
    (behind,) = np.nonzero(~numbers.on_foreground)
    if len(behind):
        enlarging = np.zeros((len(behind), 2, 3))
        enlarging[:, 0, 0], enlarging[:, 1, 1] = share[behind, 1], share[behind, 0]
        pristine, index = original.clone(), staging.upload(behind, device)
        pristine[index] = _sample(altered[index], enlarging, extents[behind])
    (seamless,) = np.nonzero(numbers.poisson)
    if len(seamless):
        index = staging.upload(seamless, device)
        foreground[index] = _poisson(
            foreground[index],
            pristine[index],
            _inside(values[index], gathered.boxes[seamless]),
            gathered.solved[seamless],
        )

    opacity = _numbers(numbers.opacity / 255, device)
    weight = values * opacity[:, None, None, None]
    forged = _bytes(pristine + weight * (foreground - pristine))
    area = (values > 127).float()
    count = area.sum((1, 2, 3))
    change = ((forged - pristine).abs() * area).sum((1, 2, 3)) / (3 * count.clamp(min=1))
    found = count > 0
    # Without a pixel inside, nothing was forged: the image itself is both, as in render.py.
    keep = found[:, None, None, None]
    return Renderings(
        torch.where(keep, forged, original).byte(),
        torch.where(keep, pristine, original).byte(),
        values * keep,
        torch.where(found, change, -torch.ones_like(change)),
    )


def _sources(
    original: torch.Tensor,
    landmarks: Sequence[np.ndarray],
    plans: Sequence[ForgeryPlan],
    donors: Sequence[Donor | None] | None,
) -> torch.Tensor:
    """What is blended in, (B, 3, H, W) in [0, 255]; OpenCV draws what is not the image itself."""
    made = [i for i, plan in enumerate(plans) if not is_plain(plan)]
    if not made:
        return original
    index = staging.upload(np.array(made), original.device)
    images = staging.download(original[index].byte().permute(0, 2, 3, 1).contiguous()).numpy()
    drawn = [
        draw_foreground(image, landmarks[i], plans[i], donors[i] if donors else None)
        for image, i in zip(images, made, strict=True)
    ]
    result = original.clone()
    result[index] = staging.upload(np.stack(drawn), original.device).permute(0, 3, 1, 2).float()
    return result


def _recolour_layers(
    images: torch.Tensor, numbers: PlanColumns, extents: np.ndarray
) -> torch.Tensor:
    """``render.recolour_layer`` of each image (B, 3, H, W) in [0, 255], all but the compression.

    A picture reduced to its (height, width) out of ``extents`` (B, 2) lies in the upper left
    corner; beside it stands nothing of use.
    """
    device, size = images.device, images.shape[2:]
    result = images
    (reduced,) = np.nonzero((extents < np.array(size)).any(axis=1))
    if len(reduced):
        rows, columns = (
            _area_matrices(extents[reduced, axis], size[axis], device) for axis in (0, 1)
        )
        result, index = images.clone(), staging.upload(reduced, device)
        result[index] = _bytes(_separable(images[index], rows, columns))

    # The grey that the contrast keeps is known to the device only; it enters the offset alone.
    colours = _numbers(plan_colours(numbers, 0.0).transpose(2, 0, 1), device)
    contrast = _numbers(numbers.contrast, device)
    grey = images.mean((1, 2, 3)) / 255
    offset = colours[:, :, 3] + ((1 - contrast) * grey)[:, None]
    # Not a matrix product, which autocast would round to half precision.
    mixed = sum(colours[:, :, i, None, None] * result[:, None, i] for i in range(3))
    result = _bytes(mixed + 255 * offset[:, :, None, None])

    (sharp,) = np.nonzero(numbers.sharpness > 0)
    if len(sharp):
        index = staging.upload(sharp, device)
        amount = _numbers(numbers.sharpness[sharp], device)[:, None, None, None]
        rows, columns = (
            _blur_matrices(extents[sharp, axis], size[axis], device) for axis in (0, 1)
        )
        clear = result[index]
        blurred = _bytes(_separable(clear, rows, columns))
        result[index] = _bytes((1 + amount) * clear - amount * blurred)
    return result


def _compress(images: torch.Tensor, qualities: np.ndarray, extents: np.ndarray) -> None:
    """Encode and decode as JPEG, in place, the images (B, 3, H, W) whose quality is not 0."""
    (compressed,) = np.nonzero(qualities)
    if len(compressed):
        index = staging.upload(compressed, images.device)
        stack = staging.download(images[index].byte().permute(0, 2, 3, 1).contiguous())
        staging.compress(stack, extents[compressed].tolist(), qualities[compressed].tolist())
        images[index] = staging.upload(stack, images.device).permute(0, 3, 1, 2).float()


def _inside(values: torch.Tensor, boxes: np.ndarray) -> torch.Tensor:
    """1 where masks (B, 1, H, W) keep the foreground's gradients: not on their box's edge."""
    box = staging.upload(boxes, values.device)[:, :, None, None, None]
    x = torch.arange(values.shape[3], device=values.device) - box[:, 0]
    y = torch.arange(values.shape[2], device=values.device)[:, None] - box[:, 1]
    within = (x > 0) & (x < box[:, 2] - 1) & (y > 0) & (y < box[:, 3] - 1)
    return ((values > 127) & within).float()


def _sample(images: torch.Tensor, matrices: np.ndarray, extents: np.ndarray) -> torch.Tensor:
    """Read images bilinearly; what lies outside is the nearest pixel of the edge.

    Args:
        images: (B, 3, H, W) in [0, 255].
        matrices: (B, 2, 3), from points of the result to points of the images, both in continuous
            pixels, where the first pixel's centre lies at 0.5.
        extents: (B, 2) heights and widths of the pictures in the images' upper left corners.

    Returns:
        (B, 3, H, W) whole grey levels.
    """
    height, width = images.shape[2:]
    linear, device = matrices[:, :, :2], images.device
    # Pixel i has its centre at i + 0.5.
    offset = matrices[:, :, 2] + linear.sum(axis=2) / 2 - 0.5
    a = _numbers(np.concatenate([linear, offset[:, :, None]], axis=2), device)
    last = _numbers(extents[:, ::-1] - 1, device)
    x = torch.arange(width, device=device, dtype=torch.float32)
    y = torch.arange(height, device=device, dtype=torch.float32)[:, None]
    places = [
        (a[:, i, 0, None, None] * x + a[:, i, 1, None, None] * y + a[:, i, 2, None, None])
        .clamp(min=0)
        .minimum(last[:, i, None, None])
        * (2 / max(1, (width, height)[i] - 1))
        - 1
        for i in (0, 1)
    ]
    grid = torch.stack(places, dim=3)
    return _bytes(F.grid_sample(images, grid, padding_mode="border", align_corners=True))


def _poisson(
    foreground: torch.Tensor, background: torch.Tensor, inside: torch.Tensor, rectangles: np.ndarray
) -> torch.Tensor:
    """``blend.poisson_blend`` of (B, 3, H, W) in [0, 255], each exactly on its own rectangle."""
    difference = foreground - background
    right = (difference[..., 1:] - difference[..., :-1]) * inside[..., :-1]
    down = (difference[..., 1:, :] - difference[..., :-1, :]) * inside[..., :-1, :]
    # What this leaves out on the picture's edge is no point that is solved for.
    divergence = F.pad(right, (0, 1)) - F.pad(right, (1, 0))
    divergence += F.pad(down, (0, 0, 0, 1)) - F.pad(down, (0, 0, 1, 0))
    (rows, row_values), (columns, column_values) = (
        _sine_matrices(
            rectangles[:, axis], rectangles[:, 2 + axis], foreground.shape[3 - axis], divergence
        )
        for axis in (1, 0)
    )
    spectrum = _separable(divergence, rows, columns)
    spectrum /= (row_values[:, :, None] + column_values[:, None])[:, None]
    correction = _separable(spectrum, rows.mT, columns.mT)
    return _bytes(background + correction.float())


def _separable(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """``rows @ image @ columns.T`` for (B, 3, H, W) with (B, h, H) and (B, w, W), in float64.

    Single precision would be enough, but not what a training may have set for its matrix products
    (TF32) or casts to (autocast); neither touches double precision.
    """
    return rows[:, None] @ images.double() @ columns.mT[:, None]


def _area_matrices(counts: np.ndarray, length: int, device: torch.device) -> torch.Tensor:
    """(B, length, length): row i < count averages the i-th of ``count`` equal shares of a line."""
    count = staging.upload(counts, device).double()[:, None, None]
    step = length / count
    place = torch.arange(length, device=device, dtype=torch.float64)
    target = place[:, None]
    overlap = ((target + 1) * step).minimum(place + 1) - (target * step).maximum(place)
    return overlap.clamp(min=0) / step * (target < count)


def _blur_matrices(counts: np.ndarray, length: int, device: torch.device) -> torch.Tensor:
    """(B or 1, length, length): the blur of sharpening on the first ``count`` pixels of a line."""
    # Most often no picture is reduced and one matrix serves all.
    counts = counts[:1] if (counts == counts[0]).all() else counts
    taps = cv2.getGaussianKernel(5, pixels.SHARPEN_SIGMA)[:, 0]
    count = staging.upload(counts, device)[:, None]
    period = (2 * (count - 1)).clamp(min=1)
    place = torch.arange(length, device=device)
    result = torch.zeros(len(counts), length, length, dtype=torch.float64, device=device)
    for tap, weight in zip(range(-2, 3), taps.tolist(), strict=True):
        # Mirrored about the last pixel's centre, as OpenCV's default.
        source = (place + tap) % period
        source = source.minimum(period - source).minimum(count - 1)
        result += weight * (source[:, :, None] == place)
    return result


def _sine_matrices(
    starts: np.ndarray, sides: np.ndarray, length: int, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal DST-I on the points between both ends of a rectangle's side.

    Args:
        starts: (B,) first points of the sides.
        sides: (B,) lengths of the sides, ends included; under 3 nothing lies between.
        length: Points of the whole line.
        like: A tensor on the device.

    Returns:
        (B, n, length), 0 outside the rectangle and beyond its own frequencies, and the Laplacian's
        eigenvalues (B, n), -1 beyond; n is that of the longest side.
    """
    counts = np.maximum(sides - 2, 0)
    start, count = (
        staging.upload(np.ascontiguousarray(values), like.device)[:, None, None]
        for values in (starts, counts)
    )
    frequency = torch.arange(1, max(1, int(counts.max())) + 1, device=like.device)
    point = torch.arange(length, device=like.device) - start
    used = (point >= 1) & (point <= count) & (frequency[:, None] <= count)
    # Whole turns are taken off while the numbers are still exact.
    angle = (frequency[:, None] * point) % (2 * (count + 1))
    sines = torch.sin(angle.double() * (np.pi / (count + 1))) * (2 / (count + 1)).sqrt()
    values = 2 * torch.cos(frequency * (np.pi / (count[:, 0] + 1)).double()) - 2
    return sines * used, torch.where(frequency <= count[:, 0], values, -1.0)


def _bytes(values: torch.Tensor) -> torch.Tensor:
    """Whole grey levels, float32: what OpenCV does to bytes after each step."""
    return values.round().clamp(0, 255).float()


def _numbers(values: np.ndarray, device: torch.device) -> torch.Tensor:
    return staging.upload(np.ascontiguousarray(values, dtype=np.float32), device)
