"""The Knowledge-guided Forgery Detector: image to consistency maps, mask and score.

Source: LVLM-DFD, section 3.1 and figure 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike

import torch
import torch.nn.functional as F
from torch import nn

from llava_forgery.downloads import allow_downloads
from llava_forgery.hub import Pushable, local_folder
from llava_forgery.kfd.calibration import Calibration, Thresholds
from llava_forgery.kfd.checkpoint import load_detector, save_detector
from llava_forgery.kfd.config import PRESETS, EncoderConfig, KFDConfig
from llava_forgery.kfd.consistency import ConsistencyMaps
from llava_forgery.kfd.encoder import (
    OpenClipEncoder,
    TimmEncoder,
    VisualEncoder,
    default_dtype,
    load_open_clip,
)
from llava_forgery.kfd.heads import frozen_statistics, make_heads
from llava_forgery.kfd.host_tower import HostEncoder, load_tower
from llava_forgery.kfd.knowledge import (
    ByteTextEncoder,
    ForgeryKnowledge,
    OpenClipTextEncoder,
    TextEncoder,
)
from llava_forgery.noise import quiet


@dataclass(frozen=True)
class KFDOutput:
    """Output of the detector for a batch."""

    consistency_maps: torch.Tensor
    """(B, L, 2, h, w): similarity of each patch to [real, fake], per tapped layer."""
    mask_logits: torch.Tensor
    """(B, 2, H, W): channel 1 is forged."""
    class_logits: torch.Tensor
    """(B, 2): [real, fake]."""

    @property
    def mask(self) -> torch.Tensor:
        """(B, 1, H, W): probability that a pixel is forged, in [0, 1]."""
        return self.mask_logits.softmax(dim=1)[:, 1:]

    @property
    def score(self) -> torch.Tensor:
        """(B,): probability that the image is fake, in [0, 1].

        Raises:
            ValueError: A score is not finite.
        """
        score = self.class_logits.softmax(dim=1)[:, 1]
        if not bool(score.isfinite().all()):
            raise ValueError(
                "the detector's score is not finite. That is not the picture's fault: the "
                "detector's weights are damaged, or too large for float16; load it in float32"
            )
        return score

    def select(self, rows: Sequence[int]) -> "KFDOutput":
        """The output for some images of the batch, in the order of ``rows``."""
        parts = (self.consistency_maps, self.mask_logits, self.class_logits)
        return KFDOutput(*(part[list(rows)] for part in parts))

    @classmethod
    def join(cls, outputs: Sequence["KFDOutput"]) -> "KFDOutput":
        """The outputs for several batches, concatenated."""
        names = ("consistency_maps", "mask_logits", "class_logits")
        return cls(*(torch.cat([getattr(output, name) for output in outputs]) for name in names))

    def detach(self) -> "KFDOutput":
        """The same output without its graph."""
        return KFDOutput(
            self.consistency_maps.detach(), self.mask_logits.detach(), self.class_logits.detach()
        )


class KnowledgeGuidedForgeryDetector(Pushable, nn.Module):
    """Consistency maps of an image with described classes, read by a locator and a classifier.

    Use :meth:`from_preset` to train one and :meth:`from_pretrained` to use one.

    Args:
        config: Sizes, towers and texts.
        with_knowledge: Build the text encoder and the learned context, which training needs.
            Otherwise the two text features are a buffer that a checkpoint fills.
        with_tower: For an encoder of kind ``host``: load the tower. Otherwise attach_forgery finds
            the tower in the host.
    """

    text_features: torch.Tensor
    calibration: Calibration | None = None
    """Applied to scores in eval mode; None leaves the logits unchanged."""
    training_people: frozenset[str] = frozenset()
    """The people that it, and the adapter that it is part of, were trained on, as
    :func:`llava_forgery.faces.identities.identity_digest` gives them; empty if unknown."""

    def __init__(
        self, config: KFDConfig, with_knowledge: bool = True, with_tower: bool = True
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder, text_encoder = _build_encoders(config, with_knowledge)
        if with_tower and isinstance(self.encoder, HostEncoder):
            self.encoder.adopt(load_tower(config.encoder.name))
        self.consistency = ConsistencyMaps(
            self.encoder.widths, config.encoder.text_width, config.temperature
        )
        self.locator, self.classifier = make_heads(config.heads, config.num_layers)
        self.knowledge: ForgeryKnowledge | None = None
        self.register_buffer("text_features", torch.zeros(2, config.encoder.text_width))
        if text_encoder is not None:
            self.knowledge = ForgeryKnowledge(config, text_encoder)
            self.refresh_text_features()

    @classmethod
    @quiet()
    def from_preset(cls, name: str, seed: int = 0) -> "KnowledgeGuidedForgeryDetector":
        """A detector to train; weights that are not pretrained are initialised.

        Args:
            name: ``paper`` or ``tiny``.
            seed: Seed of the new weights; the global generator is left unchanged.

        Raises:
            ValueError: The name is unknown.
        """
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; expected one of {', '.join(PRESETS)}")
        return cls.from_config(PRESETS[name], seed)

    @classmethod
    @quiet()
    def from_config(
        cls,
        config: KFDConfig,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        with_knowledge: bool = True,
    ) -> "KnowledgeGuidedForgeryDetector":
        """A detector to train from a custom configuration.

        Args:
            config: Sizes, towers and texts.
            seed: As for :meth:`from_preset`.
            dtype: Precision in which the detector is built, so that it never takes more memory
                than that; None for torch's default.
            with_knowledge: As for the class.
        """
        with torch.random.fork_rng(devices=[]), default_dtype(dtype):
            torch.manual_seed(seed)
            return cls(config, with_knowledge)

    @classmethod
    @quiet()
    def from_pretrained(
        cls,
        directory: str | PathLike,
        with_knowledge: bool = False,
        with_tower: bool = True,
        base_model: str | None = None,
        dtype: torch.dtype | None = None,
        allow_download: bool = False,
    ) -> "KnowledgeGuidedForgeryDetector":
        """Read a saved detector, in eval mode; see :mod:`llava_forgery.kfd.checkpoint`.

        Args:
            directory: Folder written by :meth:`save_pretrained`, or its hub name.
            with_knowledge: Also read what further training needs. Otherwise the text encoder is not
                built.
            with_tower: For a detector on a host's vision tower: load the tower. Otherwise the
                detector only works with attach_forgery, which finds the tower in the host.
            base_model: Folder or hub name of that host, if it is not the one that was saved.
            dtype: Precision in which the detector is built and filled; None for torch's default.
            allow_download: Whether models that the folder's files name, such as an encoder of
                open_clip, may be downloaded. A host that is passed here may always be downloaded.
        """

        def build(config: KFDConfig) -> KnowledgeGuidedForgeryDetector:
            return cls(config, with_knowledge, with_tower=False)

        with allow_downloads(allow_download):
            directory = local_folder(directory)
            return load_detector(build, directory, with_knowledge, with_tower, base_model, dtype)

    def save_pretrained(self, directory: str | PathLike) -> None:
        """Write configuration and weights; see :mod:`llava_forgery.kfd.checkpoint`."""
        save_detector(self, directory)

    @property
    def thresholds(self) -> Thresholds:
        """Scores at which the verdict changes."""
        return Thresholds() if self.calibration is None else self.calibration.thresholds

    def refresh_text_features(self) -> None:
        """Recompute the two text features from the knowledge and store them."""
        if self.knowledge is not None:
            with torch.no_grad():
                self.text_features.copy_(self.knowledge())

    def train(self, mode: bool = True) -> "KnowledgeGuidedForgeryDetector":
        """Leaving training mode computes the text features once for all following images."""
        leaving = self.training and not mode
        super().train(mode)
        if leaving:
            self.refresh_text_features()
        return self

    def forward(self, pixel_values: torch.Tensor) -> KFDOutput:
        """Detect forgeries in a batch of images.

        Args:
            pixel_values: (B, 3, H, W) in [0, 1], H = W = ``config.encoder.image_size``; the
                encoder normalises them itself.

        Returns:
            The maps at patch resolution, the mask at the image's size and the logits of the score.

        Raises:
            ValueError: The shape differs.
        """
        self._check(pixel_values)
        return self.read_features(self.encoder(pixel_values))

    def read_features(self, features: list[torch.Tensor]) -> KFDOutput:
        """Detect on the encoder's features (B, C_i, h_i, w_i) of each tap."""
        side = self.config.encoder.image_size
        projected = self.consistency.project(features)
        return self._read(self._text_maps(projected), torch.Size((side, side)))

    def detect_pairs(
        self, forged: torch.Tensor, pristine: torch.Tensor, reference: bool
    ) -> tuple[KFDOutput, torch.Tensor | None]:
        """Detect on forgeries and their pristine images in one pass of the encoder.

        A pristine image is both a real sample and the reference of its forgery, so the reference
        costs nothing extra.

        Args:
            forged: (B, 3, H, W) in [0, 1].
            pristine: (B, 3, H, W) in [0, 1].
            reference: Whether to also locate with the reference maps (LVLM-DFD, equation 3).

        Returns:
            The output for forged and pristine images, (2B, ...), and the mask logits
            (B, 2, H, W) from the reference maps, or None without them.
        """
        images = torch.cat([forged, pristine])
        self._check(images)
        size = images.shape[-2:]
        projected = self.consistency.project(self.encoder(images))
        output = self._read(self._text_maps(projected), size)
        if not reference:
            return output, None
        count = len(forged)
        maps = self.consistency.to_reference(
            [feature[:count] for feature in projected],
            [feature[count:] for feature in projected],
        )
        with frozen_statistics(self.locator):
            return output, self._locate(self._enlarge(maps, size), size)

    def _check(self, pixel_values: torch.Tensor) -> None:
        side = self.config.encoder.image_size
        if pixel_values.ndim != 4 or pixel_values.shape[1:] != (3, side, side):
            raise ValueError(
                f"expected pixel_values (B, 3, {side}, {side}) in [0, 1], "
                f"got {tuple(pixel_values.shape)}; resize the image first"
            )

    def _text_maps(self, projected: list[torch.Tensor]) -> torch.Tensor:
        features = self.text_features
        if self.training and self.knowledge is not None:
            features = self.knowledge()
        return self.consistency.to_text(projected, features)

    def _locate(self, maps: torch.Tensor, size: torch.Size) -> torch.Tensor:
        logits = self.locator(maps)
        return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)

    def _enlarge(self, maps: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """Enlarge the maps to the image's size, as the official heads need; lite heads do not."""
        if self.config.heads == "lite":
            return maps
        flat = F.interpolate(maps.flatten(0, 1), size, mode="bilinear", align_corners=True)
        return flat.unflatten(0, maps.shape[:2])

    def _read(self, maps: torch.Tensor, size: torch.Size) -> KFDOutput:
        enlarged = self._enlarge(maps, size)
        logits = self.classifier(enlarged).float()
        if self.calibration is not None and not self.training:
            logits = self.calibration.apply(logits)
        return KFDOutput(
            consistency_maps=maps,
            mask_logits=self._locate(enlarged, size),
            class_logits=logits,
        )


def _build_encoders(
    config: KFDConfig, with_knowledge: bool
) -> tuple[VisualEncoder, TextEncoder | None]:
    """The image encoder, and the text encoder if requested."""
    if config.encoder.kind == "timm":
        byte_text = ByteTextEncoder(config.encoder.text_width) if with_knowledge else None
        return TimmEncoder(config.encoder), byte_text
    if config.encoder.kind == "host":
        text = _host_text_encoder(config.encoder) if with_knowledge else None
        return HostEncoder(config.encoder), text
    model = load_open_clip(config.encoder)
    visual = OpenClipEncoder(model, config.encoder)
    return visual, OpenClipTextEncoder(model, config.encoder.name) if with_knowledge else None


def _host_text_encoder(config: EncoderConfig) -> TextEncoder:
    """The text encoder to go with a host's tower, which has none of its own."""
    if config.text_model is None:
        return ByteTextEncoder(config.text_width)
    clip = replace(config, kind="open_clip", name=config.text_model, text_model=None, tower=None)
    return OpenClipTextEncoder(load_open_clip(clip), config.text_model)
