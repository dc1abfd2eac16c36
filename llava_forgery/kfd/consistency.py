"""Consistency maps and reference maps (LVLM-DFD, equations 1 and 2)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class ConsistencyMaps(nn.Module):
    """A linear layer for each tapped layer, followed by similarities.

    Args:
        widths: Channels of the tapped layers.
        text_width: C_text.
        temperature: Initial factor of the similarities; learned.
    """

    def __init__(self, widths: Sequence[int], text_width: int, temperature: float) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(width, text_width) for width in widths)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    def project(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Patch features F_vis of unit length.

        Args:
            features: Features (B, C_i, h_i, w_i) of each tap.

        Returns:
            Features (B, C_text, h_i, w_i) of each tap.
        """
        projected = []
        for linear, feature in zip(self.linears, features, strict=True):
            feature = feature.to(linear.weight.dtype)
            feature = F.conv2d(feature, linear.weight[:, :, None, None], linear.bias)
            projected.append(F.normalize(feature, dim=1))
        return projected

    def to_text(self, projected: Sequence[torch.Tensor], text: torch.Tensor) -> torch.Tensor:
        """Equation 1: similarity of each patch to the real and the fake text feature.

        Args:
            projected: Output of :meth:`project`.
            text: (2, C_text), [real, fake].

        Returns:
            (B, L, 2, h, w), times the temperature.
        """
        text = F.normalize(text, dim=-1).to(projected[0].dtype)
        return self._stack([torch.einsum("bchw,kc->bkhw", f, text) for f in projected])

    def to_reference(
        self, projected: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Equation 2: cosine similarity of each patch to the pristine image's, and its complement.

        Args:
            projected: Output of :meth:`project` for the image.
            reference: Output of :meth:`project` for the pristine image.

        Returns:
            (B, L, 2, h, w), channels [similarity, 1 - similarity], times the temperature: in the
            order [real, fake] of the text maps, so that the same locator reads both.
        """
        maps = []
        for feature, pristine in zip(projected, reference, strict=True):
            similarity = (feature * pristine).sum(dim=1)
            maps.append(torch.stack([similarity, 1 - similarity], dim=1))
        return self._stack(maps)

    def _stack(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Maps (B, 2, h_i, w_i) on the grid of the finest tap, (B, L, 2, h, w), scaled.

        All taps of a vision transformer share one grid; a trunk's coarser stages are upsampled.
        """
        size = max((m.shape[-2:] for m in maps), key=lambda hw: hw[0] * hw[1])
        same = [
            m
            if m.shape[-2:] == size
            else F.interpolate(m, size, mode="bilinear", align_corners=False)
            for m in maps
        ]
        return torch.stack(same, dim=1) * self.log_temperature.exp()
