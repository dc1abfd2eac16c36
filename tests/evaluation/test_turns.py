import pytest

from llava_forgery.constants import FAKE, REAL
from llava_forgery.evaluation.turns import (
    contradictions,
    parse_place,
    parse_untouched,
    turns_agree,
    untouched_agrees,
)
from llava_forgery.qa import templates
from llava_forgery.qa.answers import ParsedAnswer, parse_answer


@pytest.mark.parametrize(
    ("text", "label", "regions"),
    [
        ("Nose and mouth.", FAKE, ("nose", "mouth")),
        ("Nowhere.", REAL, ()),
        ("None", REAL, ()),
        ("No part", REAL, ()),
        ("I cannot tell.", None, ()),
        ("Somewhere.", None, ()),
        ("The artifact is at the eyes.", FAKE, ("eyes",)),
    ],
)
def test_places(text, label, regions):
    assert parse_place(text) == ParsedAnswer(label, regions)


@pytest.mark.parametrize("text", templates.WHERE.real)
def test_trained_answers_for_real_images(text):
    assert parse_place(text).label == REAL


@pytest.mark.parametrize(
    ("verdict", "place", "agree"),
    [
        ("Yes. The artifact is at the nose.", "The artifact is at the nose.", True),
        ("Yes.", "The nose.", True),
        ("No. This is a pristine image.", "Nowhere.", True),
        ("No. This is a pristine image.", "The artifact is at the nose.", False),
        ("Yes. The artifact is at the nose.", "The artifact is at the chin.", False),
        ("Yes. The artifact is at the nose.", "Nowhere. I see no artifact.", False),
        ("Yes.", "I cannot tell.", False),
        ("I cannot tell.", "I cannot tell.", False),
    ],
)
def test_do_the_turns_agree(verdict, place, agree):
    assert turns_agree(parse_answer(verdict), parse_place(place)) is agree


ALL = ("eyes", "eyebrows", "nose", "mouth", "chin", "cheeks")


@pytest.mark.parametrize(
    ("text", "untouched"),
    [
        ("I see no signs of editing at the eyes and chin.", ("eyes", "chin")),
        ("The nose.", ("nose",)),
        ("All of them. I see no signs of editing in this face.", ALL),
        ("Every region looks pristine.", ALL),
        ("All but the nose.", ("eyes", "eyebrows", "mouth", "chin", "cheeks")),
        ("The whole face except the nose and mouth.", ("eyes", "eyebrows", "chin", "cheeks")),
        ("None of the inner face. Hair and background look untouched.", ()),
        ("Nothing but the chin.", ("chin",)),
        ("No part of the face is forged.", ALL),
        ("None of the parts shows signs of editing.", ALL),
        ("No part but the nose is forged.", ("eyes", "eyebrows", "mouth", "chin", "cheeks")),
        ("No part looks pristine.", ()),
        ("All parts are forged.", ()),
        ("The artifact is at the nose.", None),
        ("I see no signs of editing at the eyes and chin; the nose is forged.", ("eyes", "chin")),
        ("I cannot tell.", None),
    ],
)
def test_untouched_parts(text, untouched):
    assert parse_untouched(text) == untouched


@pytest.mark.parametrize(
    ("answers", "untouched"), [(templates.UNTOUCHED.real, ALL), (templates.UNTOUCHED_NONE, ())]
)
def test_trained_answers_about_untouched_parts(answers, untouched):
    assert [parse_untouched(answer) for answer in answers] == [untouched] * 3


@pytest.mark.parametrize(
    ("forged", "untouched", "agree"),
    [
        (ParsedAnswer(REAL, ()), ALL, True),
        (ParsedAnswer(REAL, ()), ("nose",), False),
        (ParsedAnswer(REAL, ()), (), False),
        (ParsedAnswer(FAKE, ("nose",)), ("eyes", "chin"), True),
        (ParsedAnswer(FAKE, ("nose",)), ("eyes", "nose"), False),
        (ParsedAnswer(FAKE, ("nose",)), (), True),
        (ParsedAnswer(FAKE, ("face",)), (), True),
        (ParsedAnswer(FAKE, ("face",)), ("chin",), False),
        (ParsedAnswer(FAKE, ()), ("chin",), True),
        (ParsedAnswer(FAKE, ()), ALL, False),
        (ParsedAnswer(FAKE, ("nose",)), None, False),
        (ParsedAnswer(None, ()), ALL, False),
    ],
)
def test_does_what_is_untouched_fit(forged, untouched, agree):
    assert untouched_agrees(forged, untouched) is agree


@pytest.mark.parametrize(
    ("answers", "kinds"),
    [
        (("No.", "Nowhere.", "All of them."), ()),
        (("Yes. It is at the nose.", "The nose.", "The chin and cheeks."), ()),
        (("Yes. It is at the nose.", "The chin.", "The chin and cheeks."), ("place",)),
        (("Yes. It was edited at the nose.", "The nose.", "The nose."), ("untouched",)),
        (("No.", "The nose.", "The nose."), ("place", "untouched")),
    ],
)
def test_contradictions(answers, kinds):
    assert contradictions(*answers) == kinds
