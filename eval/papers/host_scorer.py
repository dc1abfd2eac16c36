"""P(yes) of a host without the skill."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from llava_forgery.evaluation.scorers import DetectorScorer
from llava_forgery.hosts.baseline import BaselineVLM
from llava_forgery.infer.answering import write_answers
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.qa.build import build_prompt


class HostScorer:
    """P(yes) of a host without FPL, from one forward pass; see :class:`.scorers.Scorer`.

    The prompt is the one that a host with the skill gets, without placeholders.

    Args:
        plain: The host.
        kfd: Where its score is to be cited or recorded; on the host's device.
        cite_score: Whether the prompt cites the detector's score.
        size: Side of the images in pixels; by default the detector's, or 224 without one.

    Raises:
        ValueError: A score is to be cited and there is no detector.
    """

    def __init__(
        self,
        plain: BaselineVLM,
        kfd: KnowledgeGuidedForgeryDetector | None,
        cite_score: bool = True,
        size: int | None = None,
    ) -> None:
        if cite_score and kfd is None:
            raise ValueError("cite_score needs a detector, got None; leave the score out instead")
        self.plain = plain.eval()
        self.detector = None if kfd is None else DetectorScorer(kfd)
        self.cite_score = cite_score
        side = 224 if self.detector is None else self.detector.size
        self.size = side if size is None else size
        self.names: tuple[str, ...] = ("p_yes",) if kfd is None else ("kfd", "p_yes")

    def __call__(self, images: Sequence[np.ndarray]) -> dict[str, list[float]]:
        scores = None if self.detector is None else self.detector(images)["kfd"]
        cited = scores if self.cite_score else [None] * len(images)
        prompts = [build_prompt(score) for score in cited]
        pictures = [Image.fromarray(image) for image in images]
        answers = write_answers(self.plain, prompts, pictures, max_new_tokens=1)
        p_yes = [said.p_yes for said in answers]
        return {"p_yes": p_yes} if scores is None else {"kfd": scores, "p_yes": p_yes}
