"""One encoding of an image for host and detector, where the detector reads the host's own tower.

The image goes first through the host's ``get_image_features``; hooks tap the tower's blocks
meanwhile. The detector reads what was tapped, so its score is known before the prompt is written,
and the finished features stand in for ``pixel_values`` when the host runs (``mm_encoder_outputs``).
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin
from transformers.modeling_outputs import ModelOutput

from llava_forgery.kfd.checkpoint import encoder_probe, same_probe
from llava_forgery.kfd.detector import KFDOutput, KnowledgeGuidedForgeryDetector
from llava_forgery.kfd.host_config import check_processor
from llava_forgery.kfd.host_tower import (
    HostEncoder,
    check_interface,
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


class SharedTower:
    """Encodes images once for a host and for a detector that reads the host's tower.

    Args:
        model: The bare host.
        processor: Its processor.
        kfd: A detector with an encoder of kind ``host``. A tower of its own is given up.

    Raises:
        ValueError: The detector was made for another tower, or the host does not take an image as
            one square of a fixed size.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        kfd: KnowledgeGuidedForgeryDetector,
    ) -> None:
        self._model, self._kfd = model, kfd
        encoder, config = kfd.encoder, kfd.config.encoder
        assert isinstance(encoder, HostEncoder)
        tower = vision_tower(model)
        check_tower(tower, config)
        check_interface(model)
        check_processor(processor.image_processor, config, type(model).__name__)
        if encoder.probe is None:
            encoder.probe = encoder_probe(encoder, config.image_size)
        # The detector's own copy goes: it is not moved, and the tower is the host's alone.
        encoder.tower = None
        kfd.to(next(tower.parameters()).device)
        with self.lent():
            found = encoder_probe(encoder, config.image_size)
        if not same_probe(encoder.probe, found):
            raise ValueError(
                "the detector was trained on a vision tower of the same sizes but with other "
                f"weights than this host's; give the host it was trained with ({config.name!r}), "
                "or train a detector for this one (train-kfd --host)"
            )
        if model.name_or_path:
            kfd.config = replace(kfd.config, encoder=replace(config, name=model.name_or_path))

    @property
    def tower(self) -> PreTrainedModel:
        """The host's vision tower as it is now."""
        return vision_tower(self._model)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let the detector be called by itself inside, on the host's tower."""
        encoder = self._kfd.encoder
        encoder.tower = self.tower.eval()
        try:
            yield
        finally:
            encoder.tower = None

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
        with tapped(self.tower, self._kfd.config.encoder.taps) as states:
            features = self._model.base_model.get_image_features(
                pixel_values=pixel_values, return_dict=True, **options
            )
        with torch.no_grad():
            # A host that is spread over devices may have its tower on another one.
            device = self._kfd.encoder.mean.device
            grids = [grid.to(device) for grid in self._kfd.encoder.arrange(states)]
            output = self._kfd.read_features(grids)
        return SharedDetection(
            **vars(output), pixel_values=pixel_values, image_features=_without_states(features)
        )

    def encode_images(self, images: torch.Tensor) -> SharedDetection:
        """The same for images (N, 3, S, S) in [0, 1]."""
        mean = self._kfd.encoder.mean
        return self.encode(self._kfd.encoder.normalise(images.to(mean.device, mean.dtype)))

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
            if pixel_values is None and host_inputs.get("past_key_values") is not None:
                # A later turn: the image stands in the cache.
                return detection, host_inputs
            self._compare_pixels(pixel_values, detection)
        # A copy: beam search changes the features in place.
        features = _without_states(detection.image_features)
        return detection, {**host_inputs, "mm_encoder_outputs": {"image": features}}

    def _compare_pixels(
        self, pixel_values: torch.Tensor | None, detection: SharedDetection
    ) -> None:
        if pixel_values is None:
            return
        known = detection.pixel_values
        same = pixel_values.shape == known.shape and bool(
            ((pixel_values.to(known.device).float() - known.float()).abs() < PIXEL_TOLERANCE).all()
        )
        if not same:
            raise ValueError(
                "pixel_values are not of the images that the detection was made on: one encoding "
                f"serves host and detector (shapes {tuple(pixel_values.shape)} and "
                f"{tuple(known.shape)}); detect on the pictures that the prompt shows"
            )


def _without_states(features: ModelOutput) -> ModelOutput:
    """A copy that does not keep the tower's hidden states alive."""
    kept = {k: v for k, v in features.items() if k not in ("hidden_states", "attentions")}
    return type(features)(**kept)
