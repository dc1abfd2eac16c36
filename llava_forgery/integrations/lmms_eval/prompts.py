"""Questions of lmms-eval's tasks, worded as the model was trained."""

import re

from llava_forgery.qa import templates
from llava_forgery.qa.build import kfd_result

_CITED = re.compile(
    re.escape(templates.KFD_RESULT).replace(re.escape("{score:.2f}"), r"\d(?:\.\d+)?")
)


def is_detection_prompt(text: str) -> bool:
    """Whether a first question has the form of training's.

    Args:
        text: A task description of training with a question behind it, or one of training's
            questions about the label; more may follow.
    """
    return _split(text) is not None


def cite_score(text: str, score: float) -> str:
    """Put the detector's result where training puts it: "[task description] [result] [question]".

    Args:
        text: A first question; of another form, or with a result in it, it stays as it is.
        score: The detector's, in [0, 1].

    Raises:
        ValueError: The score is not in [0, 1].
    """
    parts = _split(text)
    if parts is None or _CITED.search(text):
        return text
    description, question = parts
    return " ".join(part for part in (description, kfd_result(score), question) if part)


def _split(text: str) -> tuple[str, str] | None:
    """Task description and question; None where the text has another form."""
    text = text.strip()
    for description in templates.TASK_DESCRIPTIONS:
        if text.startswith(description):
            question = text[len(description) :].strip()
            return (description, question) if question else None
    if text.lower().startswith(tuple(question.lower() for question in templates.QUESTIONS)):
        return "", text
    return None
