"""The English that :mod:`.answers` reads: patterns over lower-case text, in order of use."""

import re

from llava_forgery.constants import REGION_NAMES, WHOLE_FACE

CHANCE = r"(?:probability|likelihood|chances?|possibility)(?: that)?"
OVER_HALF = r"(?:5[1-9]|[6-9]\d|100)(?:\.\d+)?"
NORMALISE = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[’`´]", "'"),
        (r"</?\w+>|[*_\"“”#{}\[\]]", ""),
        (r"([.!?])(?=[a-z])", r"\1 "),
        (r"\b(can)(?:'t|not)\b", r"\1 not"),
        (r"n't\b", " not"),
        (r"\b(is|are|was|were|do|does|did|has|have|could|would)nt\b", r"\1 not"),
        (r"\bneither\b(.*?)\bnor\b", r"not\1or"),
        # Not verdicts, although they contain words of verdicts.
        (
            r"\b(?:forgery|forged|deepfakes?|fake|kfd|manipulation|tampering)[ -]"
            r"(?:scores?|detect\w+|predict\w+|probabilit\w+|likelihood|expert|analysis|model|"
            r"datasets?|test|check)\b",
            "it",
        ),
        (r"\b(?:no|without(?: an?y?)?|beyond) (?:doubt|question|problem)\b", ""),
        (r"\bartificial (?=light|illuminat|smile|background)\w+", ""),
        (r"\bfake (?:nails?|hair|beard|mo?ustache|eyelashes|lashes|blood|tan|smile)\b", ""),
        (r"\b(?:real|genuine|authentic) (?:smile|expressions?|emotions?|warmth|joy)\b", ""),
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
        # Numbers and words of likelihood.
        (
            rf"\b{OVER_HALF} ?(?:%|percent)(?: {CHANCE})?|\b(?:high|strong|great|good) {CHANCE}",
            "",
        ),
        (r"\b\d+(?:\.\d+)? ?(?:%|percent)", "possibly"),
        (rf"\b(?:very )?(?:low|small|little|slim) {CHANCE}", "not"),
        # Negations in other words.
        (r"\b(?:free|devoid) (?:of|from)\b|\black(?:s|ing)?(?: of)?\b|\babsence of\b", "without"),
        (r"\banything but\b|\bfar from\b|\btoo \w+ to\b|\b(?:wrong|false) (?:to|that)\b", "not"),
        (
            r"\b(?:looked|searched|checked) for ([^,.;]*?),? (?:and|but) (?:found|saw|see) "
            r"(?:none|nothing)\b",
            r"no \1",
        ),
        (r"\boutside (?:of )?the (?:whole |entire )?(?:inner )?face\b", "outside"),
        (r"\b((?:differ|deviat)\w*|distinct)\b([^.,;]*?)\bfrom\b", r"\1\2 unlike"),
        (r"\bcompared (?:to|with)\b", "unlike"),
        (r"\s+", " "),
    )
)

YES, NO = r"yes|yeah|yep|yup", r"no|nope|nah"
AMBIGUOUS = re.compile(r"\b(?:yes (?:and|or) no|yes ?/ ?no)\b")
# "No" answers where a pause or a new sentence follows; "No signs of ..." does not begin with it.
FILLER = (
    r"(?:(?:well|so|hmm+|oh|ok(?:ay)?|clearly|definitely|certainly|absolutely|likely|most likely|"
    r"very likely|probably|i think|i believe|in my opinion)[,.!]? )*"
)
LEAD = re.compile(
    rf"^(?:\w+ ?[:=] ?)?{FILLER}(?:({YES})\b|({NO})(?=$|\W*$|\s*[,.:;!()\-–—]|\s+"
    r"(?:it|this|that|the|there|i|we|these)\b))\s*[,.:;!\-–—]*\s*"
)
SAID = re.compile(
    rf"\b(?:say|answer|verdict|so|hence|therefore)(?: is| would be)?[:,]? (?:({YES})|({NO}))\W*$"
)
THINK_SO = re.compile(r"^i (?:do )?(not )?(?:think|believe|suppose) so\W*$")
FLAT_NO = re.compile(
    r"^(?:(?:definitely|certainly|absolutely|probably|most likely|of course) not|not at all|"
    r"not that i can (?:see|tell))\W*$"
)

FAKE_WORDS = re.compile(
    r"\b(?:deep[ -]?fak\w+|fak(?:e|es|ed|ing|ery)|forg(?:ed|ery|eries|ing)|manipulat\w+|"
    r"tamper\w*|alter(?:ed|ations?|ing)|edit(?:ed|ing|s)?|modifi(?:ed|cations?)|doctored|"
    r"retouch\w+|falsified|synthetic\w*|synthesi[sz]ed|artificial\w*|splic\w+|blend(?:ed|ing)|"
    r"generated|fabricated|swap(?:s|ped|ping)?|photoshop\w*|arti?e?facts?|inauthentic|unreal|"
    r"composite[ds]?|pasted|morph(?:ed|ing)|airbrush\w*|cgi|counterfeit|bogus|phone?y|"
    r"(?:created|made|produced) (?:by|with|using) (?:an? )?(?:ai|gan|computer|software|artificial)|"
    r"inconsistenc\w+|anomal(?:y|ies)|irregularit\w+)\b"
)
PHOTO = r"(?:image|photo\w*|picture|portrait|shot|frame)\b"
REAL_WORDS = re.compile(
    r"\b(?:real|pristine|authentic|genuine|legit(?:imate)?|un(?:altered|edited|manipulated|"
    rf"touched|tampered|modified|retouched)|(?<!the )original(?= {PHOTO}))\b"
)
# They put a region on a side, but give no verdict on the image.
ODD = re.compile(
    r"\b(?:mismatch\w*|boundar\w+|seams?|blurr?\w*|unnatural\w*|inconsistent\w*|differ\w*|"
    r"distort\w+|warped|odd|strange|suspicious\w*|discolou?r\w+|smear\w+|affected|replaced|"
    r"(?:something|looks?|seems?) (?:off|wrong))\b"
)
EVEN = re.compile(
    r"\b(?:natural\w*|normal|fine|consistent\w*|clean|intact|unaffected|unchanged|ok(?:ay)?|"
    r"match(?:es)?)\b"
)
NOT = re.compile(
    r"\b(?:not?|never|none|nothing|nowhere|without|neither|nor|hardly|barely|unlikely|"
    r"doubt(?:s|ful)?|fail(?:s|ed)? to|ruled? out)\b"
)

UNKNOWN = re.compile(
    r"\bwhether\b|(?<!as )\bif\b|\bun(?:sure|clear|certain|able)\b|"
    r"\b(?<!would )not (?:\w+ )?(?:sure|certain|clear|able|know|enough|tell|say|"
    r"determine|judge|decide|confirm|necessarily|rule|help|assist|comment|provide)\b|"
    r"\b(?:hard|difficult|impossible) to\b|"
    # Statements about deepfakes in general, or advice.
    r"\b(?:often|usually|typically|commonly|generally|in general)\b|"
    r"(?<!the )(?<!no )(?<!any )\btypical\b|"
    r"^(?:a )?deepfakes?(?: (?:image|photo|video|picture)s?)? (?:is an?|are|can|may|use|have|show|"
    r"refers?|tend|contain)\b|"
    r"(?:^|\b(?:you|one|to|should|can) )(?:look|check|watch|search)(?: out)? for\b"
)
HEDGE = re.compile(
    r"\b(?:might|may|maybe|perhaps|possib\w+|could(?! not)|chances?|probability|likelihood)\b"
)

CLAUSE_START = (
    r"(?:it|its|this|that|these|those|the|there|they|i|we|which|not|no|nor|none|neither|without|"
    r"with|is|are|was|were|has|have|had|does|do|did|shows?|looks?|appears?|seems?|contains?|only|"
    r"all|every\w*|nothing|most|especially|particularly|both|can|could)\b"
)
ELIDED_SUBJECT = re.compile(
    r"^(?:is|are|was|were|has|have|had|does|do|did|shows?|looks?|appears?|seems?|contains?)\b"
)
# Text after these is on the other side.
CONTRAST = r"except(?: for| that)?|apart from|other than|rather than|instead of|than|unlike"
SPLIT = re.compile(
    rf"\s*(?:[:;()]|--+|–|—|,? \b(?:but|however|while|whereas|(?:al)?though|because|since)\b|"
    rf", (?:so|yet)\b|,? ?\b(?P<contrast>{CONTRAST})\b|,\s*(?:and |or )?(?={CLAUSE_START})|"
    rf" and (?={CLAUSE_START}))\s*"
)
SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+")

REGIONS = {
    "eyes": r"\beye(?:s|lids?|lash(?:es)?|balls?)?\b(?!-? ?brow)",
    "eyebrows": r"\b(?:eye[ -]?)?brows?\b",
    "nose": r"\b(?:noses?|nostrils?)\b",
    "mouth": r"\b(?:mouths?|lips?|teeth)\b",
    "chin": r"\b(?:chins?|jaws?|jaw-?lines?)\b",
    "cheeks": r"\bcheek(?:s|bones?)?\b",
    WHOLE_FACE: r"\b(?:(?:whole|entire|full|complete|inner|central|cent(?:er|re)|all|middle)"
    r"(?: of)?(?: over)?(?: the)? )+(?:face|facial (?:area|region))\b",
}
assert tuple(REGIONS) == REGION_NAMES
REGION = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in REGIONS.items()))
PARTS = r"(?:regions?|parts?|areas?|features?)\b"
# Words that, like a region, prevent a "real" from referring to the image.
ELSEWHERE = re.compile(
    r"\b(?:rest|remain\w*|other|else(?:where)?|background|hair|neck|skin|surround\w*|outside)\b"
    rf"|\b(?<!all )(?<!every )(?<!each )(?<!no ){PARTS}"
)
FRAGMENT = re.compile(
    r"^\W*(?:(?:the|an?|at|in|on|around|near|of|and|or|both|left|right|upper|lower|side|its|her|"
    r"his|their|facial|such as|like|mainly|mostly|only|also|especially|including|with|is|are|it|"
    r"not|no|none|nor|within|"
    rf"{PARTS})\W*)*$"
)
TURN = re.compile(r"\b(?:not?|none|without)\b")
ELLIPSIS = re.compile(r"\b(?:is|are|was|were|does|do|has|have)$")

# "It looks real, but it is fake": the appearance is conceded, the rest is the statement.
LOOK = (
    r"(?:it|this|that|he|she|the \w+(?: \w+)?) (?:may |might |could |does |do )?"
    r"(?:looks?|appears?|seems?)\b[^,.;:]*"
)
CONCESSION = re.compile(
    rf"\b(?:(?:al|even )?though|while|whereas|despite that) {LOOK},|"
    rf"\b{LOOK},? (?:but|yet|however),? (?=(?:it|this|that|in fact|actually|really|"
    rf"the {PHOTO})(?:'|\b))"
)
