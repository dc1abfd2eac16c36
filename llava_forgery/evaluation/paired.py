"""Paired bootstrap: whether one detector is better than another on the same videos."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from llava_forgery.evaluation.checks import OneClassError
from llava_forgery.evaluation.intervals import PATIENCE, percentiles
from llava_forgery.evaluation.metrics import auc
from llava_forgery.evaluation.records import RECORDS
from llava_forgery.evaluation.scorers import RECORD_NAMES
from llava_forgery.evaluation.video import video_level
from llava_forgery.files import read_json_lines, write_json, write_text

Records = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class PairedDifference:
    """Mean video AUC over sets of two models, and their difference."""

    first: float
    second: float
    difference: float
    low: float
    """Lower end of the 95 % interval over people."""
    high: float
    """Upper end of the 95 % interval over people."""


@dataclass(frozen=True)
class _Videos:
    """The videos of one set under both models."""

    labels: np.ndarray
    first: np.ndarray
    second: np.ndarray
    members: list[list[int]]
    """Numbers of the people of each video."""
    people: int


def paired_difference(
    first: Records,
    second: Records,
    sets: Sequence[str],
    *,
    reduce: str = "mean",
    resamples: int = 1000,
    seed: int = 0,
) -> PairedDifference:
    """Compare the detectors' scores in two records of :func:`~.real.evaluate_real`.

    In each resample both models are measured on the same draw of people, one set at a time, as in
    :func:`~.real.identity_interval`; the mean over the sets is compared.

    Args:
        first: Records of one model.
        second: Records of the other model on the same crops.
        sets: Names of the sets, each with both classes.
        reduce: How the frames of a video are pooled.
        resamples: Number of resamples in which all sets hold both classes.
        seed: Seed of the draws.

    Raises:
        ValueError: The records are of different crops, or hardly any resample holds both classes.
        OneClassError: A set lacks a class.
    """
    if [record["path"] for record in first] != [record["path"] for record in second]:
        raise ValueError(
            "the records are of different crops, expected the same ones in the same order: measure "
            "both models on the same --data"
        )
    videos = [_videos(first, second, name, reduce) for name in sets]
    value = np.mean([_aucs(own, np.ones(len(own.labels), int)) for own in videos], axis=0)
    rng = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    redrawn = 0
    while len(found) < resamples:
        try:
            found.append(np.mean([_aucs(own, _draw(own, rng)) for own in videos], axis=0))
        except OneClassError as error:
            redrawn += 1
            if redrawn > PATIENCE * resamples:
                raise ValueError(
                    "hardly any resample of the people holds both classes in every set: too few "
                    "people for a comparison"
                ) from error
    differences = np.array(found)
    low, high = percentiles(differences[:, 0] - differences[:, 1], 0.95)
    one, two = map(float, value)
    return PairedDifference(one, two, one - two, float(low), float(high))


def _videos(first: Records, second: Records, name: str, reduce: str) -> _Videos:
    column = RECORD_NAMES["kfd"]
    places = [i for i, record in enumerate(first) if record["set"] == name]
    labels = [first[i]["label"] for i in places]
    ids = [(first[i]["method"], first[i]["video"]) for i in places]
    pooled = [
        video_level([records[i][column] for i in places], ids, labels, reduce)
        for records in (first, second)
    ]
    people = {video: tuple(first[i]["identities"]) for i, video in zip(places, ids, strict=True)}
    names = sorted({person for group in people.values() for person in group})
    numbers = {person: i for i, person in enumerate(names)}
    members = [[numbers[person] for person in people[video]] for video in pooled[0].video_ids]
    return _Videos(pooled[0].labels, pooled[0].scores, pooled[1].scores, members, len(names))


def _draw(videos: _Videos, rng: np.random.Generator) -> np.ndarray:
    """Number of times that each video is in a resample."""
    drawn = np.bincount(rng.integers(0, videos.people, videos.people), minlength=videos.people)
    return np.array([drawn[members].prod() for members in videos.members])


def _aucs(videos: _Videos, counts: np.ndarray) -> tuple[float, float]:
    if not counts.any():
        raise OneClassError("the resample holds no video")
    labels = np.repeat(videos.labels, counts)
    return (
        auc(labels, np.repeat(videos.first, counts)),
        auc(labels, np.repeat(videos.second, counts)),
    )


def compare_real(
    output_dir: str | PathLike,
    others: Mapping[str, Records],
    sets: str | None = None,
    reduce: str = "mean",
) -> str:
    """Compare the records of :func:`~.real.evaluate_real` with those of other models.

    Args:
        output_dir: Folder that it wrote; receives ``comparison.json`` and ``comparison.md``.
        others: Records of other models on the same crops, by name of the model.
        sets: Names of sets separated by commas; by default all that hold both classes.
        reduce: How the frames of a video are pooled.

    Returns:
        The table as Markdown.

    Raises:
        ValueError: As for :func:`paired_difference`, or a set is unknown.
    """
    output_dir = Path(output_dir)
    own = read_json_lines(output_dir / RECORDS)
    known = sorted({record["set"] for record in own})
    chosen = (
        [name for name in known if len({r["label"] for r in own if r["set"] == name}) == 2]
        if sets is None
        else sets.split(",")
    )
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise ValueError(f"unknown sets {', '.join(unknown)}, expected some of {', '.join(known)}")
    found = {
        name: paired_difference(own, records, chosen, reduce=reduce)
        for name, records in others.items()
    }
    table = comparison_table(found, chosen)
    differences = {name: asdict(value) for name, value in found.items()}
    write_json(output_dir / "comparison.json", {"sets": chosen, "differences": differences})
    write_text(output_dir / "comparison.md", table)
    return table


def comparison_table(differences: Mapping[str, PairedDifference], sets: Sequence[str]) -> str:
    """A Markdown table with a row for each other model."""
    lines = [
        f"| other model | its mean video AUC over {', '.join(sets)} | this one's | difference |",
        "|---|---|---|---|",
    ]
    for name, own in differences.items():
        interval = f"{own.difference:+.3f} [{own.low:+.3f}, {own.high:+.3f}]"
        lines.append(f"| {name} | {own.second:.3f} | {own.first:.3f} | {interval} |")
    return "\n".join(lines) + "\n"
