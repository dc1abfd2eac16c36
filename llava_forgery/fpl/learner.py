"""The Forgery Prompt Learner: turns the detector's output into embeddings for the language model.

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
# Side to which finer maps are reduced for the lite networks; keeps the regions of a face apart.
LITE_SIZE = 24
LITE_PLACES = 6


class FPLInput(NamedTuple):
    """Input of the learner's networks; see :meth:`ForgeryPromptLearner.read`."""

    mask: torch.Tensor
    """(B, 1, h, w): probability of forgery."""
    maps: torch.Tensor
    """(B, 2 L, h, w): consistency maps; for ``lite``, divided by 10."""
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
    """Adaptive average pooling that skips maps (B, C, h, w) already of the target size.

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
    """Three small convolutions, down to 6 x 6 places; then each of 3 x 3 vectors sees all of them.

    A third of a face is too coarse to tell eyes from eyebrows. There is no norm: the strength of a
    map matters as much as its place, and stage 2 runs on batches of a few samples.
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
    """Makes E_forgery from E_base, the mask, the consistency maps and the score.

    Args:
        config: Sizes of the networks.
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
        # The vectors are the channels; the kernel slides along the embedding's width.
        self.fuse = nn.Conv1d(vectors, config.n_forgery, 3, padding=1)
        if config.kind == "lite":
            self._start_apart()

    @classmethod
    def from_config(cls, config: FPLConfig, seed: int = 0) -> "ForgeryPromptLearner":
        """A learner with new weights from a seed; the global generator is left unchanged."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config)

    @torch.no_grad()
    def _start_apart(self) -> None:
        """Initialise each output as the sum of one vector of every kind and the score's.

        A random initialisation mixes all of them into all outputs, which takes long to undo.
        """
        weight, bias = self.fuse.parameters()
        weight.mul_(0.1)
        bias.zero_()
        n_base, places = self.config.n_base, GRID * GRID
        for output in range(self.config.n_forgery):
            kinds = (output % n_base, n_base + output % places, n_base + places + output % places)
            for vector in (*kinds, n_base + 2 * places):
                weight[output, vector, 1] = 1.0

    @torch.no_grad()
    def match_scale(self, embedding: torch.Tensor, gain: float = 1.0) -> None:
        """Scale the initial E_forgery to the size of a host's token embeddings.

        A language model barely notices vectors far smaller than its words, and far larger ones
        drown them. The scale is measured on the output of an undecided detector.

        Args:
            embedding: (V, C), the host's input embedding.
            gain: Factor by which the host multiplies its embeddings, if any.
        """
        vectors = self._read_nothing(self.base.device)
        wanted = gain * embedding.float().pow(2).mean().sqrt()
        factor = (wanted / vectors.float().pow(2).mean().sqrt()).to(self.base.dtype)
        for parameter in self.fuse.parameters():
            parameter.mul_(factor)

    def idle(self, device: torch.device) -> torch.Tensor:
        """Take part in a training step without faces.

        Args:
            device: Device of the FPL; under ZeRO-3 its weights must not be read outside a call.

        Returns:
            Scalar zero, whatever the weights. Added to the inputs of the loss, it gives each
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
        """Make the forgery embeddings.

        Args:
            detection: The detector's output for B images; no gradient flows back into it.

        Returns:
            E_forgery (B, n_f, C).

        Raises:
            ValueError: As :meth:`read`.
        """
        return self.embed(self.read(detection))

    def read(self, detection: KFDOutput) -> FPLInput:
        """Input of the networks from a detection; for ``lite`` a fraction of its size.

        Args:
            detection: The detector's output for B images.

        Returns:
            Tensors without gradient, in the FPL's precision; for ``lite`` at most ``LITE_SIZE``
            wide.

        Raises:
            ValueError: The number of consistency maps is not that of the configuration.
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
            height, width = flat.shape[-2:]
            size = (min(height, LITE_SIZE), min(width, LITE_SIZE))
            mask = F.adaptive_avg_pool2d(mask, size)
            # The maps include the factor of the temperature.
            flat = F.adaptive_avg_pool2d(flat, size) / 10
        return FPLInput(mask, flat, detection.class_logits.detach().softmax(dim=1).to(dtype))

    def embed(self, inputs: FPLInput) -> torch.Tensor:
        """E_forgery (B, n_f, C) from the output of :meth:`read`."""
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
