"""Conversations from labels, regions and scores."""

import random
import re

import pytest

from llava_forgery.constants import FAKE, REAL
from llava_forgery.qa import templates
from llava_forgery.qa.build import build_conversation, build_prompt, detection_prompt, kfd_result

CANONICAL_PROMPT = (
    "This is a facial image designed for deepfake detection, and it should not exhibit any "
    "localized color discrepancies or evident signs of splicing. According to KFD prediction, the "
    "forgery score is 0.93. Is this a deepfake image?"
)


def texts(conversation):
    return [message.text for message in conversation.messages]


def test_canonical_conversations():
    fake = build_conversation(
        FAKE, ("mouth", "nose"), rng=random.Random(0), score=0.93, vary=False, image="a.png"
    )
    assert texts(fake) == [
        CANONICAL_PROMPT,
        "Yes. This is a deepfake image, and the artifact is at the nose and mouth.",
    ]
    assert (fake.label, fake.regions, fake.image) == (FAKE, ("nose", "mouth"), "a.png")
    real = build_conversation(REAL, (), rng=random.Random(0), score=0.93, vary=False)
    assert texts(real) == [CANONICAL_PROMPT, "No. This is a pristine image."]


def follow_up_answers(label, regions, score):
    """Canonical answer to each kind of follow-up."""
    answers = {}
    for seed in range(40):
        conversation = build_conversation(
            label, regions, rng=random.Random(seed), score=score, follow_ups=3, vary=False
        )
        turns = texts(conversation)[2:]
        answers |= dict(zip(turns[::2], turns[1::2], strict=True))
    return answers


def test_canonical_follow_ups_of_a_fake_image():
    assert follow_up_answers(FAKE, ("nose", "mouth"), 0.93) == {
        "Where is the artifact?": "The artifact is at the nose and mouth.",
        "How sure are you?": "The forgery score is 0.93, so I am very sure.",
        "Why do you think so?": (
            "The nose and mouth and the surrounding skin do not quite match: cues such as a "
            "blending boundary, or a difference in color or sharpness, point to an edit there."
        ),
        "Which parts of the face are untouched?": (
            "I see no signs of editing at the eyes, eyebrows, chin and cheeks."
        ),
    }


def test_canonical_follow_ups_of_a_real_image():
    assert follow_up_answers(REAL, (), 0.02) == {
        "Where is the artifact?": "Nowhere. I see no artifact in this image.",
        "How sure are you?": "The forgery score is 0.02, so I am very sure.",
        "Why do you think so?": (
            "Color and sharpness look consistent across the face, and I see no blending boundary."
        ),
        "Which parts of the face are untouched?": (
            "All of them. I see no signs of editing in this face."
        ),
    }


def test_nothing_of_the_inner_face_is_untouched():
    for regions in (("face",), templates.untouched_regions(())):
        answer = follow_up_answers(FAKE, regions, 0.9)["Which parts of the face are untouched?"]
        assert answer == templates.UNTOUCHED_NONE[0]


@pytest.mark.parametrize(
    ("label", "score", "words"),
    [
        (FAKE, 0.896, "0.90, so I am very sure"),
        (FAKE, 0.89, "0.89, so I am sure"),
        (FAKE, 0.6, "0.60, so I am fairly sure"),
        (FAKE, 0.5, "0.50, so I am only slightly sure"),
        (FAKE, 0.2, "not sure: the forgery score is 0.20, which speaks against"),
        (REAL, 0.1, "0.10, so I am very sure"),
        (REAL, 0.25, "0.25, so I am sure"),
        (REAL, 0.49, "0.49, so I am only slightly sure"),
        (REAL, 0.97, "not sure: the forgery score is 0.97, which speaks against"),
        (FAKE, None, "no forgery score to go by"),
    ],
)
def test_certainty_fits_score_and_label(label, score, words):
    answers = follow_up_answers(label, ("nose",) if label == FAKE else (), score)
    assert words in answers["How sure are you?"]


@pytest.mark.parametrize(
    ("score", "number"),
    [(0, "0.00"), (0.004, "0.00"), (0.926, "0.93"), (0.999, "1.00"), (1, "1.00")],
)
def test_score_is_rounded(score, number):
    assert kfd_result(score) == f"According to KFD prediction, the forgery score is {number}."


@pytest.mark.parametrize("score", [-0.01, 1.01, float("nan"), 93])
def test_score_is_checked(score):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        detection_prompt(score)


def test_parts_of_the_prompt_are_optional():
    assert detection_prompt(0.93) == CANONICAL_PROMPT
    assert detection_prompt(None, task_description=False) == "Is this a deepfake image?"
    assert detection_prompt(0.5, task_description=False, question=" Where? ") == (
        "According to KFD prediction, the forgery score is 0.50. Where?"
    )
    with pytest.raises(ValueError, match="question is empty"):
        detection_prompt(0.5, question=" ")


def test_inference_words_its_prompt_as_training_does():
    prompt = build_prompt(0.93)
    trained = build_conversation(FAKE, ("nose",), rng=random.Random(0), score=0.93, vary=False)
    assert prompt.messages == trained.messages[:1]
    assert prompt.is_prompt
    assert prompt.label is None


def test_seeded_and_varied():
    def make(seed):
        return build_conversation(FAKE, ("nose",), rng=random.Random(seed), score=0.8, follow_ups=2)

    assert make(3) == make(3)
    assert len({make(seed).messages[:2] for seed in range(30)}) > 20


def test_the_wordings_do_not_tell_the_label():
    """A question that was asked of one class alone would give the answer away."""
    for label, regions in ((FAKE, ("nose",)), (REAL, ())):
        asked = {
            build_conversation(label, regions, rng=random.Random(s), score=0.8).messages[0].text
            for s in range(600)
        }
        assert len(asked) == len(templates.TASK_DESCRIPTIONS) * len(templates.QUESTIONS)


@pytest.mark.parametrize("follow_ups", [0, 1, 2, 3])
def test_follow_ups_are_of_distinct_kinds(follow_ups):
    for seed in range(20):
        conversation = build_conversation(
            REAL, (), rng=random.Random(seed), follow_ups=follow_ups, vary=False
        )
        questions = texts(conversation)[2::2]
        assert len(set(questions)) == len(questions) == follow_ups


def test_no_field_is_left_open():
    for seed in range(200):
        rng = random.Random(seed)
        label = rng.choice((REAL, FAKE))
        conversation = build_conversation(
            label, ("chin",) if label else (), rng=rng, score=rng.random(), follow_ups=3
        )
        for text in texts(conversation):
            assert not re.search(r"[{}]|the [.,]|  ", text), text


@pytest.mark.parametrize(
    ("label", "regions", "options", "message"),
    [
        (2, (), {}, "label must be 0"),
        (None, (), {}, "label must be 0"),
        (REAL, ("nose",), {}, "named for a fake image only"),
        (FAKE, (), {}, "named for a fake image only"),
        (FAKE, ("ear",), {}, "unknown regions"),
        (REAL, (), {"follow_ups": 4}, "must be 0, 1, 2 or 3"),
        (REAL, (), {"score": 1.5}, "forgery score must lie"),
    ],
)
def test_arguments_are_checked(label, regions, options, message):
    with pytest.raises(ValueError, match=message):
        build_conversation(label, regions, rng=random.Random(0), **options)
