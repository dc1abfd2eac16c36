"""Detection of forged images: AUC, AP, EER, TPR at FPR, accuracy, calibration, with intervals.

detection = evaluate.load("eval/metrics/forgery_detection")
detection.compute(predictions=[0.2, 0.9], references=[0, 1])

videos = evaluate.load("eval/metrics/forgery_detection", "video")
videos.compute(predictions=..., references=..., video_ids=[...], reduce="top_k", k=3)
"""

import datasets
import evaluate

from llava_forgery.evaluation.report import detection_report

CONFIGS = ("default", "video")


class ForgeryDetection(evaluate.Metric):
    """``llava_forgery.evaluation.report.detection_report`` as a metric."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in CONFIGS:
            raise ValueError(f"expected a config of {', '.join(CONFIGS)}, got {self.config_name!r}")
        features = {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
        if self.config_name == "video":
            features["video_ids"] = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Frame-level and video-level detection of forged images.",
            citation="",
            inputs_description=(
                "predictions: scores, higher for fake; references: 0 real, 1 fake; video_ids: for "
                "the config 'video'. Options as detection_report's: reduce, k, grouping, "
                "threshold, are_probabilities, resamples, confidence, seed."
            ),
            features=datasets.Features(features),
        )

    def _compute(self, predictions, references, video_ids=None, **options):
        return detection_report(references, predictions, video_ids, **options)
