"""Building a conversation about an image from its label, regions and score.

Training and inference make their prompts with the same function, :func:`detection_prompt`.
"""

import random
from collections.abc import Sequence

from llava_forgery.constants import FAKE, REAL
from llava_forgery.qa import templates
from llava_forgery.qa.conversation import Conversation, Message, order_regions

_PLAIN_FOLLOW_UPS = {
    "where": templates.WHERE,
    "why": templates.WHY,
    "untouched": templates.UNTOUCHED,
}


def kfd_result(score: float) -> str:
    """The sentence that cites the detector's score, with two decimals (LVLM-DFD, section 3.3).

    Raises:
        ValueError: The score is not in [0, 1].
    """
    return templates.KFD_RESULT.format(score=_checked(score))


def detection_prompt(
    score: float | None = None,
    *,
    question: str | None = None,
    task_description: bool = True,
    rng: random.Random | None = None,
) -> str:
    """The user's first message: "[task description] [KFD result] [question]".

    Args:
        score: Score of the detector, in [0, 1]; None omits its sentence.
        question: Question to use instead of the one about the label.
        task_description: Whether to begin with a task description.
        rng: Generator that chooses the wordings; None for the canonical ones.

    Raises:
        ValueError: The score is not in [0, 1], or the question is empty.
    """
    if question is not None and not question.strip():
        raise ValueError("the question is empty")
    parts = []
    if task_description:
        parts.append(_choose(templates.TASK_DESCRIPTIONS, rng))
    if score is not None:
        parts.append(kfd_result(score))
    if question is None:
        question = _choose(templates.QUESTIONS, rng)
    parts.append(question.strip())
    return " ".join(parts)


def build_prompt(
    score: float | None = None, *, question: str | None = None, task_description: bool = True
) -> Conversation:
    """The canonical prompt as a conversation that awaits its first answer."""
    text = detection_prompt(score, question=question, task_description=task_description)
    return Conversation((Message("user", text),), label=None)


def build_conversation(
    label: int,
    regions: Sequence[str],
    *,
    rng: random.Random,
    score: float | None = None,
    follow_ups: int = 0,
    task_description: bool = True,
    vary: bool = True,
    image: str | None = None,
) -> Conversation:
    """A conversation with true answers about an image (LVLM-DFD, section 3.3).

    Args:
        label: 0 real, 1 fake. The answers follow the label, whatever the score.
        regions: Forged regions in any order; none for a real image.
        rng: Generator that chooses the follow-ups and, with ``vary``, the wordings.
        score: Score of the detector in [0, 1], cited in the prompt; None cites none.
        follow_ups: Number of further turns, 0 to 3, each of a different kind.
        task_description: Whether the prompt begins with a task description.
        vary: Whether to choose wordings at random instead of the canonical ones.
        image: Path of the picture.

    Raises:
        ValueError: A value is out of range, or label and regions contradict each other.
    """
    if label not in (REAL, FAKE):
        raise ValueError(f"label must be {REAL} (real) or {FAKE} (fake), got {label!r}")
    regions = order_regions(regions)
    if bool(regions) != (label == FAKE):
        raise ValueError(f"regions are named for a fake image only, got label {label}, {regions}")
    if follow_ups not in (0, 1, 2, 3):
        raise ValueError(f"follow_ups must be 0, 1, 2 or 3, got {follow_ups}")
    wording = rng if vary else None
    # The answer first, as existing records depend on the order in which wordings are drawn.
    answer = first_answer(label, regions, wording)
    turns = [detection_prompt(score, task_description=task_description, rng=wording), answer]
    for kind in rng.sample(templates.FOLLOW_UP_KINDS, follow_ups):
        turns.extend(follow_up(kind, label, regions, score, wording))
    roles = ("user", "assistant") * (len(turns) // 2)
    messages = tuple(Message(role, text) for role, text in zip(roles, turns, strict=True))
    return Conversation(messages, label=int(label), regions=regions, image=image)


def first_answer(label: int, regions: tuple[str, ...], rng: random.Random | None = None) -> str:
    """The answer to the question about the label; ``rng`` chooses the wording."""
    return _fill(
        _choose(templates.YES_ANSWERS if label == FAKE else templates.NO_ANSWERS, rng), regions
    )


def follow_up(
    kind: str,
    label: int,
    regions: tuple[str, ...],
    score: float | None,
    rng: random.Random | None = None,
) -> tuple[str, str]:
    """A further question and its answer.

    Args:
        kind: One of ``templates.FOLLOW_UP_KINDS``.
        label: 0 real, 1 fake.
        regions: Forged regions, ordered; none for a real image.
        score: Score of the detector in [0, 1], which "how sure" cites; None if unknown.
        rng: Generator that chooses the wordings, that of the question first; None for the canonical
            ones.
    """
    if kind == "how sure":
        return _choose(templates.HOW_SURE_QUESTIONS, rng), _how_sure(label, score, rng)
    wordings = _PLAIN_FOLLOW_UPS[kind]
    answers = wordings.fake if label == FAKE else wordings.real
    if kind == "untouched" and label == FAKE and not templates.untouched_regions(regions):
        answers = templates.UNTOUCHED_NONE
    return _choose(wordings.questions, rng), _fill(_choose(answers, rng), regions)


def _how_sure(label: int, score: float | None, rng: random.Random | None) -> str:
    if score is None:
        return _choose(templates.HOW_SURE_WITHOUT_SCORE, rng)
    # Rounded first, so that the words match the cited number.
    score = round(_checked(score), 2)
    support = round(score if label == FAKE else 1 - score, 2)
    for bound, certainty in templates.CERTAINTY:
        if support >= bound:
            return _choose(templates.HOW_SURE, rng).format(score=score, certainty=certainty)
    return _choose(templates.HOW_SURE_AGAINST, rng).format(score=score)


def _fill(wording: str, regions: tuple[str, ...]) -> str:
    untouched = templates.untouched_regions(regions)
    return wording.format(
        regions=templates.join_regions(regions) if regions else "",
        untouched=templates.join_regions(untouched) if untouched else "",
    )


def _choose(wordings: Sequence[str], rng: random.Random | None) -> str:
    return wordings[0] if rng is None else rng.choice(wordings)


def _checked(score: float) -> float:
    # In this form NaN fails as well.
    if not 0 <= score <= 1:
        raise ValueError(f"the forgery score must lie in [0, 1], got {score}")
    return float(score)
