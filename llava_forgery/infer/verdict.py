"""The record that inference gives for a face."""

from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from llava_forgery.qa.answers import parse_answer

# Score and P(yes) both call a face fake from here on.
THRESHOLD = 0.5


def agree(score: float, p_yes: float | None, answer: str) -> bool | None:
    """Whether score and P(yes) call a face the same.

    None where that cannot be told: there is no P(yes), a value is NaN, or the written answer
    calls the face neither real nor fake.
    """
    if p_yes is None or not (isfinite(score) and isfinite(p_yes)):
        return None
    if parse_answer(answer).label is None:
        return None
    return (score >= THRESHOLD) == (p_yes >= THRESHOLD)


@dataclass(frozen=True)
class Verdict:
    """What detector and language model say of one face.

    The two are reported side by side; where they disagree, ``agree`` says so.
    """

    score: float
    """The detector's probability that the face is fake, in [0, 1]."""
    p_yes: float
    """The language model's probability of "Yes" (fake) against "No", in [0, 1], from the
    likelihood of the answers."""
    answer: str
    """The answer that the language model wrote."""
    regions: tuple[str, ...]
    """Regions that the answer names as forged."""
    agree: bool | None
    """Whether score and P(yes) lie on the same side of 0.5; None where :func:`agree` cannot tell,
    such as for an answer that says neither."""
    mask: np.ndarray
    """(S, S) float32 in [0, 1]: the detector's map of the forged area over ``box``."""
    box: tuple[float, float, float, float]
    """(x0, y0, x1, y1): the square that was judged, in pixels of the photograph; it may reach
    outside."""

    @property
    def is_fake(self) -> bool:
        """The verdict by the score."""
        return self.score >= THRESHOLD

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the mask."""
        return {
            "box": [round(float(value), 1) for value in self.box],
            "score": self.score,
            "p_yes": self.p_yes,
            "answer": self.answer,
            "regions": list(self.regions),
            "agree": self.agree,
        }
