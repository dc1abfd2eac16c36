"""The stages of a scan: classes whose instances Ray Data keeps in processes of their own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import torch

from llava_forgery.images import set_pixel_limit
from llava_forgery.infer.predictor import ANSWERS
from llava_forgery.scan.columns import from_columns, to_columns
from llava_forgery.scan.judge import Judge, JudgeSettings
from llava_forgery.scan.models import ModelSettings
from llava_forgery.scan.reader import Reader, ReadSettings
from llava_forgery.scan.registry import Registry
from llava_forgery.scan.results import Result, to_result
from llava_forgery.scan.schema import versions
from llava_forgery.scan.units import Item, Unit


@dataclass(frozen=True)
class ScanSettings:
    """All that decides the records beside the files."""

    model: ModelSettings
    answers: str = "flagged"
    """For which faces the language model is asked: ``none``, ``flagged`` or ``all``."""
    read: ReadSettings = field(default_factory=ReadSettings)
    judge: JudgeSettings = field(default_factory=JudgeSettings)

    def __post_init__(self) -> None:
        if self.answers not in ANSWERS:
            raise ValueError(f"answers must be one of {', '.join(ANSWERS)}, got {self.answers!r}")

    def provenance(self) -> dict[str, str]:
        """Columns of a record that are the same for all files of a run."""
        return {
            "answers": self.answers,
            "model": self.model.model or "shipped",
            "weights": self.model.weights,
            "versions": versions(),
        }

    def decisive(self) -> dict[str, Any]:
        """What must be the same when a scan is resumed, as JSON takes it."""
        return {
            "weights": self.model.weights,
            "base_model": self.model.base_model,
            "face_detector": self.model.face_detector,
            "answers": self.answers,
            "frames": asdict(self.read.frames),
            "cropped": self.read.cropped,
            "max_pixels": self.read.max_pixels,
            "pool": self.judge.reduce,
            "overlays": self.judge.overlays,
            "masks": self.judge.masks,
        }


class ReadStage:
    """Units to items with their faces.

    Args:
        settings: Of the scan.
        registry: What :class:`Reader` asks.
    """

    name = "read"

    def __init__(self, settings: ScanSettings, registry: Any) -> None:
        _one_thread()
        self._reader = Reader(settings.model.finder(), settings.read, registry)

    def __call__(self, table: pa.Table) -> pa.Table:
        return to_columns(Item, self._reader(from_columns(Unit, table)))


class JudgeStage:
    """Items to items with verdicts; the last of these stages gives results.

    Args:
        settings: Of the scan.
        asks: Whether the language model is asked.
        provenance: Of the records; None where another stage follows.
    """

    def __init__(
        self, settings: ScanSettings, asks: bool, provenance: Mapping[str, str] | None
    ) -> None:
        if not torch.cuda.is_available():
            _one_thread()
        if settings.read.max_pixels is not None:
            set_pixel_limit(settings.read.max_pixels)
        model = settings.model
        self._provenance = provenance
        self._judge = Judge(
            model.predictor("all" if asks else "none"),
            settings.judge,
            flagged_only=asks and settings.answers == "flagged",
            is_last=provenance is not None,
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        items = self._judge(from_columns(Item, table))
        if self._provenance is None:
            return to_columns(Item, items)
        return to_columns(Result, (to_result(item, self._provenance) for item in items))


class DetectStage(JudgeStage):
    """The detector's part."""

    name = "detect"


class AskStage(JudgeStage):
    """The language model's part."""

    name = "ask"


Stage = tuple[type, tuple[Any, ...]]


def list_stages(settings: ScanSettings, registry: Any) -> list[Stage]:
    """Classes and their arguments, in the order in which a unit passes them."""
    provenance = settings.provenance()
    stages: list[Stage] = [(ReadStage, (settings, registry))]
    if settings.answers != "all":
        last = settings.answers == "none"
        stages.append((DetectStage, (settings, False, provenance if last else None)))
    if settings.answers != "none":
        stages.append((AskStage, (settings, True, provenance)))
    return stages


def judge_here(
    settings: ScanSettings, registry: Registry | None = None
) -> Callable[[Sequence[Unit]], list[Result]]:
    """All stages in this process, one after the other: for a few files.

    Args:
        settings: Of the scan.
        registry: Knows what was judged before; None knows nothing.
    """
    stages = [kind(*arguments) for kind, arguments in list_stages(settings, registry or Registry())]

    def run(units: Sequence[Unit]) -> list[Result]:
        table = to_columns(Unit, units)
        for stage in stages:
            table = stage(table)
        return from_columns(Result, table)

    return run


def _one_thread() -> None:
    # As many processes as processors: with more threads they wait for each other.
    torch.set_num_threads(1)
