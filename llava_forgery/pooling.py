"""Pooling of the scores of a video's frames to one score of the video."""

import numpy as np

REDUCTIONS = ("mean", "median", "max", "top_k")


def check_reduction(reduce: str) -> None:
    """Raises ValueError if ``reduce`` is not in ``REDUCTIONS``."""
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce must be one of {', '.join(REDUCTIONS)}, got {reduce!r}")


def pool(scores: np.ndarray, reduce: str = "mean", k: int = 5) -> float:
    """One score of a video from the scores (N,) of its frames; see :func:`video_level`."""
    check_reduction(reduce)
    if reduce == "top_k":
        return float(np.sort(scores)[-k:].mean())
    return float({"mean": np.mean, "median": np.median, "max": np.max}[reduce](scores))
