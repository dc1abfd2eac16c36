"""What a batch on a device needs from the CPU: masks in one piece, JPEG, copies without waiting."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
import torch

from llava_forgery.simulate import pixels
from llava_forgery.simulate.masks import SoftMask

_MOST_THREADS = 16


class GatheredMasks(NamedTuple):
    """Soft masks of a batch in the CPU's memory."""

    values: torch.Tensor
    """(B, 1, H, W) uint8, over 127 inside the forged area."""
    boxes: np.ndarray
    """(B, 4) int: left, top, width, height of what is not 0; 0 sides if nothing."""
    solved: np.ndarray
    """(B, 4) int: left, top, width, height of what Poisson blending changes; 0 sides if nothing
    or where a plan does not ask for it."""


def gather_masks(
    drawn: Sequence[SoftMask], poisson: np.ndarray, size: tuple[int, int], pinned: bool = False
) -> GatheredMasks:
    """Bring soft masks into one tensor.

    Args:
        drawn: B masks.
        poisson: (B,) bool, whose rectangles Poisson blending is to solve on.
        size: (height, width) of the images.
        pinned: Whether a GPU is to read the values without waiting; it needs a GPU.
    """
    values = torch.zeros((len(drawn), 1, *size), dtype=torch.uint8, pin_memory=pinned)
    pictures = values.numpy()[:, 0]
    boxes, solved = np.zeros((2, len(drawn), 4), np.int64)
    for index, (left, top, soft) in enumerate(drawn):
        if not soft.size:
            continue
        height, width = soft.shape
        pictures[index, top : top + height, left : left + width] = soft
        boxes[index] = left, top, width, height
        if poisson[index] and width > 2 and height > 2:
            # As blend.poisson_blend: the edge of what is blended is a boundary value at the least.
            inside = cv2.compare(soft[1:-1, 1:-1], 127, cv2.CMP_GT)
            x, y, w, h = cv2.boundingRect(inside)
            if w >= 3 and h >= 3:
                solved[index] = left + 1 + x, top + 1 + y, w, h
    return GatheredMasks(values, boxes, solved)


def compress(
    pictures: torch.Tensor, extents: Sequence[tuple[int, int]], qualities: Sequence[int]
) -> None:
    """Encode and decode pictures in place as JPEG, on as many threads as torch may use.

    OpenCV releases Python's lock for most of it.

    Args:
        pictures: (B, H, W, 3) uint8 RGB, contiguous, on the CPU; B may be 0.
        extents: (height, width) of each, in the upper left corner.
        qualities: 1 to 100 for each.
    """
    arrays = pictures.numpy()
    threads = max(1, min(_MOST_THREADS, torch.get_num_threads(), len(arrays)))

    def work(first: int) -> None:
        for index in range(first, len(arrays), threads):
            height, width = extents[index]
            corner = arrays[index, :height, :width]
            corner[:] = pixels.compress(np.ascontiguousarray(corner), qualities[index])

    if threads < 2:
        work(0)
        return
    # Threads of this call alone: none is missing after a fork.
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))


def download(tensor: torch.Tensor) -> torch.Tensor:
    """Bring a tensor to the CPU; from a GPU into pinned memory, which it can be read from again."""
    if not tensor.is_cuda:
        return tensor.cpu()
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor)


def upload(values: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Bring an array to the device.

    A copy out of pageable memory waits until a GPU has done all earlier work; the CPU would draw
    nothing in the meantime.
    """
    tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(values)
    if device.type != "cuda":
        return tensor.to(device)
    tensor = tensor if tensor.is_pinned() else tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
