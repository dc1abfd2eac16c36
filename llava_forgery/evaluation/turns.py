"""Whether the answers of a dialogue are consistent."""

import re

from llava_forgery.constants import FAKE, REAL, REGION_NAMES, WHOLE_FACE
from llava_forgery.qa.answer_words import FAKE_WORDS, REGION
from llava_forgery.qa.answers import ParsedAnswer, parse_answer

_NOWHERE = re.compile(r"^\W*(?:nowhere|none|nothing|no (?:parts?|regions?|areas?))\b", re.I)
_NONE = re.compile(r"^\W*(?:none|nothing|no (?:parts?|regions?|areas?))\b|\bnone\b", re.I)
_ALL = re.compile(r"\b(?:all|every\w*|entire|whole)\b", re.I)
_SENTENCE_END = re.compile(r"[.;]")
_BUT = re.compile(r"\b(?:but|except|apart from|other than)\b", re.I)
_PARTS = tuple(name for name in REGION_NAMES if name != WHOLE_FACE)


def parse_place(text: str) -> ParsedAnswer:
    """Parse an answer to "Where is the artifact?".

    Like :func:`parse_answer`, except that a bare list of regions means that they are forged, and
    "Nowhere." that none is.
    """
    parsed = parse_answer(text)
    if parsed.label is None and parsed.regions:
        return ParsedAnswer(FAKE, parsed.regions)
    if parsed.label is None and _NOWHERE.match(text):
        return ParsedAnswer(REAL, ())
    return parsed


def turns_agree(verdict: ParsedAnswer, place: ParsedAnswer) -> bool:
    """Whether verdict and place agree.

    Both must be parsed and call the image fake, or both real; if both name regions, these must be
    the same.

    Args:
        verdict: Answer to the question about the label.
        place: Answer to the question where the artifact is, from :func:`parse_place`.
    """
    if verdict.label is None or verdict.label != place.label:
        return False
    return not verdict.regions or not place.regions or verdict.regions == place.regions


def parse_untouched(text: str) -> tuple[str, ...] | None:
    """Parse an answer to "Which parts of the face are untouched?".

    Returns:
        The parts of the inner face that it calls untouched, in the order of ``REGION_NAMES``: all
        of them, none, or those that it names. None if the answer says none of these. Parts
        that it calls forged are not among them.
    """
    said, *exceptions = _BUT.split(text, maxsplit=1)
    excepted = _named("".join(exceptions))
    if _NONE.search(said):
        # "No part is forged but the chin." against "None but the chin."
        of_forged = FAKE_WORDS.search(_SENTENCE_END.split(text.lower(), maxsplit=1)[0])
        return _others(excepted) if of_forged else excepted
    parsed = parse_answer(said)
    forged = parsed.regions if parsed.label == FAKE else ()
    named = tuple(name for name in _named(said) if name not in forged)
    if WHOLE_FACE in named or (_ALL.search(said) and not named):
        return excepted if parsed.label == FAKE else _others(excepted)
    return named or None


def untouched_agrees(forged: ParsedAnswer, untouched: tuple[str, ...] | None) -> bool:
    """Whether no part is called both forged and untouched.

    Args:
        forged: Verdict or place. All parts of a real face are untouched; of a fake face whose
            regions are not named, not all of them.
        untouched: Output of :func:`parse_untouched`.
    """
    if forged.label is None or untouched is None:
        return False
    if forged.label == REAL or not forged.regions:
        return (untouched == _PARTS) == (forged.label == REAL)
    covered = _PARTS if WHOLE_FACE in forged.regions else forged.regions
    return not set(covered) & set(untouched)


def contradictions(verdict: str, place: str, untouched: str) -> tuple[str, ...]:
    """Which answers of a dialogue contradict its first one.

    An answer that cannot be parsed counts as a contradiction.

    Args:
        verdict: Answer to "Is this a deepfake image?".
        place: Answer to "Where is the artifact?".
        untouched: Answer to "Which parts of the face are untouched?".

    Returns:
        Those of ``("place", "untouched")`` that contradict the verdict.
    """
    first = parse_answer(verdict)
    fits = {
        "place": turns_agree(first, parse_place(place)),
        "untouched": untouched_agrees(first, parse_untouched(untouched)),
    }
    return tuple(name for name, fit in fits.items() if not fit)


def _others(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in _PARTS if name not in names)


def _named(text: str) -> tuple[str, ...]:
    found = {match.lastgroup for match in REGION.finditer(text.lower())}
    return tuple(name for name in REGION_NAMES if name in found)
