"""Forgery Locator and Forgery Classifier: consistency maps to a mask and a score.

Source: LVLM-DFD, section 3.1 and figure 3: three branches each. The ``paper`` sizes are those of
the official code (commit 589b036), which works on maps enlarged to the image's size; the ``lite``
sizes work on the maps at patch resolution.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


class PaperLocator(nn.Module):
    """Per layer conv 3 x 3 (2 to 128), ReLU, batch norm; then conv 3 x 3 to two channels.

    The first convolution pads by 2 and the last by 0, so that the size is preserved.
    """

    def __init__(self, num_layers: int, width: int = 128) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2, width, 3, padding=2), nn.ReLU(), nn.BatchNorm2d(width))
            for _ in range(num_layers)
        )
        self.head = nn.Conv2d(num_layers * width, 2, 3)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps (B, L, 2, h, w) to mask logits (B, 2, h, w); channel 1 is forged."""
        branches = [branch(maps[:, i]) for i, branch in enumerate(self.branches)]
        return self.head(torch.cat(branches, dim=1))


class LiteLocator(nn.Module):
    """Per layer down and up by two as the paper describes, then convolutions to two channels.

    Args:
        num_layers: L.
        width: Channels of a branch.
    """

    def __init__(self, num_layers: int, width: int = 16) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(2, width, 3, padding=1),
                nn.ReLU(),
                nn.BatchNorm2d(width),
                nn.Conv2d(width, width, 3, padding=1, stride=2),
                nn.ReLU(),
                nn.BatchNorm2d(width),
            )
            for _ in range(num_layers)
        )
        self.head = nn.Sequential(
            nn.Conv2d(num_layers * (width + 2), 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.BatchNorm2d(2 * width),
            nn.Conv2d(2 * width, 2, 3, padding=1),
        )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps (B, L, 2, h, w) to mask logits (B, 2, h, w); channel 1 is forged."""
        size = maps.shape[-2:]
        branches = []
        for i, branch in enumerate(self.branches):
            up = F.interpolate(branch(maps[:, i]), size, mode="bilinear", align_corners=False)
            branches += [up, maps[:, i]]
        return self.head(torch.cat(branches, dim=1))


class ForgeryClassifier(nn.Module):
    """Per layer a small network with pooling; their means, concatenated, through two linear layers.

    Args:
        num_layers: L.
        channels: Output channels of a branch's convolutions, each of which halves the size.
        hidden: Hidden width of the two linear layers.
    """

    def __init__(
        self, num_layers: int, channels: tuple[int, ...] = (16, 64, 128, 256), hidden: int = 128
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(self._branch(channels) for _ in range(num_layers))
        self.fc = nn.Sequential(
            nn.Linear(num_layers * channels[-1], hidden), nn.ReLU(), nn.Linear(hidden, 2)
        )

    @staticmethod
    def _branch(channels: tuple[int, ...]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for before, after in pairwise((2, *channels)):
            layers += [
                nn.Conv2d(before, after, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.BatchNorm2d(after),
            ]
        return nn.Sequential(*layers)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps (B, L, 2, h, w) to class logits (B, 2), [real, fake]."""
        means = [branch(maps[:, i]).mean(dim=(2, 3)) for i, branch in enumerate(self.branches)]
        return self.fc(torch.cat(means, dim=1))


def make_heads(kind: str, num_layers: int) -> tuple[nn.Module, ForgeryClassifier]:
    """New locator and classifier.

    Args:
        kind: ``paper`` or ``lite``, as ``KFDConfig.heads``.
        num_layers: L.
    """
    if kind == "paper":
        return PaperLocator(num_layers), ForgeryClassifier(num_layers)
    return LiteLocator(num_layers), ForgeryClassifier(num_layers, (16, 32, 64), 64)


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Context in which batch norms use the batch's statistics as usual but do not track them.

    In training the locator also reads the reference maps. At test time there are none, so its
    running statistics must come from the text maps only.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    counts = [norm.num_batches_tracked.clone() for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
