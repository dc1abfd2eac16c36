"""Pictures as bytes and as tensors; batches on devices."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def to_bytes(image: torch.Tensor) -> np.ndarray:
    """(3, S, S) in [0, 1] to (S, S, 3) uint8."""
    return (image * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def from_bytes(image: np.ndarray) -> torch.Tensor:
    """(S, S, 3) uint8 to (3, S, S) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).float() / 255


def to_device(batch: Mapping[str, Any], device: str | torch.device) -> dict[str, Any]:
    """A batch with its tensors, and its lists of tensors, on a device."""

    def move(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device)
        return [move(item) for item in value] if isinstance(value, list) else value

    return {name: move(value) for name, value in batch.items()}
