"""Configuration of the Knowledge-guided Forgery Detector and its presets."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

ENCODERS = ("open_clip", "timm", "host")
HEADS = ("paper", "lite")


@dataclass(frozen=True)
class HostTower:
    """Properties that a host's vision tower must have for the detector that was trained on it."""

    model_type: str
    """transformers' name of the tower's architecture, such as ``clip_vision_model``."""
    width: int
    """Channels of its hidden states."""
    layers: int
    """Number of its blocks."""
    patch_size: int
    """Side of a patch in pixels."""
    mean: tuple[float, float, float]
    """Channel means of the host's image processor, for pixels in [0, 1]."""
    std: tuple[float, float, float]
    """Channel standard deviations of the host's image processor, for pixels in [0, 1]."""

    def __post_init__(self) -> None:
        for name in ("width", "layers", "patch_size"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"encoder.tower.{name} must be at least 1, got {getattr(self, name)}"
                )
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) != 3 or (name == "std" and min(values) <= 0):
                raise ValueError(
                    f"encoder.tower.{name} must be three numbers (std over 0), got {values}"
                )
            object.__setattr__(self, name, values)


@dataclass(frozen=True)
class EncoderConfig:
    """The image tower and the text tower of the detector."""

    kind: Literal["open_clip", "timm", "host"] = "open_clip"
    """``open_clip``: any CLIP model, frozen. ``timm``: a convolutional trunk and a small byte-level
    text encoder, both trained: for tests and the embedded default. ``host``: the vision tower of a
    transformers host, frozen, so that one encoding serves host and detector;
    :func:`llava_forgery.kfd.host_config.host_config` reads such a configuration."""
    name: str = "ViT-H-14"
    """Name of the model in open_clip (or ``local-dir:PATH``) or in timm; folder or hub name of the
    host."""
    pretrained: str | None = None
    """open_clip's weights tag or a path; needed to load a saved detector with a frozen tower. For
    a host's tower, the weights of ``text_model``."""
    taps: tuple[int, ...] = (16, 24, 32)
    """open_clip and host: blocks after which patch features are taken, counted from 1; timm:
    indices of the feature stages, counted from 0."""
    text_width: int = 1024
    """Width of the text features, to which the linear layers project the patch features."""
    image_size: int = 224
    """Side of the square input in pixels."""
    text_model: str | None = None
    """Only for a host's tower: the open_clip model whose frozen text tower encodes the
    descriptions. None: the small byte-level encoder, trained with the detector. (The linear layers
    match image and text features, so any text encoder works; CLIP's is pretrained on the words.)"""
    tower: HostTower | None = None
    """Only for a host's tower: its properties."""

    def __post_init__(self) -> None:
        if self.kind not in ENCODERS:
            raise ValueError(f"encoder.kind must be one of {ENCODERS}, got {self.kind!r}")
        if not self.taps or list(self.taps) != sorted(set(self.taps)):
            raise ValueError(f"encoder.taps must be increasing and not empty, got {self.taps}")
        if self.text_width < 1 or self.image_size < 32:
            raise ValueError(
                "encoder.text_width must be at least 1 and encoder.image_size at least 32, got "
                f"{self.text_width} and {self.image_size}"
            )
        object.__setattr__(self, "taps", tuple(self.taps))
        if isinstance(self.tower, dict):
            object.__setattr__(self, "tower", HostTower(**self.tower))
        self._check_tower()

    def _check_tower(self) -> None:
        if (self.tower is not None) != (self.kind == "host"):
            raise ValueError(
                f"encoder.tower is for encoders of kind 'host' and needed there, got kind "
                f"{self.kind!r} and tower {self.tower}; llava_forgery.kfd.host_config.host_config "
                "reads it from a host"
            )
        if self.tower is None:
            if self.text_model is not None:
                raise ValueError(
                    f"encoder.text_model is for encoders of kind 'host', got kind {self.kind!r}"
                )
            return
        if self.taps[0] < 1 or self.taps[-1] > self.tower.layers:
            raise ValueError(
                f"encoder.taps must lie in 1 ... {self.tower.layers}, the blocks of the host's "
                f"tower, got {self.taps}"
            )
        if self.image_size % self.tower.patch_size:
            raise ValueError(
                f"encoder.image_size {self.image_size} is not a multiple of the tower's patch of "
                f"{self.tower.patch_size} pixels"
            )


@dataclass(frozen=True)
class KFDConfig:
    """Everything that determines the detector's tensors."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """The towers."""
    descriptions_real: tuple[str, ...] = (
        "a photo of a real human face",
        "a pristine face photograph with consistent light and skin",
        "an authentic face without any manipulation",
        "a natural face with even colour and sharpness",
    )
    """D_real: texts whose averaged features are the feature of the class real."""
    descriptions_fake: tuple[str, ...] = (
        "a photo of a fake human face",
        "a manipulated face with blending boundaries and colour differences",
        "a forged face with parts pasted from another picture",
        "a deepfake face with uneven colour and sharpness",
    )
    """D_fake: the same for the class fake."""
    context_length: int = 16
    """Number of learned context tokens before each description; shared by all descriptions."""
    heads: Literal["paper", "lite"] = "lite"
    """``paper``: the official sizes, on maps enlarged to the image's size. ``lite``: small heads,
    on maps at patch resolution."""
    temperature: float = 100.0
    """Initial factor of the similarities; learned (its logarithm is the parameter)."""

    def __post_init__(self) -> None:
        if self.heads not in HEADS:
            raise ValueError(f"heads must be one of {HEADS}, got {self.heads!r}")
        if self.context_length < 0:
            raise ValueError(f"context_length must not be negative, got {self.context_length}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be over 0, got {self.temperature}")
        for name in ("descriptions_real", "descriptions_fake"):
            texts = getattr(self, name)
            # A bare string is iterable as well; the official code encoded it letter by letter.
            if isinstance(texts, str) or not texts or not all(isinstance(t, str) for t in texts):
                raise ValueError(f"{name} must be a non-empty list of texts, got {texts!r}")
            object.__setattr__(self, name, tuple(texts))

    @property
    def num_layers(self) -> int:
        """Number of tapped layers and therefore of consistency maps."""
        return len(self.encoder.taps)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "KFDConfig":
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: Keys are unknown, or values are out of range.
        """
        values = dict(values)
        encoder = values.pop("encoder", {})
        try:
            return cls(encoder=EncoderConfig(**encoder), **values)
        except TypeError as error:
            raise ValueError(f"not a configuration of this version's KFD: {error}") from error


PRESETS: dict[str, KFDConfig] = {
    # As in the paper: ImageBind-Huge's towers are open_clip's ViT-H-14 (LVLM-DFD, section 4.1).
    "paper": KFDConfig(
        encoder=EncoderConfig("open_clip", "ViT-H-14", "laion2b_s32b_b79k", (16, 24, 32), 1024),
        heads="paper",
    ),
    # Runs and trains on two CPU cores.
    "tiny": KFDConfig(
        encoder=EncoderConfig("timm", "tf_efficientnet_lite0", None, (1, 2, 3), 128),
        context_length=8,
        temperature=10.0,
    ),
}
