"""The Forgery Prompt Learner: the detector's output to embeddings of the language model's width.

Source: LVLM-DFD, section 3.2 and figure 4; the ``paper`` sizes are the official code's (commit
589b036).
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from llava_forgery.fpl.config import FPLConfig
from llava_forgery.kfd.detector import KFDOutput

# Both kinds give a grid of 3 x 3 vectors for the mask and for the maps (n_2 = n_3 = 9).
GRID = 3
PAPER_SIZE = 224
# Finer maps are reduced to this side for the lite networks: regions of a face remain apart.
LITE_SIZE = 24
LITE_PLACES = 6


class FPLInput(NamedTuple):
    """What the learner's networks read of a detection; see :meth:`ForgeryPromptLearner.read`."""

    mask: torch.Tensor
    """(B, 1, h, w): probability of forgery."""
    maps: torch.Tensor
    """(B, 2 L, h, w): consistency maps, for ``lite`` a tenth of them."""
    probabilities: torch.Tensor
    """(B, 2): real, fake."""


class PaperGrid(nn.Sequential):
    """Six convolutions with five poolings (224 to 7), then conv 5 x 5 to C at 3 x 3 places."""

    def __init__(self, channels: int, hidden_size: int) -> None:
        layers: list[nn.Module] = []
        widths = (channels, 16, 32, 64, 128, 256, 512)
        for i, (before, after) in enumerate(pairwise(widths)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(after)]
            if i < 5:
                layers.append(nn.MaxPool2d(2))
        super().__init__(*layers, nn.Conv2d(512, hidden_size, 5))


class PoolTo(nn.Module):
    """Mean over equal places; maps (B, C, h, w) of that size already are left alone.

    torch's own pools those too, which on a CPU takes as long as the convolutions before it.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps (B, C, h, w) to (B, C, side, side)."""
        size = (self.side, self.side)
        return maps if maps.shape[-2:] == size else F.adaptive_avg_pool2d(maps, size)


class LiteGrid(nn.Module):
    """Three small convolutions, down to 6 x 6 places; then each of 3 x 3 vectors is made from all.

    A third of a face is too coarse to tell its eyes from its eyebrows. No norm: how strong a map is
    says as much as where, and stage 2 runs on batches of a few samples.
    """

    def __init__(self, channels: int, hidden_size: int, latent: int = 64) -> None:
        super().__init__()
        vectors = GRID * GRID
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, padding=1, stride=2),
            nn.GELU(),
            nn.Conv2d(64, 128, 3, padding=1, stride=2),
            nn.GELU(),
            PoolTo(LITE_PLACES),
            nn.Conv2d(128, 32, 1),
            nn.Flatten(),
        )
        self.head = nn.Sequential(
            nn.Linear(32 * LITE_PLACES**2, vectors * latent),
            nn.GELU(),
            nn.Unflatten(1, (vectors, latent)),
            nn.Linear(latent, hidden_size),
        )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps (B, channels, h, w) to (B, C, 3, 3), as the paper's grid gives them."""
        vectors = self.head(self.trunk(maps))
        return vectors.transpose(1, 2).unflatten(2, (GRID, GRID))


class ForgeryPromptLearner(nn.Module):
    """E_base, the mask, the consistency maps and the score to E_forgery.

    Args:
        config: Sizes.
    """

    def __init__(self, config: FPLConfig) -> None:
        super().__init__()
        self.config = config
        grid = PaperGrid if config.kind == "paper" else LiteGrid
        self.base = nn.Parameter(torch.randn(config.n_base, config.hidden_size) * 0.02)
        self.mask_grid = grid(1, config.hidden_size)
        self.map_grid = grid(2 * config.num_layers, config.hidden_size)
        self.score = nn.Linear(2, config.hidden_size)
        vectors = config.n_base + 2 * GRID * GRID + 1
        # The vectors are the channels; the kernel runs along the embedding's width.
        self.fuse = nn.Conv1d(vectors, config.n_forgery, 3, padding=1)
        if config.kind == "lite":
            self._start_apart()

    @classmethod
    def from_config(cls, config: FPLConfig, seed: int = 0) -> "ForgeryPromptLearner":
        """New weights under a seed; the global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config)

    @torch.no_grad()
    def _start_apart(self) -> None:
        """Let each output begin as one vector of every kind, plus the score's.

        A random start mixes all of them into all outputs alike, which takes long to undo.
        """
        self.fuse.weight.mul_(0.1)
        self.fuse.bias.zero_()
        n_base, places = self.config.n_base, GRID * GRID
        for output in range(self.config.n_forgery):
            kinds = (output % n_base, n_base + output % places, n_base + places + output % places)
            for vector in (*kinds, n_base + 2 * places):
                self.fuse.weight[output, vector, 1] = 1.0

    @torch.no_grad()
    def match_scale(self, embedding: torch.Tensor, gain: float = 1.0) -> None:
        """Bring the start of E_forgery to the size of a host's token embeddings.

        A language model barely hears vectors far smaller than its words and is drowned by far
        larger ones. The input for the measurement is that of an undecided detector.

        Args:
            embedding: (V, C), the host's input embedding.
            gain: What the host multiplies its rows by, where it does.
        """
        vectors = self._read_nothing(self.base.device)
        wanted = gain * embedding.float().pow(2).mean().sqrt()
        factor = (wanted / vectors.float().pow(2).mean().sqrt()).to(self.base.dtype)
        self.fuse.weight.mul_(factor)
        self.fuse.bias.mul_(factor)

    def idle(self, device: torch.device) -> torch.Tensor:
        """Take part in a training step that shows no face.

        Args:
            device: Where the FPL lies; under ZeRO-3 its weights must not be asked outside a call.

        Returns:
            Zero, (), whatever the weights are. Added to what the loss is made of, it gives each
            parameter a gradient of zero instead of None.
        """
        return self._read_nothing(device)[:0].sum()

    def _read_nothing(self, device: torch.device) -> torch.Tensor:
        """E_forgery (1, n_f, C) for an undecided detector, in eval mode: buffers do not change."""
        maps = torch.zeros(1, self.config.num_layers, 2, 16, 16, device=device)
        flat = torch.zeros(1, 2, PAPER_SIZE, PAPER_SIZE, device=device)
        training = self.training
        self.eval()
        try:
            return self(KFDOutput(maps, flat, flat.new_zeros(1, 2)))
        finally:
            self.train(training)

    def forward(self, detection: KFDOutput) -> torch.Tensor:
        """Make the embeddings.

        Args:
            detection: The detector's output for B images; no gradient flows back into it.

        Returns:
            E_forgery (B, n_f, C).

        Raises:
            ValueError: As :meth:`read`.
        """
        return self.embed(self.read(detection))

    def read(self, detection: KFDOutput) -> FPLInput:
        """What the networks read of a detection: for ``lite`` a fraction of its size.

        Args:
            detection: The detector's output for B images.

        Returns:
            Without a gradient, in the FPL's precision; for ``lite`` at most ``LITE_SIZE`` wide.

        Raises:
            ValueError: Another number of consistency maps than the configuration's.
        """
        maps = detection.consistency_maps.detach()
        if maps.shape[1] != self.config.num_layers:
            raise ValueError(
                f"this FPL reads {self.config.num_layers} consistency maps, the detector gave "
                f"{maps.shape[1]}: it belongs to another detector"
            )
        dtype = self.base.dtype
        mask, flat = detection.mask.detach().to(dtype), maps.flatten(1, 2).to(dtype)
        if self.config.kind == "lite":
            size = tuple(min(side, LITE_SIZE) for side in flat.shape[-2:])
            mask = F.adaptive_avg_pool2d(mask, size)
            # The maps come in units of the temperature.
            flat = F.adaptive_avg_pool2d(flat, size) / 10
        return FPLInput(mask, flat, detection.class_logits.detach().softmax(dim=1).to(dtype))

    def embed(self, inputs: FPLInput) -> torch.Tensor:
        """E_forgery (B, n_f, C) from what :meth:`read` gave."""
        mask, maps, probabilities = inputs
        if self.config.kind == "paper":
            size = (PAPER_SIZE, PAPER_SIZE)
            mask = F.interpolate(mask, size, mode="bilinear", align_corners=True)
            maps = F.interpolate(maps, size, mode="bilinear", align_corners=True)
        vectors = torch.cat(
            [
                self.base.expand(len(maps), -1, -1),
                self.mask_grid(mask).flatten(2).transpose(1, 2),
                self.map_grid(maps).flatten(2).transpose(1, 2),
                self.score(probabilities)[:, None],
            ],
            dim=1,
        )
        return self.fuse(vectors)
