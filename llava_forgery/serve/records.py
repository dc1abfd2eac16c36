"""Verdicts as JSON: the records of ``detect --jsonl``, and maps as PNG or in runs."""

import base64
from typing import Any, Literal

import numpy as np

from llava_forgery.images import png_bytes
from llava_forgery.infer.batch import FileVerdicts
from llava_forgery.infer.verdict import Verdict

MaskForm = Literal["none", "png", "rle"]


def record(name: str, verdicts: list[Verdict], masks: MaskForm = "none") -> dict[str, Any]:
    """The record of one file.

    Args:
        name: What the client calls it.
        verdicts: Of its faces.
        masks: ``png``: ``mask`` of each face is its map as a grey PNG in base64, 255 for 1;
            ``rle``: where it is 0.5 or more, as :func:`run_lengths`.
    """
    result = FileVerdicts(name, faces=verdicts).to_dict()
    for face, verdict in zip(result["faces"], verdicts, strict=True):
        if masks == "png":
            face["mask"] = grey_png(verdict.mask, "map of the forged area, drawn by a detector")
        elif masks == "rle":
            face["mask"] = run_lengths(verdict.mask >= 0.5)
    return result


def grey_png(values: np.ndarray, note: str) -> str:
    """(h, w) in [0, 1] as a grey PNG in base64."""
    # One channel, so that its numbers can be read back.
    grey = (255 * values.clip(0, 1)).round().astype(np.uint8)
    return base64.b64encode(png_bytes(grey, note)).decode()


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """(h, w) of booleans as COCO's uncompressed runs.

    Returns:
        ``size`` [h, w], and ``counts``: columns from the left, each from its top, as lengths of
        runs, the first of them False, perhaps of length 0.
    """
    flat = np.concatenate([[False], mask.T.ravel(), [False]])
    borders = np.flatnonzero(np.diff(flat.astype(np.int8)))
    edges = np.concatenate([[0], borders, [mask.size]])
    counts = np.diff(edges)
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    return {"size": list(mask.shape), "counts": counts.tolist()}
