"""Wordings: what every list must keep to, and the canonical ones word for word."""

import pytest

from llava_forgery.qa import templates

FOLLOW_UPS = (templates.WHERE, templates.WHY, templates.UNTOUCHED)


def test_there_are_enough_wordings():
    assert len(templates.TASK_DESCRIPTIONS) >= 4
    assert len(templates.QUESTIONS) >= 6
    assert len(templates.YES_ANSWERS) >= 5
    assert len(templates.NO_ANSWERS) >= 5
    for follow_up in FOLLOW_UPS:
        assert min(map(len, (follow_up.questions, follow_up.fake, follow_up.real))) >= 3
    assert len(templates.HOW_SURE_QUESTIONS) >= 3
    for answers in (
        templates.HOW_SURE,
        templates.HOW_SURE_AGAINST,
        templates.HOW_SURE_WITHOUT_SCORE,
        templates.UNTOUCHED_NONE,
    ):
        assert len(answers) >= 3


def test_wordings_differ():
    lists = [value for value in vars(templates).values() if isinstance(value, tuple)]
    lists += [f for follow_up in FOLLOW_UPS for f in vars(follow_up).values()]
    for wordings in lists:
        assert len(set(wordings)) == len(wordings)


def test_the_first_word_is_the_verdict():
    assert {answer.split(".")[0] for answer in templates.YES_ANSWERS} == {"Yes"}
    assert {answer.split(".")[0] for answer in templates.NO_ANSWERS} == {"No"}


def test_every_yes_answer_names_the_regions():
    assert all(answer.count("{regions}") == 1 for answer in templates.YES_ANSWERS)
    assert all("{" not in answer for answer in templates.NO_ANSWERS)


def test_canonical_wordings():
    assert templates.TASK_DESCRIPTIONS[0] == (
        "This is a facial image designed for deepfake detection, and it should not exhibit any "
        "localized color discrepancies or evident signs of splicing."
    )
    assert templates.KFD_RESULT == "According to KFD prediction, the forgery score is {score:.2f}."
    assert templates.QUESTIONS[0] == "Is this a deepfake image?"
    assert templates.YES_ANSWERS[0] == (
        "Yes. This is a deepfake image, and the artifact is at the {regions}."
    )
    assert templates.NO_ANSWERS[0] == "No. This is a pristine image."


@pytest.mark.parametrize(
    ("regions", "phrase"),
    [
        (("nose",), "nose"),
        (("nose", "mouth"), "nose and mouth"),
        (("eyes", "nose", "mouth"), "eyes, nose and mouth"),
        (("face",), "whole inner face"),
    ],
)
def test_join_regions(regions, phrase):
    assert templates.join_regions(regions) == phrase


@pytest.mark.parametrize(
    ("regions", "message"), [((), "no region to name"), (("ear",), "unknown regions")]
)
def test_join_regions_is_checked(regions, message):
    with pytest.raises(ValueError, match=message):
        templates.join_regions(regions)


def test_untouched_regions():
    expected = ("eyes", "eyebrows", "chin", "cheeks")
    assert templates.untouched_regions(("nose", "mouth")) == expected
    assert templates.untouched_regions(("face",)) == ()
    assert templates.untouched_regions(expected + ("nose", "mouth")) == ()
