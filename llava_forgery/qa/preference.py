"""Pairs of answers for the preference stage, made without annotators.

Label, forged regions and score of an image determine which answer is true. The other one has the
same wording, but is false::

    verdict     "Yes. ..." of a real image, "No. ..." of a forged one
    region      "Yes. ..." with other regions
    follow-up   a later answer that is at odds with the first one
    untouched   "Yes. ..." with the forged regions called untouched, or of a real image only some
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from llava_forgery.constants import FAKE, REAL, REGION_NAMES, WHOLE_FACE
from llava_forgery.qa.build import first_answer, follow_up
from llava_forgery.qa.conversation import Conversation, Message, order_regions
from llava_forgery.qa.templates import FOLLOW_UP_KINDS, untouched_regions

KINDS = ("verdict", "region", "follow-up", "untouched")

_Facts = tuple[int, tuple[str, ...]]
"""Label and forged regions."""
_Said = TypeVar("_Said")


@dataclass(frozen=True)
class PreferencePair:
    """A prompt with a preferred and a rejected answer."""

    kind: str
    """One of ``KINDS``."""
    prompt: Conversation
    """Conversation that ends with the user's question."""
    chosen: str
    rejected: str


def build_pair(
    kind: str,
    question: str,
    label: int,
    regions: Sequence[str],
    *,
    rng: random.Random,
    score: float | None = None,
) -> PreferencePair:
    """A pair of answers about an image.

    Args:
        kind: One of ``KINDS``; a real image has no "region".
        question: First question, about the label.
        label: 0 real, 1 fake.
        regions: Forged regions in any order; none for a real image.
        rng: Generator that chooses the wordings, which both answers share, and the content of the
            rejected one.
        score: Score of the detector in [0, 1] if the question cites it.

    Raises:
        ValueError: The kind is unknown, a real image has regions or a fake one none, or the score
            is not in [0, 1].
    """
    regions = order_regions(regions)
    if kind not in KINDS or (kind == "region" and label == REAL):
        raise ValueError(
            f"the kind of a pair is one of {', '.join(KINDS)}, region for fakes only; got {kind!r}"
        )
    if label not in (REAL, FAKE) or bool(regions) != (label == FAKE):
        raise ValueError(f"regions are named for a fake image only, got label {label}, {regions}")
    truth = (label, regions)
    turns = [question]
    if kind in ("verdict", "region"):
        false = _opposite(truth, rng) if kind == "verdict" else (FAKE, _other(regions, rng))
        chosen, rejected = _alike(lambda facts, rng: first_answer(*facts, rng), truth, false, rng)
        return _pair(kind, turns, chosen, rejected)
    turns.append(first_answer(label, regions, rng))
    if kind == "untouched":
        asked = "untouched"
        # Their complement leaves exactly the forged regions untouched.
        left = untouched_regions(regions)
        false = (FAKE, left) if label == FAKE and left else _opposite(truth, rng)
    else:
        # Without a score, or with one of 0.5, both answers to "how sure" would be the same.
        known = score is not None and round(score, 2) != 0.5
        asked = rng.choice([k for k in FOLLOW_UP_KINDS if k != "how sure" or known])
        false = _opposite(truth, rng)
        if label == FAKE and asked != "how sure" and rng.random() < 0.5:
            false = (FAKE, _other(regions, rng))
    if rng.random() < 0.5:
        earlier = rng.choice([k for k in FOLLOW_UP_KINDS if k != asked])
        turns += follow_up(earlier, *truth, score, rng)
    (question, chosen), (_, rejected) = _alike(
        lambda facts, rng: follow_up(asked, *facts, score, rng), truth, false, rng
    )
    return _pair(kind, [*turns, question], chosen, rejected)


def _pair(kind: str, turns: Sequence[str], chosen: str, rejected: str) -> PreferencePair:
    roles = ("user", "assistant") * len(turns)
    messages = tuple(Message(role, text) for role, text in zip(roles, turns, strict=False))
    return PreferencePair(kind, Conversation(messages, label=None), chosen, rejected)


def _alike(
    say: Callable[[_Facts, random.Random], _Said],
    truth: _Facts,
    false: _Facts,
    rng: random.Random,
) -> tuple[_Said, _Said]:
    """Both answers in the same wording."""
    state = rng.getstate()
    chosen = say(truth, rng)
    rng.setstate(state)
    return chosen, say(false, rng)


def _opposite(truth: _Facts, rng: random.Random) -> _Facts:
    """The facts with the opposite label; a real face gets forged regions."""
    label, _ = truth
    return (REAL, ()) if label == FAKE else (FAKE, _some(_parts(), rng))


def _other(regions: tuple[str, ...], rng: random.Random) -> tuple[str, ...]:
    """Regions that are not forged; for a whole face, which covers all, some part."""
    return _some(untouched_regions(regions) or _parts(), rng)


def _some(names: Sequence[str], rng: random.Random) -> tuple[str, ...]:
    """One to three of the names, as in forgeries."""
    return order_regions(rng.sample(list(names), rng.randint(1, min(3, len(names)))))


def _parts() -> tuple[str, ...]:
    return tuple(name for name in REGION_NAMES if name != WHOLE_FACE)
