"""The comparison of sizes: its settings, its records, its table as CSV and Markdown."""

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eval.papers.table_settings import check_numbers, check_whole
from llava_forgery.kfd.config import HEADS

FIGURES = ("AUC", "mask IoU", "text AUC")
"""Of the detector's score, of its mask at 0.5 on forged images (mean), of P(yes)."""


@dataclass(frozen=True)
class Variant:
    """Sizes of the heads and of the FPL."""

    heads: str
    """``lite`` or ``paper``."""
    fpl: str
    """``lite`` or ``paper``."""

    def __post_init__(self) -> None:
        for name in ("heads", "fpl"):
            if getattr(self, name) not in HEADS:
                raise ValueError(f"{name} must be one of {HEADS}, got {getattr(self, name)!r}")

    def __str__(self) -> str:
        return f"{self.heads} heads, {self.fpl} FPL"


@dataclass(frozen=True)
class VariantSettings:
    """How every variant is trained and judged."""

    image_size: int = 224
    """Side of the detector's input in pixels."""
    kfd_steps: int = 200
    """Optimiser steps of stage 1."""
    kfd_batch_size: int = 8
    """Pairs for each step."""
    pairs: int = 500
    """Forged faces with conversations; as many pristine ones."""
    fpl_warmup_steps: int = 500
    """Steps of the FPL's warm start; 0 for none."""
    align_batch_size: int = 16
    """Images for each of them."""
    steps: int = 200
    """Optimiser steps of stage 2."""
    batch_size: int = 4
    """Conversations for each step."""
    test_pairs: int = 60
    """Number of judged forgeries of test faces, with as many pristine images."""

    def __post_init__(self) -> None:
        whole = tuple(name for name in asdict(self) if name != "fpl_warmup_steps")
        check_numbers(self, whole=whole)
        check_whole("fpl_warmup_steps", self.fpl_warmup_steps, least=0)


@dataclass(frozen=True)
class RunResult:
    """What one variant reached with one seed."""

    heads: str
    fpl: str
    seed: int
    figures: dict[str, float]
    """Of ``FIGURES``, in [0, 1]."""
    parameters: dict[str, int]
    """Of the heads and of the FPL."""
    seconds: dict[str, float]
    """Of ``stage 1``, ``stage 2`` and ``judging``, as this machine was then. Stage 1 is 0 where
    another variant's cell trained the detector."""


def variants_csv(cells: Iterable[RunResult]) -> str:
    """A line for each variant and figure: values by seed, mean and standard deviation."""
    rows = list(_summary(list(cells)))
    seeds = sorted({seed for row in rows for seed in row["values"]})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["heads", "fpl", "figure", *(f"seed {seed}" for seed in seeds), "mean", "std"]
    writer.writerow([*head, "heads parameters", "fpl parameters"])
    for row in rows:
        values = [row["values"].get(seed) for seed in seeds]
        numbers = [*values, row["mean"], row["std"]]
        writer.writerow(
            [row["heads"], row["fpl"], row["figure"]]
            + ["" if number is None else f"{number:.4f}" for number in numbers]
            + [row["parameters"]["heads"], row["parameters"]["fpl"]]
        )
    return text.getvalue()


def variants_markdown(cells: Iterable[RunResult], settings: VariantSettings) -> str:
    """A row for each variant: mean and standard deviation over seeds."""
    cells = list(cells)
    lines = [
        "# Sizes of heads and FPL",
        "",
        "Mean and standard deviation over seeds, on simulated forgeries of people who were not in "
        "training.",
        "",
        "| heads | FPL | seeds | " + " | ".join(FIGURES) + " | heads' parameters | FPL's |",
        "|---" * (5 + len(FIGURES)) + "|",
    ]
    rows = list(_summary(cells))
    for i in range(0, len(rows), len(FIGURES)):
        group = rows[i : i + len(FIGURES)]
        first = group[0]
        figures = [
            f"{row['mean']:.3f}" + ("" if row["std"] is None else f" ± {row['std']:.3f}")
            for row in group
        ]
        counts = [f"{first['parameters'][part]:,}" for part in ("heads", "fpl")]
        seeds = ", ".join(map(str, first["values"]))
        lines.append(
            "| " + " | ".join([first["heads"], first["fpl"], seeds, *figures, *counts]) + " |"
        )
    lines += ["", f"Settings: `{json.dumps(asdict(settings))}`", ""]
    return "\n".join(lines)


def _summary(cells: list[RunResult]) -> Iterable[dict[str, Any]]:
    variants = dict.fromkeys((cell.heads, cell.fpl) for cell in cells)
    for heads, fpl in variants:
        group = [cell for cell in cells if (cell.heads, cell.fpl) == (heads, fpl)]
        for figure in FIGURES:
            values = {cell.seed: cell.figures[figure] for cell in group}
            numbers = list(values.values())
            yield {
                "heads": heads,
                "fpl": fpl,
                "figure": figure,
                "values": values,
                "mean": float(np.mean(numbers)),
                "std": float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None,
                "parameters": group[0].parameters,
            }
