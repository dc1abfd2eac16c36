"""What an answer in free text says: fake or real, and which regions.

In this project yes means fake. The text is cut into clauses; each word that speaks for "fake" or
"real" counts with the negations before it in its clause. What says nothing, hedges or contradicts
itself has no label: it is never guessed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from llava_forgery.constants import FAKE, REAL, REGION_NAMES, WHOLE_FACE


@dataclass(frozen=True)
class ParsedAnswer:
    """What an answer says."""

    label: int | None
    """0 real, 1 fake, None where the text does not say or contradicts itself."""
    regions: tuple[str, ...]
    """Regions named as forged, in the order of ``REGION_NAMES``; none where the label is real."""


_NORMALISE = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[’`´]", "'"),
        (r"[*_\"“”#]", ""),
        (r"([.!?])(?=[a-z])", r"\1 "),
        (r"\b(can)(?:'t|not)\b", r"\1 not"),
        (r"n't\b", " not"),
        (r"\b(is|are|was|were|do|does|did|has|have|could|would)nt\b", r"\1 not"),
        (r"\bneither\b(.*?)\bnor\b", r"not\1or"),
        # No verdicts, though they hold words of verdicts.
        (
            r"\b(?:forgery|forged|deepfakes?|fake|kfd|manipulation|tampering)[ -]"
            r"(?:scores?|detect\w+|predict\w+|probabilit\w+|likelihood|expert|analysis|model|"
            r"datasets?|test|check)\b",
            "it",
        ),
        (r"\b(?:no|without(?: an?y?)?|beyond) (?:doubt|question|problem)\b", ""),
        (r"\bnot (?:only|just|merely|simply)\b", ""),
        (r"\b(?:jpeg|compression|codec|scaling|camera|lens|sensor) (?:arti?e?facts?|noise)\b", ""),
        (r"\b(?:naked|human|bird's) eyes?\b|\beye[- ]catching\b", ""),
        (
            r"\breal(?:istic)?[- ](?:looking|time|life|world|evidence|reasons?|indications?|signs?|"
            r"traces?|artifacts?|problems?|differences?|(?=deepfake|fake|forgery))",
            "",
        ),
        (r"\bof (?:an? )?real (?=person|people|human|man|woman)", "of a "),
        (r"\b(?:real|authentic|genuine|pristine) ?(?:or|/|vs\.?|versus) ?(?:a )?\w*fake\b", ""),
        (r"\b\w*fake ?(?:or|/|vs\.?|versus) ?(?:real|authentic|genuine|pristine)\b", ""),
        # Negations in other words.
        (r"\b(?:free|devoid) (?:of|from)\b|\black(?:s|ing)?(?: of)?\b|\babsence of\b", "without"),
        (r"\banything but\b|\bfar from\b|\btoo \w+ to\b|\b(?:wrong|false) (?:to|that)\b", "not"),
        (r"\boutside (?:of )?the (?:whole |entire )?(?:inner )?face\b", "outside"),
        (r"\b((?:differ|deviat)\w*|distinct)\b([^.,;]*?)\bfrom\b", r"\1\2 unlike"),
        (r"\bcompared (?:to|with)\b", "unlike"),
        (r"\s+", " "),
    )
)

_YES, _NO = r"yes|yeah|yep|yup", r"no|nope|nah"
_AMBIGUOUS = re.compile(r"\b(?:yes (?:and|or) no|yes ?/ ?no)\b")
# "No" answers where a pause or a new sentence follows; "No signs of ..." does not begin with it.
_LEAD = re.compile(
    rf"^(?:\w+ ?[:=] ?)?(?:({_YES})\b|({_NO})(?=$|\W*$|\s*[,.:;!()\-–—]|\s+(?:it|this|that|the|"
    r"there|i|we|these)\b))\s*[,.:;!\-–—]*\s*"
)
_SAID = re.compile(rf"\b(?:say|answer|verdict)(?: is| would be)?:? (?:({_YES})|({_NO}))\W*$")
_THINK_SO = re.compile(r"^i (?:do )?(not )?(?:think|believe|suppose) so\W*$")
_FLAT_NO = re.compile(
    r"^(?:(?:definitely|certainly|absolutely|probably|most likely|of course) not|not at all|"
    r"not that i can (?:see|tell))\W*$"
)

_FAKE = re.compile(
    r"\b(?:deep[ -]?fak\w+|fak(?:e|es|ed|ing|ery)|forg(?:ed|ery|eries|ing)|manipulat\w+|"
    r"tamper\w*|alter(?:ed|ations?|ing)|edit(?:ed|ing|s)?|modifi(?:ed|cations?)|doctored|"
    r"retouch\w+|falsified|synthetic\w*|synthesi[sz]ed|artificial\w*|splic\w+|blend(?:ed|ing)|"
    r"generated|fabricated|swap(?:s|ped|ping)?|photoshop\w*|arti?e?facts?|inauthentic|unreal|"
    r"inconsistenc\w+|anomal(?:y|ies)|irregularit\w+)\b"
)
_PHOTO = r"(?:image|photo\w*|picture|portrait|shot|frame)\b"
_REAL = re.compile(
    r"\b(?:real|pristine|authentic|genuine|legit(?:imate)?|un(?:altered|edited|manipulated|"
    rf"touched|tampered|modified|retouched)|(?<!the )original(?= {_PHOTO}))\b"
)
# They place a region on a side, but give no verdict on the image.
_ODD = re.compile(
    r"\b(?:mismatch\w*|boundar\w+|seams?|blurr?\w*|unnatural\w*|inconsistent\w*|differ\w*|"
    r"distort\w+|warped|odd|strange|suspicious\w*|discolou?r\w+|smear\w+|affected|replaced)\b"
)
_EVEN = re.compile(
    r"\b(?:natural\w*|normal|fine|consistent\w*|clean|intact|unaffected|unchanged|ok(?:ay)?|"
    r"match(?:es)?)\b"
)
_NOT = re.compile(
    r"\b(?:not?|never|none|nothing|nowhere|without|neither|nor|hardly|barely|unlikely|"
    r"doubt(?:s|ful)?|fail(?:s|ed)? to|ruled? out)\b"
)

_UNKNOWN = re.compile(
    r"\bwhether\b|(?<!as )\bif\b|\bun(?:sure|clear|certain|able)\b|"
    r"\b(?<!would )not (?:\w+ )?(?:sure|certain|clear|able|know|enough|tell|say|"
    r"determine|judge|decide|confirm|rule)\b|"
    r"\b(?:hard|difficult|impossible) to\b|"
    r"\b(?:often|usually|typical(?:ly)?|commonly|generally|in general)\b"
)
_HEDGE = re.compile(
    r"\b(?:might|may|maybe|perhaps|possib\w+|could(?! not)|chances?|probability|likelihood)\b"
)

_CLAUSE_START = (
    r"(?:it|its|this|that|these|those|the|there|they|i|we|which|not|no|nor|none|neither|without|"
    r"with|is|are|was|were|has|have|had|does|do|did|shows?|looks?|appears?|seems?|contains?|only|"
    r"all|every\w*|nothing|most|especially|particularly|both|can|could)\b"
)
_ELIDED_SUBJECT = re.compile(
    r"^(?:is|are|was|were|has|have|had|does|do|did|shows?|looks?|appears?|seems?|contains?)\b"
)
# What follows these stands on the other side.
_CONTRAST = r"except(?: for| that)?|apart from|other than|rather than|instead of|than|unlike"
_SPLIT = re.compile(
    rf"\s*(?:[:;()]|--+|–|—|,? \b(?:but|however|while|whereas|(?:al)?though|because|since)\b|"
    rf", (?:so|yet)\b|,? ?\b(?P<contrast>{_CONTRAST})\b|,\s*(?:and |or )?(?={_CLAUSE_START})|"
    rf" and (?={_CLAUSE_START}))\s*"
)
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+")

_REGIONS = {
    "eyes": r"\beye(?:s|lids?|lash(?:es)?|balls?)?\b(?!-? ?brow)",
    "eyebrows": r"\b(?:eye[ -]?)?brows?\b",
    "nose": r"\b(?:noses?|nostrils?)\b",
    "mouth": r"\b(?:mouths?|lips?|teeth)\b",
    "chin": r"\b(?:chins?|jaws?|jaw-?lines?)\b",
    "cheeks": r"\bcheek(?:s|bones?)?\b",
    WHOLE_FACE: r"\b(?:(?:whole|entire|full|complete|inner|central|cent(?:er|re)|all|middle)"
    r"(?: of)?(?: over)?(?: the)? )+(?:face|facial (?:area|region))\b",
}
assert tuple(_REGIONS) == REGION_NAMES
_REGION = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in _REGIONS.items()))
_PARTS = r"(?:regions?|parts?|areas?|features?)\b"
# Words that, like a region, keep a "real" from being said of the image.
_ELSEWHERE = re.compile(
    r"\b(?:rest|remain\w*|other|else(?:where)?|background|hair|neck|skin|surround\w*|outside)\b"
    rf"|\b(?<!all )(?<!every )(?<!each )(?<!no ){_PARTS}"
)
_FRAGMENT = re.compile(
    r"^\W*(?:(?:the|an?|at|in|on|around|near|of|and|or|both|left|right|upper|lower|side|its|her|"
    r"his|their|mainly|mostly|only|also|especially|including|with|is|are|it|not|no|none|nor|within|"
    rf"{_PARTS})\W*)*$"
)
_TURN = re.compile(r"\b(?:not?|none|without)\b")
_ELLIPSIS = re.compile(r"\b(?:is|are|was|were|does|do|has|have)$")


@dataclass(frozen=True)
class _Clause:
    text: str
    contrast: str | None
    """The word of contrast before it."""

    def terms(self, pattern: re.Pattern[str], sign: int) -> Iterator[tuple[re.Match[str], int]]:
        """Matches with their sign: 1 for fake, -1 for real, turned by each negation before."""
        for match in pattern.finditer(self.text):
            yield match, sign * (-1) ** len(_NOT.findall(self.text[: match.start()]))


def parse_answer(text: str) -> ParsedAnswer:
    """Read label and regions from an answer to "Is this a deepfake image?" or a follow-up.

    Args:
        text: English free text. Questions in it are passed over.

    Returns:
        Regions of which the text says that they are untouched are not among ``regions``; one that
        is named as forged at one place counts, even if it is called untouched at another (the
        left eye and the right). "face" covers the others and stands alone.
    """
    text = text.lower().strip()
    lines = []
    for line in text.splitlines():
        for pattern, replacement in _NORMALISE:
            line = pattern.sub(replacement, line)
        lines.append(line.strip())
    votes: set[int] = set()
    regions: set[str] = set()
    yes, no = FAKE, REAL
    for sentence in _SENTENCE.split("\n".join(lines)):
        if not sentence.strip():
            continue
        if sentence.rstrip().endswith("?"):
            # "Is this real? No."
            asks_real = _REAL.search(sentence) and not _FAKE.search(sentence)
            yes, no = (REAL, FAKE) if asks_real else (FAKE, REAL)
            continue
        if _AMBIGUOUS.search(sentence):
            return ParsedAnswer(None, ())
        sentence = _take_yes_or_no(sentence.strip(), votes, yes, no)
        _read_clauses(_clauses(sentence), votes, regions)
    label = votes.pop() if len(votes) == 1 else None
    if label == REAL:
        return ParsedAnswer(label, ())
    if WHOLE_FACE in regions:
        regions = {WHOLE_FACE}
    return ParsedAnswer(label, tuple(name for name in REGION_NAMES if name in regions))


def _take_yes_or_no(sentence: str, votes: set[int], yes: int, no: int) -> str:
    """Count a plain yes or no, and return what remains of the sentence."""
    if lead := _LEAD.match(sentence):
        votes.add(yes if lead[1] else no)
        return sentence[lead.end() :]
    if said := _SAID.search(sentence):
        votes.add(yes if said[1] else no)
        return ""
    if think := _THINK_SO.match(sentence):
        votes.add(no if think[1] else yes)
    elif _FLAT_NO.match(sentence):
        votes.add(no)
    return sentence


def _clauses(sentence: str) -> list[_Clause]:
    clauses, start, contrast = [], 0, None
    for cut in _SPLIT.finditer(sentence):
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
    """Whether a list of regions belongs to what follows: "the eyes | the nose are real"."""
    if clause.contrast or following.contrast or not _is_fragment(clause.text):
        return False
    if not _REGION.search(clause.text) or _NOT.search(clause.text):
        return False
    subject = _REGION.search(following.text)
    # Behind a statement the list may as well belong to that.
    named_first = subject is not None and _is_fragment(following.text[: subject.end()])
    said = any(pattern.search(following.text) for pattern in (_FAKE, _ODD, _REAL, _EVEN))
    return first or (said and (named_first or bool(_ELIDED_SUBJECT.match(following.text))))


def _is_fragment(text: str) -> bool:
    """Whether a text names regions without saying anything of them."""
    return bool(_FRAGMENT.match(_REGION.sub("", text)))


def _read_clauses(clauses: list[_Clause], votes: set[int], regions: set[str]) -> None:
    """Add what the clauses of one sentence say."""
    side: int | None = None
    limited = False
    for i, clause in enumerate(clauses):
        if _UNKNOWN.search(clause.text):
            side = None
            continue
        if clause.contrast:
            side = _contrast_side(clauses, i, side)
            named = _named(clause.text) if side == 1 else set()
            regions |= named
            # "Real except for the nose" is no verdict that could be counted as either.
            votes |= {FAKE} if named else set()
            continue
        limited = _is_limited(clause) or (limited and bool(_ELIDED_SUBJECT.match(clause.text)))
        if not _HEDGE.search(clause.text):
            votes |= _clause_votes(clause, limited)
        side = _read_regions(clause, side, regions)
        if side == 1 and _ELLIPSIS.search(clause.text) and _named(clause.text):
            votes.add(FAKE)


def _clause_votes(clause: _Clause, limited: bool) -> set[int]:
    votes = {FAKE if sign == 1 else None for _, sign in clause.terms(_FAKE, 1)}
    votes |= {FAKE if sign == 1 else None for _, sign in clause.terms(_REAL, -1)}
    if None in votes:
        votes.discard(None)
        votes |= set() if limited else {REAL}
    return votes


def _is_limited(clause: _Clause) -> bool:
    """Whether what the clause calls real is a part of the image, not the image."""
    parts = [m for m in _REGION.finditer(clause.text) if m.lastgroup != WHOLE_FACE]
    parts += _ELSEWHERE.finditer(clause.text)
    if not parts:
        return False
    for match, sign in clause.terms(_REAL, -1):
        # "a real face with brown eyes": the part is behind, and not what is called real.
        before = any(part.start() < match.start() for part in parts)
        behind = any(0 <= part.start() - match.end() <= 1 for part in parts)
        if sign == -1 and not before and not behind:
            return False
    return True


def _read_regions(clause: _Clause, side: int | None, regions: set[str]) -> int | None:
    """Add the regions that the clause calls forged; returns the side on which it ends."""
    terms = [
        (match.start(), sign)
        for pattern, plain in ((_FAKE, 1), (_ODD, 1), (_REAL, -1), (_EVEN, -1))
        for match, sign in clause.terms(pattern, plain)
    ]
    if terms:
        for match in _REGION.finditer(clause.text):
            if min(terms, key=lambda term: abs(term[0] - match.start()))[1] == 1:
                regions.add(match.lastgroup)
        return max(terms)[1]
    if side is None and not _is_fragment(clause.text):
        return None
    # "not" and "but the eyes are" turn what was said before, "nor" goes on with it.
    turned = _TURN.search(clause.text) or _ELLIPSIS.search(clause.text)
    side = (side or 1) * (-1 if turned else 1)
    if side == 1:
        regions |= _named(clause.text)
    return side


def _contrast_side(clauses: list[_Clause], i: int, side: int | None) -> int | None:
    """The side opposite to what precedes the contrast or, where it comes first, follows it."""
    if side is None and i + 1 < len(clauses):
        side = _read_regions(clauses[i + 1], None, set())
    return None if side is None else -side


def _named(text: str) -> set[str]:
    return {match.lastgroup for match in _REGION.finditer(text)}
