"""Configuration of the tables: data, hosts, sizes. A JSON file, checked when it is read.

Paths are relative to the folder in which the command runs, as those of the other commands.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any

from llava_forgery.faces.records import SPLITS
from llava_forgery.files import read_json
from llava_forgery.kfd.config import PRESETS


@dataclass(frozen=True)
class DetectorSettings:
    """Stage 1."""

    preset: str = "tiny"
    """Name of a preset; not read where ``config`` is given."""
    config: dict[str, Any] | None = None
    """A whole KFD configuration, as ``kfd_config.json`` holds it."""
    trunk_weights: str | None = None
    """safetensors to start a timm trunk from, such as ``import-efficientnet`` writes."""
    steps: int = 220
    """Optimiser steps."""
    batch_size: int = 8
    """Pairs for each step."""
    learning_rate: float = 1e-3
    """Highest value."""

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {self.preset!r}")
        _check_text("trunk_weights", self.trunk_weights)
        _check(self, whole=("steps", "batch_size"), positive=("learning_rate",))


@dataclass(frozen=True)
class AdapterSettings:
    """Stage 2: conversations, FPL and LoRA."""

    pairs: int = 400
    """Forged faces with conversations; as many pristine ones."""
    steps: int = 100
    """Optimiser steps."""
    align_steps: int = 400
    """Steps of the FPL's warm start; 0 for none. LoRA alone has none."""
    batch_size: int = 8
    """Conversations for each step."""
    learning_rate: float = 1e-3
    """Highest value."""
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
        _check(
            self,
            whole=("pairs", "steps", "batch_size", "lora_r", "lora_alpha"),
            positive=("learning_rate",),
            shares=("follow_ups", "task_descriptions", "kfd_results", "lora_dropout"),
        )
        _check_whole("align_steps", self.align_steps, least=0)
        if self.fpl_learning_rate is not None:
            _check(self, positive=("fpl_learning_rate",))


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
        _check_text("model", self.model, needed=True)
        _check_text("pretrained", self.pretrained)
        _check(
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
        _check_text("model", self.model, needed=True)
        _check_text("weights", self.weights)
        _check(self, whole=("image_size", "steps", "batch_size"), positive=("learning_rate",))


@dataclass(frozen=True)
class HeldOutSettings:
    """A test set: prepared faces, or folders of whole pictures."""

    faces: str | None = None
    """Folder from ``prepare``. Faces of both labels are judged as they are; real faces alone are
    forged by the simulator."""
    split: str = "test"
    """Of the prepared faces."""
    pairs: int | None = None
    """Simulated forgeries; None for two of each face."""
    seed: int = 2
    """Of the simulator: all rows and seeds of a table judge the same forgeries."""
    real: str | None = None
    """Instead of ``faces``: folder of real pictures, judged whole."""
    fake: str | None = None
    """Instead of ``faces``: folder of fake pictures, judged whole."""

    def __post_init__(self) -> None:
        for name in ("faces", "real", "fake"):
            _check_text(name, getattr(self, name))
        _check_whole("seed", self.seed, least=0)
        folders = self.real is not None or self.fake is not None
        if folders == (self.faces is not None):
            raise ValueError(
                f"faces must be given, or instead of it real, fake or both; got faces="
                f"{self.faces!r}, real={self.real!r}, fake={self.fake!r}"
            )
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        if self.pairs is not None:
            _check_whole("pairs", self.pairs)


@dataclass(frozen=True)
class TablesConfig:
    """Everything that a table needs beside its recipe."""

    training_sets: dict[str, str]
    """Name to folder of prepared faces, whose split ``train`` is used; the first is the default."""
    tests: dict[str, HeldOutSettings]
    """Name to test set; names as the paper's (``FF++``, ``CDF2`` ...) get the paper's numbers."""
    hosts: dict[str, str] = field(default_factory=dict)
    """Name to folder or hub name; the first is the default."""
    detector: DetectorSettings = field(default_factory=DetectorSettings)
    """Stage 1."""
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    """Stage 2."""
    clip: ClipSettings | None = None
    """None leaves the rows of CLIP out."""
    self_blended: SelfBlendedSettings | None = None
    """None leaves that row out."""
    image_counts: tuple[int, ...] = (50, 100, 200, 500)
    """Of table 3."""
    train_images: int | None = None
    """Training images of all other tables; None for all."""
    seeds: tuple[int, ...] = (0,)
    """Of training: choice of images, data, weights and order."""
    batch_size: int = 16
    """Images judged at once."""
    resamples: int = 1000
    """For the intervals."""
    workers: int = 1
    """Processes that simulate forgeries for stage 1."""
    save_steps: int | None = 500
    """Steps between checkpoints of a training, from which an interrupted one goes on."""
    records: dict[str, dict[str, str]] = field(default_factory=dict)
    """Row to seed to a file of records that something else wrote."""

    def __post_init__(self) -> None:
        for name in ("training_sets", "tests"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least one set, got {getattr(self, name)}")
        for name in ("training_sets", "hosts"):
            for key, value in getattr(self, name).items():
                _check_text(f"{name}.{key}", value, needed=True)
        for name in ("image_counts", "seeds"):
            if isinstance(getattr(self, name), (str, int)):
                raise ValueError(f"{name} must be a list of numbers, got {getattr(self, name)!r}")
            values = tuple(getattr(self, name))
            least = 0 if name == "seeds" else 1
            for value in values:
                _check_whole(name, value, least)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must hold different numbers, got {list(values)}")
            object.__setattr__(self, name, values)
        for name in ("train_images", "save_steps"):
            if getattr(self, name) is not None:
                _check_whole(name, getattr(self, name))
        _check_whole("batch_size", self.batch_size)
        _check_whole("resamples", self.resamples)
        _check_whole("workers", self.workers, least=0)
        trained = {str(Path(folder)) for folder in self.training_sets.values()}
        for name, test in self.tests.items():
            if test.split == "train" and test.faces and str(Path(test.faces)) in trained:
                raise ValueError(
                    f"tests.{name}.split must not be 'train', got the training faces {test.faces}"
                )


_SECTIONS = {
    "detector": DetectorSettings,
    "adapter": AdapterSettings,
    "clip": ClipSettings,
    "self_blended": SelfBlendedSettings,
}


def read_tables_config(path: str | PathLike, table: str) -> TablesConfig:
    """Read a configuration for one table.

    Args:
        path: JSON with the fields of :class:`TablesConfig`, and perhaps ``tables``: name of a
            table to the fields that differ for it, merged into the others.
        table: Which table it is for.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON, a field is unknown or missing, or a value is not valid; the
            message names field and value.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration {path}")
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(values).__name__}")
    try:
        special = values.pop("tables", {})
        if not isinstance(special, dict):
            raise ValueError(f"tables must be an object, got {special!r}")
        return config_from_dict(_merge(values, special.get(table, {})))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def config_from_dict(values: Mapping[str, Any]) -> TablesConfig:
    """The configuration of plain values.

    Raises:
        ValueError: As :func:`read_tables_config`.
    """
    values = dict(values)
    for name, kind in _SECTIONS.items():
        if values.get(name) is not None:
            values[name] = _build(kind, values[name], f"{name}.")
    if isinstance(values.get("tests"), dict):
        values["tests"] = {
            name: _build(HeldOutSettings, test, f"tests.{name}.")
            for name, test in values["tests"].items()
        }
    return _build(TablesConfig, values, "")


def _build(kind: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"{where.rstrip('.')} must be an object, got {values!r}")
    known = {f.name: f for f in fields(kind)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(
            f"{where}{unknown[0]} is no setting, got the value {values[unknown[0]]!r}; expected "
            f"some of {', '.join(known)}"
        )
    for name, f in known.items():
        needed = f.default is MISSING and f.default_factory is MISSING
        if needed and name not in values:
            raise ValueError(f"{where}{name} is missing")
        wants = dict if str(f.type).startswith("dict") and "None" not in str(f.type) else None
        if wants and name in values and not isinstance(values[name], wants):
            raise ValueError(f"{where}{name} must be an object, got {values[name]!r}")
    try:
        return kind(**values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}{error}") from error


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for name, change in changes.items():
        both = isinstance(change, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merge(merged[name], change) if both else change
    return merged


def _check(
    settings: Any,
    whole: tuple[str, ...] = (),
    positive: tuple[str, ...] = (),
    shares: tuple[str, ...] = (),
) -> None:
    for name in whole:
        _check_whole(name, getattr(settings, name))
    for name in positive:
        value = getattr(settings, name)
        if not _is_number(value) or not value > 0:
            raise ValueError(f"{name} must be a number over 0, got {value!r}")
    for name in shares:
        value = getattr(settings, name)
        if not _is_number(value) or not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {value!r}")


def _check_whole(name: str, value: Any, least: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _check_text(name: str, value: Any, needed: bool = False) -> None:
    if (value is None and not needed) or (isinstance(value, str) and value):
        return
    raise ValueError(f"{name} must be a text that is not empty, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
