"""What answers in free text say: fake or real, and which regions.

    naming = evaluate.load("eval/metrics/region_naming")
    naming.compute(predictions=["Yes, at the nose.", "No."], references=[["nose"], []])

A reference without regions is a real image.
"""

import datasets
import evaluate

from llava_forgery.constants import FAKE, REAL
from llava_forgery.evaluation.report import answer_report


class RegionNaming(evaluate.Metric):
    """``llava_forgery.evaluation.report.answer_report`` as a metric."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy of yes and no, unparsed answers, and the regions that are named.",
            citation="",
            inputs_description=(
                'predictions: answers to "Is this a deepfake image?"; references: the forged '
                "regions of each image, none for a real one."
            ),
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.List(datasets.Value("string")),
                }
            ),
        )

    def _compute(self, predictions, references):
        labels = [FAKE if regions else REAL for regions in references]
        return answer_report(labels, predictions, references)
