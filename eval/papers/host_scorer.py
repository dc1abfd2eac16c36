"""P(yes) of a host without the skill."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image

from llava_forgery.constants import FAKE
from llava_forgery.evaluation.scorers import DetectorScorer
from llava_forgery.hosts.baseline import BaselineVLM
from llava_forgery.hosts.likelihood import answer_probabilities
from llava_forgery.hosts.pseudo_word import PseudoWordConfig
from llava_forgery.infer.answering import write_answers
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.qa.build import build_prompt
from llava_forgery.qa.conversation import Conversation, Message


class HostScorer:
    """P(yes) of a host without FPL, from one forward pass; see :class:`.scorers.Scorer`.

    The prompt is the one that a host with the skill gets, without placeholders; or AntifakePrompt's
    question, to which "no" says fake: the likelihood of "no" against "yes" then stands for P(yes).

    Args:
        plain: The host.
        kfd: Where its score is to be cited or recorded; on the host's device.
        cite_score: Whether the prompt cites the detector's score.
        question: "deepfake", or "photo" for AntifakePrompt's.
        size: Side of the images in pixels; by default the detector's, or 224 without one.

    Raises:
        ValueError: A score is to be cited without a detector, or in AntifakePrompt's question.
    """

    def __init__(
        self,
        plain: BaselineVLM,
        kfd: KnowledgeGuidedForgeryDetector | None,
        cite_score: bool = True,
        question: Literal["deepfake", "photo"] = "deepfake",
        size: int | None = None,
    ) -> None:
        if cite_score and kfd is None:
            raise ValueError("cite_score needs a detector, got None; leave the score out instead")
        if cite_score and question == "photo":
            raise ValueError("AntifakePrompt's question cites no score; set cite_score to False")
        self.plain, self.question = plain.eval(), question
        self.detector = None if kfd is None else DetectorScorer(kfd)
        self.cite_score = cite_score
        side = 224 if self.detector is None else self.detector.size
        self.size = side if size is None else size
        self.names: tuple[str, ...] = ("p_yes",) if kfd is None else ("kfd", "p_yes")

    def __call__(self, images: Sequence[np.ndarray]) -> dict[str, list[float]]:
        scores = None if self.detector is None else self.detector(images)["kfd"]
        pictures = [Image.fromarray(image) for image in images]
        if self.question == "photo":
            p_yes = [self._p_fake(picture) for picture in pictures]
        else:
            cited = scores if self.cite_score else [None] * len(images)
            prompts = [build_prompt(score) for score in cited]
            answers = write_answers(self.plain, prompts, pictures, max_new_tokens=1)
            p_yes = [said.p_yes for said in answers]
        return {"p_yes": p_yes} if scores is None else {"kfd": scores, "p_yes": p_yes}

    def _p_fake(self, picture: Image.Image) -> float:
        asked = PseudoWordConfig()
        prompt = Conversation((Message("user", asked.question),), label=None)
        return float(answer_probabilities(self.plain, prompt, asked.answers, picture)[FAKE])
