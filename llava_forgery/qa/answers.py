"""Parsing of free-text answers: fake or real, and which regions.

In this project yes means fake. The text is split into clauses; each word for "fake" or "real" is
inverted by each negation before it in its clause. Text that says nothing, hedges or contradicts
itself has no label: labels are never guessed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from llava_forgery.constants import FAKE, REAL, REGION_NAMES, WHOLE_FACE
from llava_forgery.qa import answer_words as words


@dataclass(frozen=True)
class ParsedAnswer:
    """Result of parsing an answer."""

    label: int | None
    """0 real, 1 fake, None if the text does not say or contradicts itself."""
    regions: tuple[str, ...]
    """Regions named as forged, in the order of ``REGION_NAMES``; none if the label is real."""


# Side of text that asks, advises or doubts.
_UNSAID = 0


@dataclass(frozen=True)
class _Clause:
    text: str
    contrast: str | None
    """Word of contrast before the clause."""

    def terms(self, pattern: re.Pattern[str], sign: int) -> Iterator[tuple[re.Match[str], int]]:
        """Matches with their sign: 1 for fake, -1 for real, inverted by each negation before."""
        for match in pattern.finditer(self.text):
            yield match, sign * (-1) ** len(words.NOT.findall(self.text[: match.start()]))


def parse_answer(text: str) -> ParsedAnswer:
    """Parse label and regions of an answer to "Is this a deepfake image?" or a follow-up.

    Args:
        text: English free text. Questions in it are ignored.

    Returns:
        Label and regions. ``regions`` excludes those that the text calls untouched, but includes
        one that it calls forged elsewhere (such as the left eye and not the right). "face" covers
        the others and is the only one then.
    """
    text = text.lower().strip()
    lines = []
    for line in text.splitlines():
        for pattern, replacement in words.NORMALISE:
            line = pattern.sub(replacement, line)
        lines.append(line.strip())
    votes: set[int] = set()
    regions: set[str] = set()
    yes, no = FAKE, REAL
    for sentence in words.SENTENCE.split("\n".join(lines)):
        if not sentence.strip():
            continue
        if sentence.rstrip().endswith("?"):
            # "Is this real? No."
            asks_real = words.REAL_WORDS.search(sentence) and not words.FAKE_WORDS.search(sentence)
            yes, no = (REAL, FAKE) if asks_real else (FAKE, REAL)
            continue
        if words.AMBIGUOUS.search(sentence):
            return ParsedAnswer(None, ())
        sentence = _take_yes_or_no(sentence.strip(), votes, yes, no)
        _read_clauses(_clauses(_without_concession(sentence)), votes, regions)
    label = votes.pop() if len(votes) == 1 else None
    if label == REAL:
        return ParsedAnswer(label, ())
    if WHOLE_FACE in regions:
        regions = {WHOLE_FACE}
    return ParsedAnswer(label, tuple(name for name in REGION_NAMES if name in regions))


def _take_yes_or_no(sentence: str, votes: set[int], yes: int, no: int) -> str:
    """Count a plain yes or no, and return the rest of the sentence."""
    if lead := words.LEAD.match(sentence):
        votes.add(yes if lead[1] else no)
        return sentence[lead.end() :]
    if said := words.SAID.search(sentence):
        votes.add(yes if said[1] else no)
        return ""
    if think := words.THINK_SO.match(sentence):
        votes.add(no if think[1] else yes)
    elif words.FLAT_NO.match(sentence):
        votes.add(no)
    return sentence


def _without_concession(sentence: str) -> str:
    """Remove the conceded appearance, unless it mentions a region."""
    granted = words.CONCESSION.search(sentence)
    if granted is None or words.REGION.search(granted[0]):
        return sentence
    return sentence[: granted.start()] + sentence[granted.end() :].lstrip()


def _clauses(sentence: str) -> list[_Clause]:
    clauses, start, contrast = [], 0, None
    for cut in words.SPLIT.finditer(sentence):
        clauses.append(_Clause(sentence[start : cut.start()].strip(" ,."), contrast))
        start, contrast = cut.end(), cut["contrast"]
    clauses.append(_Clause(sentence[start:].strip(" ,.!"), contrast))
    clauses = [clause for clause in clauses if clause.text]
    merged: list[_Clause] = []
    for clause in reversed(clauses):
        if merged and _is_subject_of(clause, merged[-1], first=clause is clauses[0]):
            joined = f"{clause.text}, {merged.pop().text}"
            clause = _Clause(joined, clause.contrast)
        merged.append(clause)
    return merged[::-1]


def _is_subject_of(clause: _Clause, following: _Clause, first: bool) -> bool:
    """Whether a list of regions belongs to the following clause: "the eyes | the nose are real"."""
    if clause.contrast or following.contrast or not _is_fragment(clause.text):
        return False
    if not words.REGION.search(clause.text) or words.NOT.search(clause.text):
        return False
    subject = words.REGION.search(following.text)
    # After a statement the list may as well belong to that.
    named_first = subject is not None and _is_fragment(following.text[: subject.end()])
    said = any(
        pattern.search(following.text)
        for pattern in (words.FAKE_WORDS, words.ODD, words.REAL_WORDS, words.EVEN)
    )
    return first or (said and (named_first or bool(words.ELIDED_SUBJECT.match(following.text))))


def _is_fragment(text: str) -> bool:
    """Whether a text names regions without stating anything about them."""
    return bool(words.FRAGMENT.match(words.REGION.sub("", text)))


def _read_clauses(clauses: list[_Clause], votes: set[int], regions: set[str]) -> None:
    """Add the verdicts and regions of the clauses of one sentence."""
    side: int | None = None
    limited = False
    for i, clause in enumerate(clauses):
        if words.UNKNOWN.search(clause.text):
            side = _UNSAID
            continue
        if clause.contrast:
            side = _contrast_side(clauses, i, side)
            named = _named(clause.text) if side == 1 else set()
            regions |= named
            # "Real except for the nose" is not a verdict that could count as either.
            votes |= {FAKE} if named else set()
            continue
        limited = _is_limited(clause) or (limited and bool(words.ELIDED_SUBJECT.match(clause.text)))
        if not words.HEDGE.search(clause.text):
            votes |= _clause_votes(clause, limited)
        side = _read_regions(clause, side, regions)
        if side == 1 and words.ELLIPSIS.search(clause.text) and _named(clause.text):
            votes.add(FAKE)


def _clause_votes(clause: _Clause, limited: bool) -> set[int]:
    votes = {FAKE if sign == 1 else None for _, sign in clause.terms(words.FAKE_WORDS, 1)}
    votes |= {FAKE if sign == 1 else None for _, sign in clause.terms(words.REAL_WORDS, -1)}
    if None in votes:
        votes.discard(None)
        votes |= set() if limited else {REAL}
    return votes


def _is_limited(clause: _Clause) -> bool:
    """Whether the clause calls a part of the image real and not the image itself."""
    parts = [m for m in words.REGION.finditer(clause.text) if m.lastgroup != WHOLE_FACE]
    parts += words.ELSEWHERE.finditer(clause.text)
    if not parts:
        return False
    for match, sign in clause.terms(words.REAL_WORDS, -1):
        # "a real face with brown eyes": the part comes later and is not what is called real.
        before = any(part.start() < match.start() for part in parts)
        behind = any(0 <= part.start() - match.end() <= 1 for part in parts)
        if sign == -1 and not before and not behind:
            return False
    return True


def _read_regions(clause: _Clause, side: int | None, regions: set[str]) -> int | None:
    """Add the regions that the clause calls forged; return the side on which it ends."""
    terms = [
        (match.start(), sign)
        for pattern, plain in (
            (words.FAKE_WORDS, 1),
            (words.ODD, 1),
            (words.REAL_WORDS, -1),
            (words.EVEN, -1),
        )
        for match, sign in clause.terms(pattern, plain)
    ]
    if terms:
        for match in words.REGION.finditer(clause.text):
            if min(terms, key=lambda term: abs(term[0] - match.start()))[1] == 1:
                regions.add(match.lastgroup)
        return max(terms)[1]
    if side is None and not _is_fragment(clause.text):
        return None
    if side == _UNSAID:
        return side
    # "not" and "but the eyes are" invert the previous side, "nor" continues it.
    turned = words.TURN.search(clause.text) or words.ELLIPSIS.search(clause.text)
    side = (side or 1) * (-1 if turned else 1)
    if side == 1:
        regions |= _named(clause.text)
    return side


def _contrast_side(clauses: list[_Clause], i: int, side: int | None) -> int | None:
    """The side opposite to the text before the contrast or, if that comes first, after it."""
    if side is None and i + 1 < len(clauses):
        side = _read_regions(clauses[i + 1], None, set())
    return None if side is None else -side


def _named(text: str) -> set[str]:
    return {match.lastgroup for match in words.REGION.finditer(text)}
