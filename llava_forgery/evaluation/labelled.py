"""Evaluate a detector, or a host with the skill, on faces with labels of their own.

These are, for example, the frames of a benchmark; simulated forgeries are measured in
:mod:`llava_forgery.evaluation.simulated`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from os import PathLike
from typing import Any

import datasets
import numpy as np

from llava_forgery.constants import FAKE
from llava_forgery.evaluation.groups import Attributes, attribute_tables, group_table
from llava_forgery.evaluation.images import ManifestImages
from llava_forgery.evaluation.leaks import people_in_training
from llava_forgery.evaluation.masks import mask_iou
from llava_forgery.evaluation.metrics import region_scores
from llava_forgery.evaluation.records import KeptRecords
from llava_forgery.evaluation.report import agreement_report, detection_report
from llava_forgery.evaluation.scorers import RECORD_NAMES, Scorer, named_scores
from llava_forgery.evaluation.video import video_level
from llava_forgery.infer.verdict import P_YES_THRESHOLD
from llava_forgery.kfd.calibration import Thresholds
from llava_forgery.pooling import check_reduction
from llava_forgery.qa.mask_regions import covered_regions

# Names of the scores' figures, as for simulated forgeries.
METRIC_NAMES = {"kfd": "kfd", "p_yes": "text", "p_yes_uncited": "text_uncited"}
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
    attributes: Attributes | None = None,
) -> dict[str, Any]:
    """Score every face, and pool them to videos.

    No answers are generated: the text figures are those of P(yes).

    Args:
        scorer: A detector, or a host with the skill.
        faces: Rows of ``FaceCrop``: real, fake or both; if only one class, its error rate is
            reported.
        output_dir: Receives ``records.jsonl`` (a line for each face) and ``metrics.json``. An
            interrupted call resumes if faces and weights are the same.
        batch_size: Number of faces scored at once.
        reduce: How the frames of a video are pooled; see
            :func:`~llava_forgery.evaluation.video.video_level`.
        thresholds: Thresholds of the detector's score; None for a detector without a calibration.
            P(yes) calls a face fake from 0.5 on.
        attributes: Attributes of people, from
            :func:`~llava_forgery.evaluation.groups.read_attributes`.

    Returns:
        ``images``, ``videos``, ``people``, ``pooling``; ``kfd`` and, with a host, ``text``, each
        the :func:`~llava_forgery.evaluation.report.detection_report` of frames and videos, with
        ``methods``: for each method of forgery the figures of its videos against all real ones;
        with a host ``agreement``, ``agreement_if_certain`` and ``uncertain`` of the frames; see
        :func:`~llava_forgery.evaluation.report.agreement_report`. ``groups``: the videos' figures
        by attribute and score, see :func:`~llava_forgery.evaluation.groups.attribute_tables`;
        ``mask`` if fakes have masks, see :func:`mask_report`.

    Raises:
        ValueError: A video's faces differ in label, or an interrupted call had different settings.
    """
    check_reduction(reduce)
    images = ManifestImages(faces, scorer.size)
    # Inconsistent labels fail before hours of scoring, not after.
    video_level(np.zeros(len(images)), images.groups, images.labels)
    known = faces.select_columns([name for name in _COPIED if name in faces.column_names])
    sizes = [right - left for left, _, right, _ in faces["box"]]
    settings = {"scores": scorer.names, "images": images.describe()}
    with KeptRecords(output_dir, settings, scorer.model, batch_size) as kept:
        for rows in kept.batches(len(images), "evaluate"):
            shown = [images[row].image for row in rows]
            scores = named_scores(scorer, shown)
            found = _mask_records(scorer, images, rows, shown)
            kept.add(
                [
                    {**known[row], "face_size": sizes[row], **own, **more}
                    for row, own, more in zip(rows, scores, found, strict=True)
                ]
            )
        metrics = {
            **summarise_labelled(kept.records, reduce, thresholds, attributes),
            "people_in_training": people_in_training(scorer.model, faces["identity"]),
        }
        kept.finish(metrics)
    return metrics


def _mask_records(
    scorer: Scorer, images: ManifestImages, rows: Sequence[int], shown: Sequence[np.ndarray]
) -> list[dict[str, Any]]:
    """Mask figures to add to each record whose fake has a mask, from the detector's map."""
    found: list[dict[str, Any]] = [{} for _ in rows]
    truths = [images.truth(row) if images.labels[row] == FAKE else None for row in rows]
    asked = [i for i, truth in enumerate(truths) if truth is not None]
    if not asked or not hasattr(scorer, "masks"):
        return found
    for i, drawn in zip(asked, scorer.masks([shown[i] for i in asked]), strict=True):
        mask, landmarks = truths[i]
        found[i] = {
            "mask_iou": mask_iou(drawn[None] > 0.5, mask[None] > 127),
            "regions": list(covered_regions(mask, landmarks)),
            "mask_regions": list(covered_regions(np.uint8(255 * drawn), landmarks)),
        }
    return found


def mask_report(records: Sequence[dict[str, Any]]) -> dict[str, float | int] | None:
    """Figures of the detector's maps against a benchmark's masks, at video level.

    A video gets the mean of its frames' IoU and the regions that at least half of its frames have.

    Args:
        records: Records; those with ``mask_iou`` count, which are frames of fakes with a mask that
            is not empty.

    Returns:
        ``frames``, ``videos``, ``iou`` (mean over videos; masks thresholded at 0.5), and over the
        videos whose mask covers a region ``region_precision``, ``region_recall`` and ``region_f1``;
        None without any mask.
    """
    videos: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record.get("mask_iou") is not None:
            videos.setdefault(record["video_id"], []).append(record)
    if not videos:
        return None
    report: dict[str, float | int] = {
        "frames": sum(map(len, videos.values())),
        "videos": len(videos),
        "iou": float(np.mean([np.mean([r["mask_iou"] for r in of]) for of in videos.values()])),
    }
    named = [
        (_usual(frames, "mask_regions"), true)
        for frames in videos.values()
        if (true := _usual(frames, "regions"))
    ]
    if named:
        figures = region_scores(*zip(*named, strict=True))
        report |= {f"region_{name}": value for name, value in figures._asdict().items()}
    return report


def _usual(frames: Sequence[dict[str, Any]], column: str) -> list[str]:
    counts = Counter(name for frame in frames for name in frame[column])
    return [name for name, count in counts.items() if 2 * count >= len(frames)]


def summarise_labelled(
    records: list[dict[str, Any]],
    reduce: str = "mean",
    thresholds: Thresholds | None = None,
    attributes: Attributes | None = None,
) -> dict[str, Any]:
    """The figures of :func:`evaluate_labelled` from its records."""
    thresholds = thresholds or Thresholds()
    labels = [record["label"] for record in records]
    videos = [record["video_id"] for record in records]
    methods = {r["video_id"]: r.get("method") or UNKNOWN_METHOD for r in records}
    metrics: dict[str, Any] = {
        "images": len(records),
        "videos": len(methods),
        "people": len({record["identity"] for record in records}),
        "pooling": reduce,
        "thresholds": asdict(thresholds),
    }
    columns = {
        name: np.array([record[column] for record in records])
        for name, column in RECORD_NAMES.items()
        if column in records[0]
    }
    firsts = {record["video_id"]: record for record in reversed(records)}
    of_videos: dict[str, tuple[np.ndarray, float]] = {}
    for name, scores in columns.items():
        threshold = thresholds.fake if name == "kfd" else P_YES_THRESHOLD
        pooled = video_level(scores, videos, labels, reduce)
        of_videos[METRIC_NAMES[name]] = pooled.scores, threshold
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
    rows = [firsts[video] for video in pooled.video_ids]
    metrics["groups"] = attribute_tables(rows, of_videos, attributes)
    if (masks := mask_report(records)) is not None:
        metrics["mask"] = masks
    if "p_yes" in columns:
        metrics |= agreement_report(columns["kfd"], columns["p_yes"], thresholds)
    return metrics
