"""Evaluate a detector, or a host with the skill, on faces that are real or fake by themselves.

Such as the frames of a benchmark; what the simulator forges is measured in
:mod:`llava_forgery.evaluation.simulated`.
"""

from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from llava_forgery.evaluation.groups import group_table
from llava_forgery.evaluation.images import ManifestImages
from llava_forgery.evaluation.leaks import people_in_training
from llava_forgery.evaluation.records import KeptRecords
from llava_forgery.evaluation.report import agreement_report, detection_report
from llava_forgery.evaluation.scorers import RECORD_NAMES, Scorer, named_scores
from llava_forgery.evaluation.video import video_level
from llava_forgery.files import write_json
from llava_forgery.infer.verdict import P_YES_THRESHOLD
from llava_forgery.kfd.calibration import Thresholds
from llava_forgery.pooling import check_reduction

# Under which names the figures stand, as for simulated forgeries.
METRIC_NAMES = {"kfd": "kfd", "p_yes": "text"}
_COPIED = ("source", "frame", "track", "video_id", "identity", "method", "compression", "label")
UNKNOWN_METHOD = "unknown"


def evaluate_labelled(
    scorer: Scorer,
    faces: datasets.Dataset,
    output_dir: str | PathLike,
    *,
    batch_size: int = 16,
    reduce: str = "mean",
    thresholds: Thresholds | None = None,
) -> dict[str, Any]:
    """Score every face, and pool them to videos.

    Answers are not written: text figures are those of P(yes).

    Args:
        scorer: A detector alone, or a host with the skill.
        faces: Rows of ``FaceCrop``, real, fake or both; of one class alone its error rate is told.
        output_dir: Receives ``records.jsonl`` (a line for each face) and ``metrics.json``. What
            an interrupted call has judged of the same faces with the same weights is kept.
        batch_size: Faces that are scored at once.
        reduce: How the frames of a video are pooled; see
            :func:`~llava_forgery.evaluation.video.video_level`.
        thresholds: Of the detector's score; None for a detector without a calibration. P(yes)
            calls a face fake from 0.5 on.

    Returns:
        ``images``, ``videos``, ``pooling``; ``kfd`` and, with a host, ``text``, each the
        :func:`~llava_forgery.evaluation.report.detection_report` of frames and videos, with
        ``methods``: for each method of forgery its videos' figures against all real ones; with a
        host ``agreement``, of the frames, and ``agreement_if_certain`` and ``uncertain``; see
        :func:`~llava_forgery.evaluation.report.agreement_report`.

    Raises:
        ValueError: A video's faces differ in label, or an interrupted call had other settings.
    """
    check_reduction(reduce)
    images = ManifestImages(faces, scorer.size)
    # Labels that do not fit each other show before hours of scoring, not after.
    video_level(np.zeros(len(images)), images.groups, images.labels)
    known = faces.select_columns([name for name in _COPIED if name in faces.column_names])
    settings = {"scores": scorer.names, "images": images.describe()}
    with KeptRecords(output_dir, settings, scorer.model, batch_size) as kept:
        for rows in kept.batches(len(images), "evaluate"):
            scores = named_scores(scorer, [images[row].image for row in rows])
            kept.add([{**known[row], **own} for row, own in zip(rows, scores, strict=True)])
        metrics = {
            **summarise_labelled(kept.records, reduce, thresholds),
            "people_in_training": people_in_training(scorer.model, faces["identity"]),
        }
        write_json(Path(output_dir) / "metrics.json", metrics)
        kept.finish()
    return metrics


def summarise_labelled(
    records: list[dict[str, Any]], reduce: str = "mean", thresholds: Thresholds | None = None
) -> dict[str, Any]:
    """The figures of :func:`evaluate_labelled` from its records."""
    thresholds = thresholds or Thresholds()
    labels = [record["label"] for record in records]
    videos = [record["video_id"] for record in records]
    methods = {r["video_id"]: r.get("method") or UNKNOWN_METHOD for r in records}
    metrics: dict[str, Any] = {
        "images": len(records),
        "videos": len(methods),
        "pooling": reduce,
        "thresholds": asdict(thresholds),
    }
    columns = {
        name: np.array([record[column] for record in records])
        for name, column in RECORD_NAMES.items()
        if column in records[0]
    }
    for name, scores in columns.items():
        threshold = thresholds.fake if name == "kfd" else P_YES_THRESHOLD
        pooled = video_level(scores, videos, labels, reduce)
        *groups, _ = group_table(
            pooled.labels,
            pooled.scores,
            [methods[video] for video in pooled.video_ids],
            threshold,
            share_real=True,
        )
        metrics[METRIC_NAMES[name]] = {
            **detection_report(labels, scores, videos, reduce=reduce, threshold=threshold),
            "methods": [group.to_dict() for group in groups],
        }
    if len(columns) == len(RECORD_NAMES):
        metrics |= agreement_report(columns["kfd"], columns["p_yes"], thresholds)
    return metrics
