import pytest

from llava_forgery.constants import FAKE, REAL
from llava_forgery.evaluation.turns import parse_place, turns_agree
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
