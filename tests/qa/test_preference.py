"""Pairs of answers: the chosen one fits what is known, the rejected one contradicts it."""

import random

import pytest

from llava_forgery.constants import FAKE, REAL
from llava_forgery.evaluation.turns import parse_place, parse_untouched, untouched_agrees
from llava_forgery.qa import templates
from llava_forgery.qa.answers import ParsedAnswer, parse_answer
from llava_forgery.qa.preference import KINDS, build_pair

QUESTION = "According to KFD prediction, the forgery score is 0.93. Is this a deepfake image?"
FACTS = [(REAL, ()), (FAKE, ("nose",)), (FAKE, ("eyes", "mouth", "chin")), (FAKE, ("face",))]


def pairs(kind, label, regions, score=0.93, count=60):
    return [
        build_pair(kind, QUESTION, label, regions, rng=random.Random(i), score=score)
        for i in range(count)
    ]


def says(answer, label, regions):
    return parse_answer(answer) == ParsedAnswer(label, regions)


@pytest.mark.parametrize(("label", "regions"), FACTS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind(kind, label, regions):
    if kind == "region" and label == REAL:
        with pytest.raises(ValueError, match="region for fakes only"):
            pairs(kind, label, regions, count=1)
        return
    asked = set()
    for pair in pairs(kind, label, regions):
        assert pair.chosen != pair.rejected
        assert pair.prompt.is_prompt
        first, *others = [message.text for message in pair.prompt.messages]
        assert first == QUESTION
        if kind == "verdict":
            assert not others
            assert says(pair.chosen, label, regions)
            assert parse_answer(pair.rejected).label == 1 - label
        elif kind == "region":
            assert not others
            assert says(pair.chosen, label, regions)
            wrong = parse_answer(pair.rejected)
            assert wrong.label == FAKE
            assert not set(wrong.regions) & set(regions)
        else:
            # What the later answer is at odds with is true itself.
            assert says(others[0], label, regions)
            asked.add(others[-1])
        if kind == "untouched":
            truth = ParsedAnswer(label, regions)
            assert untouched_agrees(truth, parse_untouched(pair.chosen)), pair.chosen
            assert not untouched_agrees(truth, parse_untouched(pair.rejected)), pair.rejected
        if kind == "follow-up" and others[-1] in templates.WHERE.questions:
            truth, said = ParsedAnswer(label, regions), parse_place(pair.rejected)
            assert parse_place(pair.chosen) == truth
            assert said != truth
    if kind == "follow-up":
        wanted = (*templates.WHERE.questions, *templates.WHY.questions)
        assert asked >= {*wanted, *templates.HOW_SURE_QUESTIONS}


def test_both_answers_are_worded_alike():
    pair = build_pair("region", QUESTION, FAKE, ("nose",), rng=random.Random(3))
    (wrong,) = (parse_answer(pair.rejected).regions,)
    assert pair.rejected == pair.chosen.replace("nose", templates.join_regions(wrong))


def test_the_forged_regions_are_those_called_untouched():
    for pair in pairs("untouched", FAKE, ("nose", "mouth")):
        assert parse_untouched(pair.rejected) == ("nose", "mouth")


@pytest.mark.parametrize("score", [None, 0.5])
def test_without_a_score_that_speaks_nobody_is_asked_how_sure(score):
    for pair in pairs("follow-up", REAL, (), score):
        assert pair.prompt.messages[-1].text not in templates.HOW_SURE_QUESTIONS
        assert pair.chosen != pair.rejected


@pytest.mark.parametrize(
    ("kind", "label", "regions"),
    [("verdict", REAL, ("nose",)), ("verdict", FAKE, ()), ("?", 0, ())],
)
def test_contradicting_facts_are_refused(kind, label, regions):
    with pytest.raises(ValueError, match="fake"):
        pairs(kind, label, regions, count=1)
