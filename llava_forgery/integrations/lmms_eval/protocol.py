"""Formats of the texts that a model and a task of lmms-eval exchange.

A *report* is a line behind the answer with the numbers that the words do not say. The model
writes it where the task asks for it with the generation argument ``report``::

    Yes. This is a deepfake image, and the artifact is at the nose.
    [p_yes=0.8312 score=0.9104 fake_from=0.773]

A *transcript* is a dialogue as one question, for models without dialogues::

    User: Is this a deepfake image?
    Assistant: Yes. This is a deepfake image.
    User: Where is the artifact?
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from llava_forgery.infer.dialogue import NOTHING_SAID
from llava_forgery.qa.conversation import ROLES, Message

_NUMBER = r"[0-9.]+(?:e-?[0-9]+)?"
_REPORT = re.compile(rf"\s*\[p_yes=({_NUMBER}) score=({_NUMBER}) fake_from=({_NUMBER})\]\s*$")
_TURN = re.compile(r"(User|Assistant): (\S.*)")


class Report(NamedTuple):
    """A parsed answer; the numbers are None if it has no report."""

    text: str
    p_yes: float | None
    """The model's probability of "Yes" (fake) against "No", in [0, 1]."""
    score: float | None
    """Score of the detector, in [0, 1]."""
    fake_from: float | None
    """The score from which on the detector calls an image fake."""


def write_report(text: str, p_yes: float, score: float, fake_from: float) -> str:
    """The answer followed by a report, from which the numbers are restored exactly."""
    return f"{text}\n[p_yes={p_yes!r} score={score!r} fake_from={fake_from!r}]"


def read_report(text: str) -> Report:
    """Parse an answer; the inverse of :func:`write_report`."""
    found = _REPORT.search(text)
    if found is None:
        return Report(text.strip(), None, None, None)
    return Report(text[: found.start()].strip(), *map(float, found.groups()))


def write_transcript(turns: Sequence[str]) -> str:
    """A dialogue as one text.

    Args:
        turns: Texts of user and assistant, alternating; the last one is the user's.

    Raises:
        ValueError: The last turn is the assistant's, or a question is empty.
    """
    if len(turns) % 2 == 0:
        raise ValueError(f"a transcript ends with the user's turn, got {len(turns)} turns")
    lines = []
    for i, turn in enumerate(turns):
        # A turn is a line, also if a model says nothing.
        said = " ".join(turn.split())
        if not said and i % 2 == 0:
            raise ValueError(f"the question in turn {i} is empty")
        lines.append(f"{ROLES[i % 2].capitalize()}: {said or NOTHING_SAID}")
    return "\n".join(lines)


def read_transcript(text: str) -> tuple[Message, ...]:
    """Parse the turns of :func:`write_transcript`; any other text is one question.

    Raises:
        ValueError: The text is empty.
    """
    lines = [_TURN.fullmatch(line) for line in text.strip().split("\n")]
    if len(lines) >= 3 and len(lines) % 2 and all(lines):
        messages = tuple(Message(line[1].lower(), line[2].strip()) for line in lines)
        if all(message.role == ROLES[i % 2] for i, message in enumerate(messages)):
            return messages
    return (Message("user", text.strip()),)
