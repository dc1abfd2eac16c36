"""Configuration of the tables: data, hosts, sizes. A JSON file, checked when it is read.

Paths are relative to the folder in which the command runs, as those of the other commands.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any

from eval.papers.table_settings import (
    AdapterSettings,
    ClipSettings,
    DetectorSettings,
    HeldOutSettings,
    SelfBlendedSettings,
    check_text,
    check_whole,
)
from llava_forgery.files import read_json


@dataclass(frozen=True)
class TablesConfig:
    """Everything that a table needs besides its recipe."""

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
    """None omits the rows of CLIP."""
    self_blended: SelfBlendedSettings | None = None
    """None omits that row."""
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
    """Steps between checkpoints of a training, from which an interrupted one resumes."""
    records: dict[str, dict[str, str]] = field(default_factory=dict)
    """Row to seed to a file of records that something else wrote."""

    def __post_init__(self) -> None:
        for name in ("training_sets", "tests"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least one set, got {getattr(self, name)}")
        for name in ("training_sets", "hosts"):
            for key, value in getattr(self, name).items():
                check_text(f"{name}.{key}", value, needed=True)
        for name in ("image_counts", "seeds"):
            if isinstance(getattr(self, name), (str, int)):
                raise ValueError(f"{name} must be a list of numbers, got {getattr(self, name)!r}")
            values = tuple(getattr(self, name))
            least = 0 if name == "seeds" else 1
            for value in values:
                check_whole(name, value, least)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must hold different numbers, got {list(values)}")
            object.__setattr__(self, name, values)
        for name in ("train_images", "save_steps"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name))
        check_whole("batch_size", self.batch_size)
        check_whole("resamples", self.resamples)
        check_whole("workers", self.workers, least=0)
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
        return config_from_dict(merge(values, special.get(table, {})))
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


def merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``values`` with ``changes``, merged recursively."""
    merged = dict(values)
    for name, change in changes.items():
        both = isinstance(change, dict) and isinstance(merged.get(name), dict)
        merged[name] = merge(merged[name], change) if both else change
    return merged
