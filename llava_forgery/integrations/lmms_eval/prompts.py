"""Questions of lmms-eval's tasks, in the form of the model's training."""

import re

from llava_forgery.qa import templates
from llava_forgery.qa.build import kfd_result

_CITED = re.compile(
    re.escape(templates.KFD_RESULT).replace(re.escape("{score:.2f}"), r"\d(?:\.\d+)?")
)


def is_detection_prompt(text: str) -> bool:
    """Whether a first question has the form of those in training.

    Args:
        text: A task description of training followed by a question, or one of training's questions
            about the label, possibly with further text.
    """
    return _split(text) is not None


def cite_score(text: str, score: float) -> str:
    """Insert the detector's result as in training: "[task description] [result] [question]".

    Args:
        text: First question; returned unchanged if it has another form or already has a result.
        score: Score of the detector, in [0, 1].

    Raises:
        ValueError: The score is not in [0, 1].
    """
    parts = _split(text)
    if parts is None or _CITED.search(text):
        return text
    description, question = parts
    return " ".join(part for part in (description, kfd_result(score), question) if part)


def _split(text: str) -> tuple[str, str] | None:
    """Task description and question; None if the text has another form."""
    text = text.strip()
    for description in templates.TASK_DESCRIPTIONS:
        if text.startswith(description):
            question = text[len(description) :].strip()
            return (description, question) if question else None
    if text.lower().startswith(tuple(question.lower() for question in templates.QUESTIONS)):
        return "", text
    return None
