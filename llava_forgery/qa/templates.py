"""The wordings of questions and answers, as data.

The first of each list is the canonical one: the paper's where the paper gives one (LVLM-DFD,
section 3.3). :mod:`llava_forgery.qa.build` fills in the fields in braces. Yes means fake.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llava_forgery.constants import REGION_NAMES, WHOLE_FACE

TASK_DESCRIPTIONS = (
    "This is a facial image designed for deepfake detection, and it should not exhibit any "
    "localized color discrepancies or evident signs of splicing.",
    "This is a face image for deepfake detection. A genuine one shows neither local differences "
    "in color nor traces of blending.",
    "The image shows a face that is to be checked for manipulation; color, sharpness and texture "
    "should be consistent across it.",
    "This face image may have been edited. In an authentic image no part of the face differs from "
    "its surroundings in color or sharpness.",
    "You see a face crop for forgery detection, which should be free of visible boundaries and "
    "local inconsistencies.",
)

KFD_RESULT = "According to KFD prediction, the forgery score is {score:.2f}."

QUESTIONS = (
    "Is this a deepfake image?",
    "Is this image fake?",
    "Has this face been manipulated?",
    "Was this photograph tampered with?",
    "Is the face in this image forged?",
    "Are there any signs of forgery in this image?",
    "Would you say that this face has been edited?",
)

# The likelihood of the first word gives P(yes), so the first word is always Yes or No.
YES_ANSWERS = (
    "Yes. This is a deepfake image, and the artifact is at the {regions}.",
    "Yes. This image is fake, and the forged area is the {regions}.",
    "Yes. The face has been manipulated at the {regions}.",
    "Yes. There are signs of forgery at the {regions}.",
    "Yes. This is not an authentic image; it was edited at the {regions}.",
    "Yes. The image was tampered with, and the traces are at the {regions}.",
)
NO_ANSWERS = (
    "No. This is a pristine image.",
    "No. This image is real, and I see no artifacts in it.",
    "No. The face has not been manipulated.",
    "No. There are no signs of forgery in this image.",
    "No. This is an authentic image without traces of editing.",
    "No. The image was not tampered with.",
)

SPOKEN_REGIONS = {name: name for name in REGION_NAMES} | {WHOLE_FACE: "whole inner face"}


@dataclass(frozen=True)
class FollowUp:
    """Wordings of a further question and its answers."""

    questions: tuple[str, ...]
    fake: tuple[str, ...]
    """Answers for a fake image, with the fields regions and untouched."""
    real: tuple[str, ...]


WHERE = FollowUp(
    questions=(
        "Where is the artifact?",
        "Which part of the face is forged?",
        "Where do you see signs of manipulation?",
    ),
    fake=(
        "The artifact is at the {regions}.",
        "The forged area is the {regions}.",
        "I see signs of manipulation at the {regions}.",
    ),
    real=(
        "Nowhere. I see no artifact in this image.",
        "No part of the face is forged.",
        "Nowhere. There are no signs of manipulation in this face.",
    ),
)

# Cues of blending in general, as the record of an image does not say which of them it has.
WHY = FollowUp(
    questions=(
        "Why do you think so?",
        "What makes you say that?",
        "Which visible cues lead you to this answer?",
    ),
    fake=(
        "The {regions} and the surrounding skin do not quite match: cues such as a blending "
        "boundary, or a difference in color or sharpness, point to an edit there.",
        "I go by cues at the {regions}, such as a visible boundary or a mismatch in color or "
        "sharpness with the rest of the face.",
        "Color, sharpness or the transition to the surrounding skin look inconsistent at the "
        "{regions}.",
    ),
    real=(
        "Color and sharpness look consistent across the face, and I see no blending boundary.",
        "I see no visible boundary and no mismatch in color or sharpness in any part of the face.",
        "No part of the face differs from its surroundings in color or sharpness, and no "
        "transition looks blended.",
    ),
)

UNTOUCHED = FollowUp(
    questions=(
        "Which parts of the face are untouched?",
        "Which parts show no signs of editing?",
        "Which regions look pristine?",
    ),
    fake=(
        "I see no signs of editing at the {untouched}.",
        "The untouched parts are the {untouched}.",
        "As far as I can see, the regions left unedited are the {untouched}.",
    ),
    real=(
        "All of them. I see no signs of editing in this face.",
        "All parts of the face look untouched.",
        "Every region looks pristine.",
    ),
)
# If no region of the inner face is untouched.
UNTOUCHED_NONE = (
    "No part of the inner face; only what lies outside the inner face shows no signs of editing.",
    "None of the inner face. Hair and background look untouched.",
    "Within the inner face none; only the surroundings look untouched.",
)

HOW_SURE_QUESTIONS = (
    "How sure are you?",
    "How certain is this answer?",
    "How confident are you about that?",
)
HOW_SURE = (
    "The forgery score is {score:.2f}, so I am {certainty}.",
    "I am {certainty}, going by a forgery score of {score:.2f}.",
    "With a forgery score of {score:.2f}, I am {certainty}.",
)
# Lower bound of the score in favour of the label, and words for it.
CERTAINTY = (
    (0.9, "very sure"),
    (0.75, "sure"),
    (0.6, "fairly sure"),
    (0.5, "only slightly sure"),
)
# If the score contradicts the label.
HOW_SURE_AGAINST = (
    "I am not sure: the forgery score is {score:.2f}, which speaks against my answer.",
    "Not sure, since the forgery score of {score:.2f} points the other way.",
    "The forgery score is {score:.2f} and disagrees with my answer, so I am not sure.",
)
HOW_SURE_WITHOUT_SCORE = (
    "I have no forgery score to go by, so I rely on what is visible and cannot give a number.",
    "I cannot give a number: no forgery score is known for this image.",
    "As sure as one can be by looking, since no forgery score is known for this image.",
)

FOLLOW_UP_KINDS = ("where", "how sure", "why", "untouched")


def join_regions(regions: Sequence[str]) -> str:
    """Regions as a phrase: "nose and mouth", "eyes, nose and mouth", "whole inner face".

    Raises:
        ValueError: No region, or an unknown one.
    """
    if not regions:
        raise ValueError("there is no region to name")
    unknown = [name for name in regions if name not in SPOKEN_REGIONS]
    if unknown:
        raise ValueError(f"unknown regions {unknown}; expected some of {', '.join(REGION_NAMES)}")
    *others, last = (SPOKEN_REGIONS[name] for name in regions)
    return f"{', '.join(others)} and {last}" if others else last


def untouched_regions(regions: Sequence[str]) -> tuple[str, ...]:
    """The parts of the inner face that are not among the forged ones."""
    if WHOLE_FACE in regions:
        return ()
    return tuple(name for name in REGION_NAMES if name != WHOLE_FACE and name not in regions)
