"""Image encoders: patch features of several layers of an image.

Source: LVLM-DFD, section 3.1: l layers of a pretrained image encoder.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from llava_forgery.kfd import trunk
from llava_forgery.kfd.config import EncoderConfig
from llava_forgery.optional import lazy

open_clip, timm = lazy("open_clip"), lazy("timm")


class VisualEncoder(nn.Module, ABC):
    """Maps images to one feature grid for each tapped layer.

    Attributes:
        widths: Channels of each tapped layer.
        frozen: Whether the weights stay fixed; a frozen encoder runs in eval mode under
            ``no_grad`` and its weights are not saved.
    """

    widths: tuple[int, ...]
    frozen: bool
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        # On the CPU even where modules that a checkpoint fills are built on the meta device.
        for name, values in (("mean", mean), ("std", std)):
            buffer = torch.tensor(values, device="cpu").view(1, 3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Encode a batch of images.

        Args:
            pixel_values: (B, 3, H, W) in [0, 1], not normalised: the encoder's own mean and
                standard deviation are applied here.

        Returns:
            Features (B, C_i, h_i, w_i) of each tap.
        """
        normalised = (pixel_values - self.mean) / self.std
        if self.frozen:
            with torch.no_grad():
                return self.features(normalised)
        return self.features(normalised)

    @abstractmethod
    def features(self, normalised: torch.Tensor) -> list[torch.Tensor]:
        """The tapped layers' features (B, C_i, h_i, w_i) of normalised images (B, 3, H, W)."""

    def use_for_inference(self) -> None:
        """Prepare for passes without gradients; what is saved stays the same."""

    def train(self, mode: bool = True) -> "VisualEncoder":
        """A frozen encoder stays in eval mode."""
        return super().train(mode and not self.frozen)


class TimmEncoder(VisualEncoder):
    """A convolutional trunk of timm, trained together with the heads."""

    frozen = False

    def __init__(self, config: EncoderConfig) -> None:
        if config.name == trunk.NAME:
            super().__init__(trunk.MEAN, trunk.STD)
            model = trunk.EfficientNetLite0(config.taps)
            self.widths = model.widths
        else:
            model = timm.create_model(
                config.name, pretrained=False, features_only=True, out_indices=config.taps
            )
            super().__init__(model.default_cfg["mean"], model.default_cfg["std"])
            self.widths = tuple(model.feature_info.channels())
        self.trunk = model
        self.use_channels_last()

    def use_channels_last(self) -> None:
        """Convert the weights to the memory format in which depthwise convolutions run about a
        quarter faster on CPU; loaded weights keep the format in which they were saved."""
        self.trunk.to(memory_format=torch.channels_last)

    def use_for_inference(self) -> None:
        if isinstance(self.trunk, trunk.EfficientNetLite0):
            self.trunk.scale_weights()

    def features(self, normalised: torch.Tensor) -> list[torch.Tensor]:
        return self.trunk(normalised.contiguous(memory_format=torch.channels_last))


class OpenClipEncoder(VisualEncoder):
    """The image tower of an open_clip model, frozen; the class token is dropped."""

    frozen = True

    def __init__(self, model: nn.Module, config: EncoderConfig) -> None:
        super().__init__(model.visual.image_mean, model.visual.image_std)
        self.visual = model.visual
        self.visual.requires_grad_(False)
        # open_clip counts blocks from 0.
        self.indices = [tap - 1 for tap in config.taps]
        self.eval()
        if isinstance(self.visual, open_clip.transformer.VisionTransformer):
            # All blocks are as wide as the patches; measuring it with a pass would take seconds.
            self.widths = (self.visual.conv1.out_channels,) * len(config.taps)
        else:
            side = config.image_size
            features = self.features(next(self.visual.parameters()).new_zeros(1, 3, side, side))
            self.widths = tuple(feature.shape[1] for feature in features)

    @torch.no_grad()
    def features(self, normalised: torch.Tensor) -> list[torch.Tensor]:
        dtype = next(self.visual.parameters()).dtype
        # All taps come from one pass; blocks after the last tap are not run.
        result = self.visual.forward_intermediates(
            normalised.to(dtype),
            indices=self.indices,
            stop_early=True,
            intermediates_only=True,
            output_fmt="NCHW",
        )
        return list(result["image_intermediates"])


@contextmanager
def default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """Context in which modules are built in this precision; None keeps torch's default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def load_open_clip(config: EncoderConfig) -> nn.Module:
    """Both towers of an open_clip model, in eval mode.

    Raises:
        ValueError: The name is unknown, or ``encoder.image_size`` is not that of the model.
    """
    known = config.name.startswith(("local-dir:", "hf-hub:")) or (
        config.name in open_clip.list_models()
    )
    if not known:
        raise ValueError(
            f"open_clip has no model {config.name!r}; open_clip.list_models() gives the names, "
            "and 'local-dir:PATH' reads a folder"
        )
    model = open_clip.create_model(
        config.name, pretrained=config.pretrained, force_image_size=config.image_size
    )
    return model.eval().requires_grad_(False)
