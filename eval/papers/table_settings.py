"""Sections of the tables' configuration: what trains, and what is judged."""

from dataclasses import dataclass
from typing import Any

from eval.papers.cells import is_number
from llava_forgery.faces.records import SPLITS
from llava_forgery.kfd.config import PRESETS


@dataclass(frozen=True)
class DetectorSettings:
    """Stage 1."""

    preset: str = "tiny"
    """Name of a preset; not read where ``config`` is given."""
    config: dict[str, Any] | None = None
    """A whole KFD configuration, as ``kfd_config.json`` holds it."""
    trunk_weights: str | None = None
    """safetensors to start a timm trunk from, such as ``convert efficientnet`` writes."""
    steps: int = 220
    """Optimiser steps."""
    batch_size: int = 8
    """Pairs for each step."""
    learning_rate: float = 1e-3
    """Highest value."""
    weight_decay: float = 1e-4
    """AdamW's."""

    def __post_init__(self) -> None:
        check_numbers(self, shares=("weight_decay",))
        if self.preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {self.preset!r}")
        check_text("trunk_weights", self.trunk_weights)
        check_numbers(self, whole=("steps", "batch_size"), positive=("learning_rate",))


@dataclass(frozen=True)
class AdapterSettings:
    """Stage 2: conversations, FPL and LoRA."""

    pairs: int = 400
    """Forged faces with conversations; as many pristine ones."""
    fpl: str = "lite"
    """Sizes of the FPL: ``lite``, or ``paper`` (108 M parameters at the width 4096)."""
    steps: int = 100
    """Optimiser steps."""
    fpl_warmup_steps: int = 400
    """Steps of the FPL's warm start; 0 for none. LoRA alone has none."""
    batch_size: int = 8
    """Conversations for each step."""
    learning_rate: float = 1e-3
    """Highest value."""
    weight_decay: float = 0.0
    """AdamW's."""
    fpl_learning_rate: float | None = None
    """The FPL's; None as ``train_adapter``."""
    follow_ups: float = 0.3
    """As ``build_conversations``."""
    task_descriptions: float = 1.0
    """As ``build_conversations``."""
    kfd_results: float = 1.0
    """As ``build_conversations``."""
    lora_r: int = 32
    """LoRA's rank."""
    lora_alpha: int = 32
    """LoRA's scale."""
    lora_dropout: float = 0.1
    """LoRA's dropout."""

    def __post_init__(self) -> None:
        if self.fpl not in ("lite", "paper"):
            raise ValueError(f"fpl must be lite or paper, got {self.fpl!r}")
        check_numbers(
            self,
            whole=("pairs", "steps", "batch_size", "lora_r", "lora_alpha"),
            positive=("learning_rate",),
            shares=(
                "weight_decay",
                "follow_ups",
                "task_descriptions",
                "kfd_results",
                "lora_dropout",
            ),
        )
        check_whole("fpl_warmup_steps", self.fpl_warmup_steps, least=0)
        if self.fpl_learning_rate is not None:
            check_numbers(self, positive=("fpl_learning_rate",))


@dataclass(frozen=True)
class ClipSettings:
    """Prompt-tuned CLIP and the linear probe."""

    model: str = "ViT-B-32"
    """Name in open_clip, or ``local-dir:PATH``."""
    pretrained: str | None = None
    """open_clip's weights tag or a file; None leaves the weights random, which the table says."""
    image_size: int = 224
    """Side of the square input in pixels."""
    context_length: int = 16
    """Learned context tokens."""
    steps: int = 200
    """Optimiser steps."""
    batch_size: int = 8
    """Pairs for each step."""
    learning_rate: float = 2e-3
    """Highest value."""

    def __post_init__(self) -> None:
        check_text("model", self.model, needed=True)
        check_text("pretrained", self.pretrained)
        check_numbers(
            self,
            whole=("image_size", "context_length", "steps", "batch_size"),
            positive=("learning_rate",),
        )

    @property
    def is_random(self) -> bool:
        """Whether no pretrained weights are named; a local folder carries its own."""
        return self.pretrained is None and not self.model.startswith(("local-dir:", "hf-hub:"))


@dataclass(frozen=True)
class SelfBlendedSettings:
    """A timm classifier trained on self-blended whole faces."""

    model: str = "tf_efficientnet_lite0"
    """Name in timm."""
    weights: str | None = None
    """safetensors of the whole classification model; None starts from random weights."""
    image_size: int = 224
    """Side of the square input in pixels."""
    steps: int = 200
    """Optimiser steps."""
    batch_size: int = 8
    """Pairs for each step."""
    learning_rate: float = 1e-3
    """Highest value."""

    def __post_init__(self) -> None:
        check_text("model", self.model, needed=True)
        check_text("weights", self.weights)
        check_numbers(
            self, whole=("image_size", "steps", "batch_size"), positive=("learning_rate",)
        )


@dataclass(frozen=True)
class HeldOutSettings:
    """A test set: prepared faces, or folders of whole pictures."""

    faces: str | None = None
    """Folder of prepared faces. Faces of both labels are judged as they are; real faces alone are
    forged by the simulator."""
    split: str = "test"
    """Of the prepared faces."""
    pairs: int | None = None
    """Simulated forgeries; None for two of each face."""
    seed: int = 2
    """Of the simulator: all rows and seeds of a table judge the same forgeries."""
    crops: str | None = None
    """Instead of ``faces``: one set of ``eval real``, as ``DIR/SET``; its frames share videos."""
    csv: str | None = None
    """Instead of ``faces``: AntifakePrompt's CSV, whose pictures are judged whole."""
    real: str | None = None
    """Instead of ``faces``: folder of real pictures, judged whole."""
    fake: str | None = None
    """Instead of ``faces``: folder of fake pictures, judged whole."""

    def __post_init__(self) -> None:
        for name in ("faces", "crops", "csv", "real", "fake"):
            check_text(name, getattr(self, name))
        check_whole("seed", self.seed, least=0)
        folders = self.real is not None or self.fake is not None
        given = [name for name in ("faces", "crops", "csv") if getattr(self, name) is not None]
        if folders + len(given) != 1:
            raise ValueError(
                f"faces must be given, or instead of it crops, or csv, or real, fake or both; got "
                f"{', '.join(given) or 'none of the first three'}, real={self.real!r}, "
                f"fake={self.fake!r}"
            )
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        if self.pairs is not None:
            check_whole("pairs", self.pairs)


def check_numbers(
    settings: Any,
    whole: tuple[str, ...] = (),
    positive: tuple[str, ...] = (),
    shares: tuple[str, ...] = (),
) -> None:
    """Raise ``ValueError`` unless the fields named are whole and at least 1, over 0, in [0, 1]."""
    for name in whole:
        check_whole(name, getattr(settings, name))
    for name in positive:
        value = getattr(settings, name)
        if not is_number(value) or not value > 0:
            raise ValueError(f"{name} must be a number over 0, got {value!r}")
    for name in shares:
        value = getattr(settings, name)
        if not is_number(value) or not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {value!r}")


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Raise ``ValueError`` unless the value is a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_text(name: str, value: Any, needed: bool = False) -> None:
    """Raise ``ValueError`` unless the value is a text, or None where it is not needed."""
    if (value is None and not needed) or (isinstance(value, str) and value):
        return
    raise ValueError(f"{name} must be a text that is not empty, got {value!r}")
