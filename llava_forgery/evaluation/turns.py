"""Whether the answers of a dialogue fit each other."""

import re

from llava_forgery.constants import FAKE, REAL
from llava_forgery.qa.answers import ParsedAnswer, parse_answer

_NOWHERE = re.compile(r"^\W*(?:nowhere|none|nothing|no (?:parts?|regions?|areas?))\b", re.I)


def parse_place(text: str) -> ParsedAnswer:
    """Read an answer to "Where is the artifact?".

    As :func:`parse_answer`, but a bare list of regions means that they are forged, and "Nowhere."
    that none is.
    """
    parsed = parse_answer(text)
    if parsed.label is None and parsed.regions:
        return ParsedAnswer(FAKE, parsed.regions)
    if parsed.label is None and _NOWHERE.match(text):
        return ParsedAnswer(REAL, ())
    return parsed


def turns_agree(verdict: ParsedAnswer, place: ParsedAnswer) -> bool:
    """Whether verdict and place say the same.

    Both must be understood and call the image fake, or both real; where both name regions, they
    must be the same ones.

    Args:
        verdict: Answer to the question about the label.
        place: Answer to the question where the artifact is, from :func:`parse_place`.
    """
    if verdict.label is None or verdict.label != place.label:
        return False
    return not verdict.regions or not place.regions or verdict.regions == place.regions
