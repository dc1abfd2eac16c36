"""A single encoding of an image for a model of the ``llava`` package and its detector.

LLaVA's model encodes its images inside the call that also embeds the text, so a detector on the
model's own vision tower would run too late. The tower therefore runs before, with the taps of
:mod:`llava_forgery.hosts.transformers.shared_tower`, and returns the finished features when LLaVA's
code calls it.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from llava_forgery.call_state import in_call, lock_of, of_call
from llava_forgery.hosts.families import exclusive
from llava_forgery.hosts.transformers.shared_tower import SharedVisionTower, check_same_pixels
from llava_forgery.kfd.detector import KFDOutput, KnowledgeGuidedForgeryDetector

Images = torch.Tensor | Sequence[torch.Tensor]


@dataclass(frozen=True)
class LlavaDetection(KFDOutput):
    """Output of the detector, with the host tower's features of the same encoding."""

    pixels: torch.Tensor
    """(N, 3, S, S): the images from the host's processor."""
    features: torch.Tensor
    """(N, P, C): features of LLaVA's tower for them, before the projector."""


class LlavaSharedTower(SharedVisionTower):
    """Encodes images once for a model of the ``llava`` package and a detector on its tower.

    For an image in tiles the detector sees the first, which shows the whole image. LLaVA's loader
    fills the tower after the model, so it is compared with the detector's at its first use.

    Args:
        model: Model of the ``llava`` package.
        kfd: Detector with an encoder of kind ``host``, whose own tower, if any, is dropped.

    Raises:
        ValueError: The tower is already loaded and the detector was trained on another one.
    """

    def __init__(self, model: PreTrainedModel, kfd: KnowledgeGuidedForgeryDetector) -> None:
        super().__init__(kfd)
        self._model, self._checked = model, False
        if self._outer.is_loaded:
            self.check_once()

    @property
    def tower(self) -> PreTrainedModel:
        return self._outer.vision_tower

    @property
    def _outer(self) -> nn.Module:
        """LLaVA's module around the tower."""
        return self._model.get_vision_tower()

    def detect(self, images: torch.Tensor) -> LlavaDetection:
        """Detect on images (N, 3, S, S) in [0, 1]; passed as ``detection``, the result saves the
        host a second encoding."""
        pixels = self.normalise(images)
        features, output = self._encode(pixels, range(len(pixels)))
        return LlavaDetection(**vars(output), pixels=pixels, features=features)

    def prepare(
        self, images: Images, wanted: Sequence[int], detection: KFDOutput | None
    ) -> tuple[KFDOutput, AbstractContextManager[None]]:
        """Encode the images of a call of the model, unless their detection is given.

        Args:
            images: LLaVA's images: (B, 3, H, W), (B, tiles, 3, H, W) or a list.
            wanted: Indices of the images for the detector.
            detection: Output of :meth:`detect`. Without features the host encodes the images again.

        Returns:
            The detection of the wanted images, and the context in which to call the model.

        Raises:
            ValueError: A tile is not a square of the tower's size, or the images are not those of
                the detection.
        """
        pixels, rows = _first_tiles(images, wanted)
        if detection is None:
            features, detection = self._encode(pixels, rows)
        elif not isinstance(detection, LlavaDetection):
            return detection, nullcontext()
        else:
            check_same_pixels(pixels[rows], detection.pixels)
            features = self._complete(pixels, rows, detection.features)
        return detection, _standing_in(self._outer, pixels, features)

    def _encode(self, pixels: torch.Tensor, rows: Sequence[int]) -> tuple[torch.Tensor, KFDOutput]:
        """The tower's features of all tiles, and the detection on some."""
        self.check_once()
        self.tower.eval()
        side = self._kfd.config.encoder.image_size
        if pixels.ndim != 4 or pixels.shape[1:] != (3, side, side):
            raise ValueError(
                f"expected images or tiles (N, 3, {side}, {side}), the size of the tower that host "
                f"and detector share, got {tuple(pixels.shape)}"
            )
        with exclusive(self._model), self.tapped() as states:
            features = self._outer(pixels)
        # The detector in its own precision; mixed precision is only for the host.
        with torch.autocast(pixels.device.type, enabled=False):
            output = self.read({tap: state[list(rows)] for tap, state in states.items()})
        return features, output

    def _complete(
        self, pixels: torch.Tensor, rows: Sequence[int], known: torch.Tensor
    ) -> torch.Tensor:
        """Features of all tiles, of which those of ``rows`` are known."""
        known = known.to(pixels.device, pixels.dtype)
        others = sorted(set(range(len(pixels))) - set(rows))
        features = known.new_empty(len(pixels), *known.shape[1:])
        features[list(rows)] = known
        if others:
            features[others] = self._outer(pixels[others]).to(features.dtype)
        return features

    def check_once(self) -> None:
        """Compare the tower with the detector's, once.

        Raises:
            RuntimeError: The tower is not loaded.
            ValueError: As for :meth:`check`.
        """
        with lock_of(self._model):
            if self._checked:
                return
            if not self._outer.is_loaded:
                raise RuntimeError(
                    "the model's vision tower is not loaded; call "
                    "model.get_vision_tower().load_model()"
                )
            self.check(self._outer.image_processor.preprocess, type(self._model).__name__)
            self._checked = True


def _first_tiles(images: Images, wanted: Sequence[int]) -> tuple[torch.Tensor, list[int]]:
    """All tiles of a batch in the order in which LLaVA's model encodes them, and the indices of the
    first tiles of the wanted images."""
    if isinstance(images, torch.Tensor) and images.ndim == 4:
        return images, list(wanted)
    parts = [image[None] if image.ndim == 3 else image for image in images]
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + len(part))
    return torch.cat(parts), [starts[i] for i in wanted]


class _Relay:
    """In the place of a tower's ``forward`` while calls run whose features are finished already.

    Calls of other threads and tasks reach the tower as ever.
    """

    def __init__(self, tower: nn.Module) -> None:
        # accelerate puts a forward of its own on modules that it moves.
        self.tower, self.before = tower, vars(tower).get("forward")
        self.original, self.calls = tower.forward, 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return (of_call(self.tower) or self.original)(images)


@contextmanager
def _standing_in(tower: nn.Module, pixels: torch.Tensor, features: torch.Tensor) -> Iterator[None]:
    """Context in which LLaVA's tower returns finished features for their pixels, all at once or
    piece by piece in order."""
    place = 0

    def finished(images: torch.Tensor) -> torch.Tensor:
        nonlocal place
        piece = slice(place, place + len(images))
        if not torch.equal(images, pixels[piece].to(images.device)):
            raise RuntimeError(
                "the model encodes other images than it was given, or in another order, which its "
                f"detector cannot follow: shapes {tuple(images.shape)} of {tuple(pixels.shape)}"
            )
        place = piece.stop % len(pixels)
        return features[piece]

    with lock_of(tower):
        if not isinstance(vars(tower).get("forward"), _Relay):
            tower.forward = _Relay(tower)
        relay: _Relay = tower.forward
        relay.calls += 1
    try:
        with in_call(tower, finished):
            yield
    finally:
        with lock_of(tower):
            relay.calls -= 1
            if not relay.calls:
                del tower.forward
                if relay.before is not None:
                    tower.forward = relay.before
