"""The record that inference gives for a face."""

from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np

from llava_forgery.kfd.calibration import Thresholds
from llava_forgery.qa.answers import parse_answer

# "Yes" is likelier than "No" from here on.
P_YES_THRESHOLD = 0.5


def agree(
    score: float, p_yes: float | None, answer: str | None, threshold: float = 0.5
) -> bool | None:
    """Whether score and P(yes) call a face the same.

    None where that cannot be told: there is no P(yes) or answer, a value is NaN, or the written
    answer calls the face neither real nor fake.

    Args:
        score: The detector's, in [0, 1].
        p_yes: The language model's, in [0, 1].
        answer: What it wrote.
        threshold: Score from which on the detector calls a face fake.
    """
    if p_yes is None or not (isfinite(score) and isfinite(p_yes)):
        return None
    if answer is None or parse_answer(answer).label is None:
        return None
    return (score >= threshold) == (p_yes >= P_YES_THRESHOLD)


@dataclass(frozen=True)
class Verdict:
    """What detector and language model say of one face.

    The two are reported side by side; where they disagree, ``agree`` says so.
    """

    score: float
    """The detector's probability that the face is fake, in [0, 1]; calibrated where the detector
    is."""
    p_yes: float | None
    """The language model's probability of "Yes" (fake) against "No", in [0, 1], from the
    likelihood of the answers; None where it was not asked."""
    answer: str | None
    """The answer that the language model wrote; None where it was not asked."""
    regions: tuple[str, ...]
    """Regions that the answer names as forged; where it is ``truncated`` there may be more."""
    agree: bool | None
    """Whether score and P(yes) call the face the same; None where :func:`agree` cannot tell, such
    as for an answer that says neither."""
    mask: np.ndarray
    """(S, S) float32 in [0, 1]: the detector's map of the forged area over ``box``."""
    box: tuple[float, float, float, float]
    """(x0, y0, x1, y1): the square that was judged, in pixels of the photograph; it may reach
    outside."""
    thresholds: Thresholds = field(default=Thresholds(), kw_only=True)
    """Of the score, from the detector's calibration."""
    truncated: bool = field(default=False, kw_only=True)
    """Whether the answer was cut off at the most tokens."""
    warnings: tuple[str, ...] = field(default=(), kw_only=True)
    """How the face differs from what the detector was calibrated on; the score says less then."""

    @property
    def is_fake(self) -> bool:
        """Whether the score reaches the threshold."""
        return self.score >= self.thresholds.fake

    @property
    def band(self) -> str:
        """``real``, ``fake``, or ``uncertain`` between the two outer thresholds."""
        return self.thresholds.band(self.score)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the mask."""
        return {
            "box": [round(float(value), 1) for value in self.box],
            "score": self.score,
            "band": self.band,
            "threshold": self.thresholds.fake,
            "warnings": list(self.warnings),
            "p_yes": self.p_yes,
            "answer": self.answer,
            "truncated": self.truncated,
            "regions": list(self.regions),
            "agree": self.agree,
        }
