"""Pictures as bytes and as tensors."""

import numpy as np
import torch


def to_bytes(image: torch.Tensor) -> np.ndarray:
    """(3, S, S) in [0, 1] to (S, S, 3) uint8."""
    return (image * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def from_bytes(image: np.ndarray) -> torch.Tensor:
    """(S, S, 3) uint8 to (3, S, S) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).float() / 255
