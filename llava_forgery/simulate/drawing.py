"""Plans and masks of a batch, drawn by the calling process or by worker processes.

Most of this work is many small steps that hold Python's lock, so that threads do not share it.
Nothing here imports torch: a worker starts in the time of NumPy and OpenCV.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import cv2
import numpy as np

from llava_forgery.simulate.config import SimulatorConfig
from llava_forgery.simulate.masks import SoftMask, plan_outlines, soft_mask
from llava_forgery.simulate.plan import ForgeryPlan, draw_plans


class FaceDrawer:
    """Draws the first plan of each seed and its mask.

    Args:
        config: Of the plans.
        workers: Processes, started with the first batch; 0 draws in the calling process. What is
            drawn does not depend on them.

    Raises:
        ValueError: A negative number of workers.
    """

    def __init__(self, config: SimulatorConfig, workers: int = 0) -> None:
        if workers < 0:
            raise ValueError(f"workers must be 0 or more, got {workers}")
        self.config, self.workers = config, workers
        self._pool: ProcessPoolExecutor | None = None

    def __call__(
        self, seeds: Sequence[int], landmarks: np.ndarray, size: tuple[int, int]
    ) -> tuple[list[ForgeryPlan], list[SoftMask]]:
        """Plans and masks for faces (B, 68, 2) float32 in images of (height, width)."""
        if not self.workers:
            return _draw(self.config, seeds, landmarks, size)
        if self._pool is None:
            # A fork would copy the state of a GPU that it cannot use.
            self._pool = ProcessPoolExecutor(self.workers, get_context("spawn"), _use_one_thread)
        shares = np.array_split(np.arange(len(seeds)), min(self.workers, len(seeds)))
        futures = [
            self._pool.submit(_draw, self.config, [seeds[i] for i in share], landmarks[share], size)
            for share in shares
        ]
        plans, masks = [], []
        for future in futures:
            share_plans, share_masks = future.result()
            plans += share_plans
            masks += share_masks
        return plans, masks

    def close(self) -> None:
        """End the workers; the next batch starts others."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def draw_masks(
    plans: Sequence[ForgeryPlan], landmarks: np.ndarray, size: tuple[int, int]
) -> list[SoftMask]:
    """The plans' masks for faces (B, 68, 2) float32 in images of (height, width)."""
    outlines = plan_outlines(plans, landmarks, size)
    return [
        soft_mask(face, plan.softness * max(size), size)
        for face, plan in zip(outlines, plans, strict=True)
    ]


def _draw(
    config: SimulatorConfig, seeds: Sequence[int], landmarks: np.ndarray, size: tuple[int, int]
) -> tuple[list[ForgeryPlan], list[SoftMask]]:
    plans = [next(draw_plans(config, seed)) for seed in seeds]
    return plans, draw_masks(plans, landmarks, size)


def _use_one_thread() -> None:
    cv2.setNumThreads(1)
