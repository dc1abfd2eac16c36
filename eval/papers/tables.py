"""A table of the papers: run its rows, measure their records.

    python -m eval.tables table4 --config eval/configs/london_tiny.json --out OUT

Figures are computed from the records on disk only, at video level: the images of a video are pooled
by their mean. A figure is the mean over seeds; its interval resamples people, the same ones for all
seeds, and so shows the effect of the test set, and the deviation over seeds that of training.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np

from eval.papers.cells import ImageRecord, read_other_records, run_cell
from eval.papers.held_out import data_stamp, judge_held_out
from eval.papers.recipes import ACCURACY, AP, AUC, RECIPES, ModelSpec, Recipe, Row
from eval.papers.table_config import TablesConfig
from eval.papers.table_files import write_table
from eval.papers.table_models import NotRunError, TableModels
from eval.papers.table_settings import HeldOutSettings
from llava_forgery.constants import FAKE
from llava_forgery.evaluation.checks import OneClassError
from llava_forgery.evaluation.intervals import bootstrap_interval
from llava_forgery.evaluation.metrics import auc, average_precision
from llava_forgery.evaluation.video import video_level
from llava_forgery.faces.records import load_faces

logger = logging.getLogger(__name__)

THRESHOLD = 0.5

Cells = Mapping[int, Sequence[ImageRecord]]
"""Seed to records of one row on one test set."""


@dataclass(frozen=True)
class TableEntry:
    """One figure of one row on one test set."""

    row: str
    test: str
    output: str
    """``P(yes)`` or ``score``."""
    figure: str
    """``AUC``, ``AP`` or ``accuracy``."""
    values: Mapping[int, float]
    """Seed to percent."""
    low: float
    """Lower end of the 95 % interval of the mean, in percent."""
    high: float
    """Upper end."""
    images: int
    """In the test set."""
    people: int
    """In the test set."""
    paper: Mapping[str, float] = field(default_factory=dict)
    """Test set of the paper's to what it printed, in percent."""
    note: str = ""
    """What a reader must know of the row."""

    @property
    def mean(self) -> float:
        """Over seeds, in percent."""
        return float(np.mean(list(self.values.values())))

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds (of a sample), in percentage points; None for one seed."""
        values = list(self.values.values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


@dataclass(frozen=True)
class MissingResult:
    """A row that did not run on some test sets."""

    row: str
    tests: tuple[str, ...]
    reason: str
    paper: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Figure to test set to what the paper printed, in percent."""


def run_table(
    name: str,
    config: TablesConfig,
    directory: str | PathLike,
    seeds: Sequence[int] | None = None,
) -> tuple[list[TableEntry], list[MissingResult]]:
    """Run what a table needs and is not there yet; write ``NAME.csv``, ``NAME.md``, ``NAME.json``.

    Args:
        name: Of ``RECIPES``.
        config: Data, hosts and sizes.
        directory: Gets ``cells/``, ``models/`` and the table; other tables may share it.
        seeds: Instead of the configuration's.

    Returns:
        What the table holds, and what could not run.

    Raises:
        ValueError: Unknown table, or a value is not valid.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown table {name!r}; expected one of {', '.join(RECIPES)}")
    recipe, directory = RECIPES[name], Path(directory)
    chosen = tuple(config.seeds if seeds is None else seeds)
    if not chosen or len(set(chosen)) < len(chosen) or min(chosen) < 0:
        raise ValueError(f"seeds must be different numbers from 0 on, got {list(chosen)}")
    models = TableModels(config, directory)
    entries: list[TableEntry] = []
    gaps: list[MissingResult] = []
    for row in recipe.rows(config):
        if row.model is None:
            gaps.append(MissingResult(row.name, recipe.paper_tests, str(row.reason), row.paper))
            continue
        for test, settings in config.tests.items():
            try:
                cells = _cells(models, row.model, test, settings, chosen, directory)
                entries += measure_row(recipe, row, test, cells, config, models.note(row.model))
            except (NotRunError, OneClassError) as error:
                _add(gaps, MissingResult(row.name, (test,), str(error)))
        missing = tuple(t for t in recipe.paper_tests if t not in config.tests)
        if missing:
            paper = {
                figure: {test: numbers[test] for test in missing if test in numbers}
                for figure, numbers in row.paper.items()
            }
            gaps.append(
                MissingResult(
                    row.name, missing, "tests of the configuration has no such set", paper
                )
            )
    write_table(recipe, entries, gaps, chosen, directory, config)
    return entries, gaps


def measure_row(
    recipe: Recipe,
    row: Row,
    test: str,
    cells: Cells,
    config: TablesConfig,
    note: str = "",
) -> list[TableEntry]:
    """The figures of one row on one test set.

    Args:
        recipe: Says which figures.
        row: Gives name and the paper's numbers.
        test: Name of the test set.
        cells: Records by seed, of the same images in the same order.
        config: Gives the number of resamples.
        note: For the table.

    Raises:
        OneClassError: A figure needs real and fake images.
        ValueError: The seeds' records are of different images.
    """
    first = next(iter(cells.values()))
    for seed, records in cells.items():
        if [_subject(r) for r in records] != [_subject(r) for r in first]:
            raise ValueError(f"{row.name} on {test}: seed {seed} judged other images than the rest")
    videos = [
        video_level([r.output for r in rs], [r.video_id for r in rs], [r.label for r in rs])
        for rs in cells.values()
    ]
    owners = {record.video_id: record.identity for record in reversed(first)}
    people = [owners[video] for video in videos[0].video_ids]
    entries = []
    for figure in recipe.figures:
        measure = _MEASURES[figure]

        def mean(labels, *scores, measure=measure) -> float:
            return float(np.mean([measure(labels, one) for one in scores]))

        interval = bootstrap_interval(
            mean,
            videos[0].labels,
            *(video.scores for video in videos),
            groups=people,
            resamples=config.resamples,
        )
        numbers = row.paper.get(figure, {})
        entries.append(
            TableEntry(
                row=row.name,
                test=test,
                output="score" if first[0].p_yes is None else "P(yes)",
                figure=figure,
                values={
                    seed: 100 * measure(video.labels, video.scores)
                    for seed, video in zip(cells, videos, strict=True)
                },
                low=100 * interval.low,
                high=100 * interval.high,
                images=len(first),
                people=len(set(people)),
                paper={test: numbers[test]} if test in numbers else numbers,
                note=note,
            )
        )
    return entries


def _accuracy(labels: np.ndarray, scores: np.ndarray) -> float:
    return float(np.mean((scores >= THRESHOLD) == (labels == FAKE)))


_MEASURES = {AUC: auc, AP: average_precision, ACCURACY: _accuracy}


def _subject(record: ImageRecord) -> tuple[str, str, int]:
    return record.video_id, record.identity, record.label


def _cells(
    models: TableModels,
    spec: ModelSpec,
    test: str,
    settings: HeldOutSettings,
    seeds: Sequence[int],
    directory: Path,
) -> dict[int, list[ImageRecord]]:
    """Records of a row on a test set, by seed."""
    config = models.config
    if spec.kind == "records":
        return _read_records(config, str(spec.records), test)
    try:
        kinds = ("faces", "crops", "csv", "real", "fake")
        folders = {name: getattr(settings, name) for name in kinds}
        stamps = {name: data_stamp(where) for name, where in folders.items() if where is not None}
        if settings.faces is not None:
            # Before anything is trained for it.
            load_faces(settings.faces, split=settings.split)
    except (FileNotFoundError, ValueError) as error:
        raise NotRunError(str(error)) from error
    asked = {"split": settings.split, "pairs": settings.pairs, "seed": settings.seed}
    cells = {}
    for seed in seeds:
        model = models.describe(spec, seed)
        logger.info("%s, seed %d, on %s", spec.kind, seed, test)
        cells[seed] = run_cell(
            directory,
            {"model": model, "test": {**stamps, **asked}},
            lambda seed=seed: judge_held_out(
                models.scorer(spec, seed), settings, config.batch_size
            ),
        )
    return cells


def _read_records(config: TablesConfig, name: str, test: str) -> dict[int, list[ImageRecord]]:
    files = config.records.get(name)
    if not files:
        raise NotRunError(f"records of the configuration has no {name!r}")
    cells = {}
    for seed, path in files.items():
        try:
            cells[int(seed)] = read_other_records(path, test)
        except FileNotFoundError as error:
            raise NotRunError(str(error)) from error
        if not cells[int(seed)]:
            raise NotRunError(f"{path} has no records of the set {test!r}")
    return cells


def _add(gaps: list[MissingResult], gap: MissingResult) -> None:
    """One line for all test sets on which a row has not run for one reason."""
    for i, other in enumerate(gaps):
        if (other.row, other.reason) == (gap.row, gap.reason):
            gaps[i] = MissingResult(
                other.row, (*other.tests, *gap.tests), other.reason, other.paper
            )
            return
    gaps.append(gap)
