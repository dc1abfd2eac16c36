"""Recipe of a detector's training as a JSON file of differences from the defaults.

{"simulator": {"swap": 0.25}, "degradation": {"crf": [18, 40]}, "average": 0.995}
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from os import PathLike
from typing import Any

from llava_forgery.files import read_json
from llava_forgery.kfd.losses import LossWeights
from llava_forgery.simulate.config import SimulatorConfig
from llava_forgery.simulate.degrade import DegradeConfig
from llava_forgery.simulate.pairs import FramingConfig

_PARTS = {
    "simulator": SimulatorConfig,
    "framing": FramingConfig,
    "degradation": DegradeConfig,
    "weights": LossWeights,
    "norm_degradation": DegradeConfig,
}


@dataclass(frozen=True)
class Stage1Recipe:
    """Arguments of :func:`llava_forgery.train.stage1.train_kfd` of the same names."""

    simulator: SimulatorConfig = field(default_factory=SimulatorConfig)
    framing: FramingConfig = field(default_factory=FramingConfig)
    degradation: DegradeConfig = field(default_factory=DegradeConfig)
    weights: LossWeights = field(default_factory=LossWeights)
    average: float = 0.0
    schedule: str = "cosine"
    norm_degradation: DegradeConfig | None = None
    norm_batches: int = 16


def read_recipe(path: str | PathLike) -> Stage1Recipe:
    """Read a recipe.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a JSON object, a name is unknown, or a value is out of range.
    """
    values = dict(_known(read_json(path), Stage1Recipe, str(path)))
    for name, kind in _PARTS.items():
        if name in values:
            given = _known(values[name], kind, f"{name} of {path}")
            ranges = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
            values[name] = kind(**ranges)
    return Stage1Recipe(**values)


def _known(values: Any, kind: type, where: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a JSON object, got {values!r}")
    known = [item.name for item in fields(kind)]
    unknown = [name for name in values if name not in known]
    if unknown:
        raise ValueError(f"{where} has no {', '.join(unknown)}; it has {', '.join(known)}")
    return values
