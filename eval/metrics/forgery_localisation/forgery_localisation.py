"""Localisation of the forged area: IoU and Dice at a threshold, and pixel AUC.

localisation = evaluate.load("eval/metrics/forgery_localisation")
localisation.compute(predictions=maps, references=masks)
"""

import datasets
import evaluate
import numpy as np

from llava_forgery.evaluation.masks import mask_dice, mask_iou, pixel_auc


class ForgeryLocalisation(evaluate.Metric):
    """The functions of ``llava_forgery.evaluation.masks`` as a metric."""

    def _info(self) -> evaluate.MetricInfo:
        rows = datasets.List(datasets.List(datasets.Value("float32")))
        return evaluate.MetricInfo(
            description="Overlap of predicted maps with the true masks of forged images.",
            citation="",
            inputs_description=(
                "predictions: maps (H, W) in [0, 1]; references: masks (H, W) of 0 and 1, of one "
                "size. Option: threshold (0.5), from which on a pixel is called forged."
            ),
            features=datasets.Features({"predictions": rows, "references": rows}),
        )

    def _compute(self, predictions, references, threshold=0.5):
        maps = _stack("predictions", predictions)
        true = _stack("references", references)
        if not np.isin(true, (0, 1)).all():
            raise ValueError("references must be masks of 0 and 1; compare with a threshold first")
        called, forged = maps >= threshold, true == 1
        return {
            "mask_iou": mask_iou(called, forged),
            "mask_dice": mask_dice(called, forged),
            "pixel_auc": pixel_auc(maps, forged),
        }


def _stack(name, rows):
    """(N, H, W) float32."""
    shapes = {np.shape(row) for row in rows}
    if len(shapes) != 1:
        raise ValueError(f"{name} must be of one size, got {sorted(shapes)}")
    return np.asarray(rows, dtype=np.float32)
