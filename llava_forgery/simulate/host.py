"""What a batch on a device needs from the CPU: masks, JPEG, and numbers sent without waiting.

OpenCV releases Python's lock, so that threads share the pictures of a batch; each writes its own
places, and the result does not depend on their number.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
import torch

from llava_forgery.simulate import masks, pixels
from llava_forgery.simulate.plan import ForgeryPlan

# Beyond these, threads wait for Python's lock, and a share must be worth the start of a thread.
_MOST_THREADS = 16
_LEAST_SHARE = 4


class HostMasks(NamedTuple):
    """Soft masks of a batch in the CPU's memory."""

    values: torch.Tensor
    """(B, 1, H, W) uint8, over 127 inside the forged area."""
    boxes: np.ndarray
    """(B, 4) int: left, top, width, height of what is not 0; 0 sides if nothing."""
    solved: np.ndarray
    """(B, 4) int: left, top, width, height of what Poisson blending changes; 0 sides if nothing
    or where a plan does not ask for it."""


def draw_masks(
    landmarks: np.ndarray,
    plans: Sequence[ForgeryPlan],
    size: tuple[int, int],
    pinned: bool = False,
) -> HostMasks:
    """Masks of a batch, byte for byte those of ``render.py``.

    Args:
        landmarks: (B, 68, 2) float32 pixels.
        plans: One for each face.
        size: (height, width) of the images.
        pinned: Whether a GPU is to read the values without waiting; it needs a GPU.
    """
    outlines = masks.plan_outlines(plans, landmarks, size)
    values = torch.zeros((len(plans), 1, *size), dtype=torch.uint8, pin_memory=pinned)
    pictures = values.numpy()[:, 0]
    boxes, solved = np.zeros((2, len(plans), 4), np.int64)

    def draw(index: int) -> None:
        plan = plans[index]
        soft = masks.soft_mask(outlines[index], plan.softness * max(size), size)
        if not soft.values.size:
            return
        height, width = soft.values.shape
        pictures[index, soft.top : soft.top + height, soft.left : soft.left + width] = soft.values
        boxes[index] = soft.left, soft.top, width, height
        if plan.poisson and width > 2 and height > 2:
            # As blend.poisson_blend: the edge of what is blended is a boundary value at the least.
            inside = cv2.compare(soft.values[1:-1, 1:-1], 127, cv2.CMP_GT)
            x, y, w, h = cv2.boundingRect(inside)
            if w >= 3 and h >= 3:
                solved[index] = soft.left + 1 + x, soft.top + 1 + y, w, h

    _share(draw, len(plans))
    return HostMasks(values, boxes, solved)


def compress(
    pictures: torch.Tensor, extents: Sequence[tuple[int, int]], qualities: Sequence[int]
) -> None:
    """Encode and decode pictures in place as JPEG.

    Args:
        pictures: (B, H, W, 3) uint8 RGB, contiguous, on the CPU.
        extents: (height, width) of each, in the upper left corner.
        qualities: 1 to 100 for each.
    """
    arrays = pictures.numpy()

    def work(index: int) -> None:
        height, width = extents[index]
        corner = arrays[index, :height, :width]
        corner[:] = pixels.compress(np.ascontiguousarray(corner), qualities[index])

    _share(work, len(pictures))


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


def _share(work: Callable[[int], None], count: int) -> None:
    """Call ``work`` for 0 to ``count - 1`` on as many threads as torch may use."""
    threads = min(_MOST_THREADS, torch.get_num_threads(), count // _LEAST_SHARE)

    def part(first: int) -> None:
        for index in range(first, count, max(1, threads)):
            work(index)

    if threads < 2:
        part(0)
        return
    # Threads of a call of its own outlive no fork and need no shutdown.
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, range(threads)))
