"""Fairness of a detector: the same figures for each group of people or images."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from llava_forgery.constants import FAKE, REAL
from llava_forgery.evaluation.checks import checked_labels, finite_values, same_length
from llava_forgery.evaluation.metrics import accuracy, auc, error_rates
from llava_forgery.evaluation.video import rows_of
from llava_forgery.tables import read_table

Attributes = Mapping[str, Mapping[str, str]]
"""Each person's value by name of the attribute, such as ``sex``."""
UNKNOWN = "unknown"
_SIZES = (128, 256, 512)


@dataclass(frozen=True)
class GroupScores:
    """Figures of one group; None where the group lacks the class that a figure needs."""

    group: Hashable
    """Value of the attribute, such as a method's name; None for the row of all images."""
    real: int
    """Number of real images."""
    fake: int
    """Number of fake images."""
    auc: float | None
    """Area under the ROC curve."""
    accuracy: float
    """Share of images on the right side of the threshold."""
    fpr: float | None
    """False positive rate: share of the real images that are called fake."""
    fpr_interval: tuple[float, float] | None
    """Wilson's 95 % interval of the FPR; wide for small groups."""
    fnr: float | None
    """False negative rate: share of the fake images that are called real."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and tables."""
        return asdict(self)


def group_table(
    labels: ArrayLike,
    scores: ArrayLike,
    groups: Sequence[Hashable],
    threshold: float = 0.5,
    *,
    share_real: bool = False,
) -> list[GroupScores]:
    """Figures of each group, in order of first appearance, followed by those of all images.

    Args:
        labels: (N,) of 0 and 1.
        scores: (N,) finite, higher for fake.
        groups: (N,) group of each image: attribute of the person, method, split ... Errors of the
            frames of one video are correlated: pool them first (``video_level``), or the intervals
            are too narrow.
        threshold: Score from which an image is called fake; the same for all groups.
        share_real: Compare each group's fakes with the real images of all groups, as for groups by
            method of forgery. Groups without fakes then have no row.

    Raises:
        ValueError: Lengths differ or a value is invalid.
    """
    labels, scores = checked_labels(labels), finite_values(scores, "scores")
    same_length(labels=labels, scores=scores, groups=groups)
    real = np.flatnonzero(labels == REAL)
    table = []
    for group, members in rows_of(groups).items():
        rows = np.array(members)
        if share_real:
            rows = rows[labels[rows] == FAKE]
            if not len(rows):
                continue
            rows = np.concatenate([real, rows])
        table.append(_figures(group, labels[rows], scores[rows], threshold))
    return [*table, _figures(None, labels, scores, threshold)]


def read_attributes(path: str | PathLike) -> dict[str, dict[str, str]]:
    """Attributes of people from a CSV with the column ``identity`` and one for each attribute.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file has no attribute, or two rows for a person.
    """
    found: dict[str, dict[str, str]] = {}
    known: set[str] = set()
    for where, row in read_table(path, ("identity",), None):
        person = row.pop("identity")
        if person in known or not row:
            raise ValueError(
                f"{where}: expected one row for each identity, with at least one other "
                f"attribute, got {person!r} {'again' if person in known else 'without any'}"
            )
        known.add(person)
        for name, value in row.items():
            found.setdefault(name, {})[person] = value or UNKNOWN
    return found


def attribute_tables(
    records: Sequence[Mapping[str, Any]],
    scores: Mapping[str, tuple[np.ndarray, float]],
    attributes: Attributes | None = None,
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """:func:`group_table` by attributes of people, by size of the face and by compression.

    Attributes with a single value have no table; people without a value are ``unknown``.

    Args:
        records: One record for each image, or for each video, with ``identity``, ``label`` and, if
            known, ``face_size`` (side of the crop in pixels of the source) and ``compression``.
        scores: Name to (N,) scores and the threshold of fakes.
        attributes: Output of :func:`read_attributes`.
    """
    values: dict[str, list[str]] = {
        name: [of.get(record["identity"], UNKNOWN) for record in records]
        for name, of in (attributes or {}).items()
    }
    values["face size"] = [_size_class(record.get("face_size")) for record in records]
    values["compression"] = [record.get("compression") or UNKNOWN for record in records]
    labels = [record["label"] for record in records]
    return {
        attribute: {
            name: [row.to_dict() for row in group_table(labels, of, groups, threshold)]
            for name, (of, threshold) in scores.items()
        }
        for attribute, groups in values.items()
        if len(set(groups)) > 1
    }


def _size_class(side: float | None) -> str:
    if side is None:
        return UNKNOWN
    above = [size for size in _SIZES if side < size]
    return f"under {above[0]} pixels" if above else f"{_SIZES[-1]} pixels and more"


def fpr_gap(table: Sequence[GroupScores]) -> float | None:
    """Difference between the largest and smallest FPR of the groups; None for fewer than two."""
    rates = [row.fpr for row in table if row.group is not None]
    known = [rate for rate in rates if rate is not None]
    return max(known) - min(known) if len(known) > 1 else None


def _figures(
    group: Hashable, labels: np.ndarray, scores: np.ndarray, threshold: float
) -> GroupScores:
    fake = int((labels == FAKE).sum())
    real = len(labels) - fake
    fpr, fnr = error_rates(labels, scores, threshold)
    interval = None
    if real:
        alarms = int((scores[labels == REAL] >= threshold).sum())
        ends = binomtest(alarms, real).proportion_ci(0.95, method="wilson")
        interval = (float(ends.low), float(ends.high))
    return GroupScores(
        group=group,
        real=real,
        fake=fake,
        auc=auc(labels, scores) if real and fake else None,
        accuracy=accuracy(labels, (scores >= threshold).astype(int)),
        fpr=fpr,
        fpr_interval=interval,
        fnr=fnr,
    )
