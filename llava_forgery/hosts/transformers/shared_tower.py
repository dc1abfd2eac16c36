"""One encoding of an image for host and detector, where the detector reads the host's own tower.

The image goes first through the host's ``get_image_features``; hooks tap the tower's blocks
meanwhile. The detector reads what was tapped, so its score is known before the prompt is written,
and the finished features stand in for ``pixel_values`` when the host runs (``mm_encoder_outputs``).
"""

import inspect
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin
from transformers.modeling_outputs import ModelOutput

from llava_forgery.hosts.families import exclusive
from llava_forgery.hosts.kv_cache import cache_in
from llava_forgery.kfd.checkpoint import encoder_probe, same_probe
from llava_forgery.kfd.detector import KFDOutput, KnowledgeGuidedForgeryDetector
from llava_forgery.kfd.host_tower import (
    HostEncoder,
    check_interface,
    check_processor,
    check_tower,
    tapped,
    vision_tower,
)

# Pixels may be rounded otherwise by the host's processor, or lie in another dtype.
PIXEL_TOLERANCE = 0.05


@dataclass(frozen=True)
class SharedDetection(KFDOutput):
    """What the detector says, with the host's image features from the same encoding."""

    pixel_values: torch.Tensor
    """(N, 3, S, S): the images as the host's processor gives them."""
    image_features: ModelOutput
    """What the host's ``get_image_features`` gave for them, without hidden states."""


class SharedVisionTower(ABC):
    """A host's vision tower, lent to a detector that was trained on it.

    Args:
        kfd: A detector with an encoder of kind ``host``. A tower of its own is given up by
            :meth:`check`.
    """

    def __init__(self, kfd: KnowledgeGuidedForgeryDetector) -> None:
        assert isinstance(kfd.encoder, HostEncoder)
        self._kfd = kfd

    @property
    @abstractmethod
    def tower(self) -> PreTrainedModel:
        """The host's vision tower as it is now."""

    def check(self, image_processor: Any, owner: str) -> None:
        """Compare the host's tower, and how it is shown an image, with what the detector knows.

        Args:
            image_processor: The host's.
            owner: Of the tower, for messages.

        Raises:
            ValueError: The detector was made for another tower, or the host does not take an image
                as one square of a fixed size.
        """
        encoder, config = self._kfd.encoder, self._kfd.config.encoder
        check_tower(self.tower, config)
        check_processor(image_processor, config, owner)
        if encoder.probe is None:
            encoder.probe = encoder_probe(encoder, config.image_size)
        # The detector's own copy goes: it is not moved, and the tower is the host's alone.
        encoder.tower = None
        self._kfd.to(next(self.tower.parameters()).device)
        with self.attached():
            found = encoder_probe(encoder, config.image_size)
        if not same_probe(encoder.probe, found):
            raise ValueError(
                "the detector was trained on a vision tower of the same sizes but with other "
                f"weights than this host's; give the host it was trained with ({config.name!r}), "
                "or train a detector for this one (train detector --base-model)"
            )

    def attached(self) -> AbstractContextManager[None]:
        """Let this thread or task call the detector by itself inside, on the host's tower."""
        return self._kfd.encoder.borrow(self.tower.eval())

    def tapped(self) -> AbstractContextManager[dict[int, torch.Tensor]]:
        """Collect what the detector reads while the tower runs once inside."""
        return tapped(self.tower, self._kfd.config.encoder.taps)

    @torch.no_grad()
    def read(self, states: dict[int, torch.Tensor]) -> KFDOutput:
        """Detect on hidden states (N, T, C) of the taps."""
        # A host that is spread over devices may have its tower on another one.
        device = self._kfd.encoder.mean.device
        grids = [grid.to(device) for grid in self._kfd.encoder.arrange(states)]
        return self._kfd.read_features(grids)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, S, S) in [0, 1] as the host's processor gives them."""
        mean = self._kfd.encoder.mean
        return self._kfd.encoder.normalise(images.to(mean.device, mean.dtype))


class SharedTower(SharedVisionTower):
    """Encodes images once for a host of transformers and for a detector that reads its tower.

    Args:
        model: The bare host.
        processor: Its processor; None where host and detector are of one checkpoint, and nothing is
            to be compared.
        kfd: A detector with an encoder of kind ``host``. A tower of its own is given up.

    Raises:
        ValueError: The detector was made for another tower, or the host does not take an image as
            one square of a fixed size.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin | None,
        kfd: KnowledgeGuidedForgeryDetector,
    ) -> None:
        self._model = model
        check_interface(model)
        super().__init__(kfd)
        if processor is None:
            return
        self.check(processor.image_processor, type(model).__name__)
        if model.name_or_path:
            encoder = replace(kfd.config.encoder, name=model.name_or_path)
            kfd.config = replace(kfd.config, encoder=encoder)

    @property
    def tower(self) -> PreTrainedModel:
        return vision_tower(self._model)

    def encode(self, pixel_values: torch.Tensor, **options: Any) -> SharedDetection:
        """Encode images for the host and detect on what its tower gave.

        Args:
            pixel_values: (N, 3, S, S), normalised as the host's processor does.
            options: Further arguments of the host's ``get_image_features``.

        Raises:
            ValueError: Another shape.
        """
        side = self._kfd.config.encoder.image_size
        if pixel_values.ndim != 4 or pixel_values.shape[1:] != (3, side, side):
            raise ValueError(
                f"expected pixel_values (N, 3, {side}, {side}), one square for each image, got "
                f"{tuple(pixel_values.shape)}"
            )
        with exclusive(self._model), self.tapped() as states:
            features = self._model.base_model.get_image_features(
                pixel_values=pixel_values, return_dict=True, **options
            )
        return SharedDetection(
            **vars(self.read(states)),
            pixel_values=pixel_values,
            image_features=_without_states(features),
        )

    def encode_images(self, images: torch.Tensor) -> SharedDetection:
        """The same for images (N, 3, S, S) in [0, 1]."""
        return self.encode(self.normalise(images))

    def prepare(
        self,
        forgery_images: torch.Tensor | None,
        detection: KFDOutput | None,
        host_inputs: dict[str, Any],
    ) -> tuple[KFDOutput | None, dict[str, Any]]:
        """Encode what a call of the host shows, unless its detection is known already.

        Args:
            forgery_images: Must be None: the detector sees what the host sees.
            detection: From :meth:`encode` or :meth:`encode_images`; its features then take the
                place of ``pixel_values``. One without features leaves the host to encode anew.
            host_inputs: Of the host's ``forward`` or ``generate``.

        Returns:
            The detection, None where the call shows no image; and the host's inputs.

        Raises:
            ValueError: ``forgery_images`` are given, or ``pixel_values`` that are not of the
                images that were detected on.
        """
        if forgery_images is not None:
            raise ValueError(
                "this detector reads the host's own vision tower: give pixel_values alone, no "
                "forgery_images"
            )
        if detection is None:
            if host_inputs.get("pixel_values") is None:
                return None, host_inputs
            taken = inspect.signature(self._model.base_model.get_image_features).parameters
            options = {name: host_inputs[name] for name in taken if name in host_inputs}
            host_inputs = {name: v for name, v in host_inputs.items() if name not in options}
            detection = self.encode(**options)
        elif not isinstance(detection, SharedDetection):
            return detection, host_inputs
        else:
            host_inputs = dict(host_inputs)
            pixel_values = host_inputs.pop("pixel_values", None)
            if pixel_values is None and cache_in(host_inputs) is not None:
                # A later turn: the image stands in the cache.
                return detection, host_inputs
            if pixel_values is not None:
                check_same_pixels(pixel_values, detection.pixel_values)
        # A copy: beam search changes the features in place.
        features = _without_states(detection.image_features)
        return detection, {**host_inputs, "mm_encoder_outputs": {"image": features}}


def check_same_pixels(given: torch.Tensor, known: torch.Tensor) -> None:
    """One encoding serves host and detector: both must be shown the same pictures.

    Args:
        given: (N, 3, S, S), for the host.
        known: (N, 3, S, S), that the detection was made on.

    Raises:
        ValueError: They differ.
    """
    same = given.shape == known.shape and bool(
        ((given.to(known.device).float() - known.float()).abs() < PIXEL_TOLERANCE).all()
    )
    if not same:
        raise ValueError(
            "the host's pixels are not of the images that the detection was made on: one encoding "
            f"serves host and detector (shapes {tuple(given.shape)} and {tuple(known.shape)}); "
            "detect on the pictures that the prompt shows"
        )


def _without_states(features: ModelOutput) -> ModelOutput:
    """A copy that does not keep the tower's hidden states alive."""
    kept = {k: v for k, v in features.items() if k not in ("hidden_states", "attentions")}
    return type(features)(**kept)
