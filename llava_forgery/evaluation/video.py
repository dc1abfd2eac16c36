"""From the scores of frames to the scores of videos."""

import logging
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from llava_forgery.constants import FAKE
from llava_forgery.evaluation.checks import checked_labels, finite_values, same_length
from llava_forgery.pooling import check_reduction, pool

logger = logging.getLogger(__name__)

GROUPINGS = ("video_id", "deepfakebench")


class VideoScores(NamedTuple):
    """One entry for each video, in the order in which the videos first appear."""

    scores: np.ndarray
    labels: np.ndarray
    video_ids: tuple[Hashable, ...]
    mixed: tuple[Hashable, ...] = ()
    """Groups that hold real and fake frames; only ``grouping="deepfakebench"`` allows them."""


def video_level(
    scores: ArrayLike,
    video_ids: Sequence[Hashable],
    labels: ArrayLike,
    reduce: str = "mean",
    *,
    k: int = 5,
    grouping: str = "video_id",
) -> VideoScores:
    """Scores of videos from the scores of their frames.

    There are two ways to group frames into videos:

    - ``"video_id"``, ours: frames with equal ids. A video that has real and fake frames is an
      error.
    - ``"deepfakebench"``, for comparison with its published figures: ids are the frames' paths,
      and a video is identified by the name of a frame's parent folder only. FaceForensics++ has
      folders of the same name under each manipulation (``Deepfakes/.../000_003``,
      ``Face2Face/.../000_003``), so its four forgeries of a pair become one video with one mean
      score: fewer fakes count, and a missed method is masked by the three that are detected. If
      real and fake folders share a name, the merged video counts as real. Source:
      ``training/metrics/utils.py`` of SCLBD/DeepfakeBench at 35cc2d4. Its mean is the only
      reduction allowed here.

    Args:
        scores: (N,) scores of the frames.
        video_ids: (N,) id of each frame's video; the frame's path for ``"deepfakebench"``.
        labels: (N,) labels, the same for all frames of a video.
        reduce: "mean", "median", "max", or "top_k" for the mean of the ``k`` highest scores.
        k: Number of frames for "top_k"; all are used for a video with fewer.
        grouping: "video_id" or "deepfakebench".

    Raises:
        ValueError: Lengths differ, a value is invalid, or a video's frames differ in label.
    """
    _check_options(reduce, k, grouping)
    scores, labels = finite_values(scores, "scores"), checked_labels(labels)
    same_length(scores=scores, video_ids=video_ids, labels=labels)
    if grouping == "deepfakebench":
        video_ids = [parent_folder(path) for path in video_ids]
    frames = rows_of(video_ids)
    mixed = tuple(v for v, rows in frames.items() if len(set(labels[rows].tolist())) > 1)
    if mixed and grouping == "video_id":
        raise ValueError(
            f"the frames of video {mixed[0]!r} differ in label; do two videos have the same name?"
        )
    if mixed:
        logger.warning(
            "%d of %d groups hold real and fake frames and count as real, as in DeepfakeBench",
            len(mixed),
            len(frames),
        )
    return VideoScores(
        scores=np.array([pool(scores[rows], reduce, k) for rows in frames.values()]),
        labels=np.array([int((labels[rows] == FAKE).all()) for rows in frames.values()]),
        video_ids=tuple(frames),
        mixed=mixed,
    )


def parent_folder(path: Hashable) -> str:
    """Name of the folder of a frame; paths have slashes, or only backslashes.

    Raises:
        ValueError: The path has no folder.
    """
    parts = str(path).split("\\" if "\\" in str(path) else "/")
    if len(parts) < 2 or not parts[-2]:
        raise ValueError(
            f"grouping 'deepfakebench' takes the video from the frame's path, got {path!r}; "
            "expected one such as 'Deepfakes/c23/frames/000_003/017.png'"
        )
    return parts[-2]


def rows_of(ids: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    """Positions of each id, in order of first appearance."""
    rows: dict[Hashable, list[int]] = {}
    for i, name in enumerate(ids):
        rows.setdefault(name, []).append(i)
    return rows


def _check_options(reduce: str, k: int, grouping: str) -> None:
    check_reduction(reduce)
    if grouping not in GROUPINGS:
        raise ValueError(f"grouping must be one of {', '.join(GROUPINGS)}, got {grouping!r}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if grouping == "deepfakebench" and reduce != "mean":
        raise ValueError(f"DeepfakeBench pools frames by their mean only, got reduce={reduce!r}")
