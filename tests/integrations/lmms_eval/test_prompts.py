import random

import pytest

from llava_forgery.integrations.lmms_eval.prompts import cite_score, is_detection_prompt
from llava_forgery.qa import templates
from llava_forgery.qa.build import detection_prompt


@pytest.mark.parametrize("seed", range(20))
def test_score_stands_where_training_puts_it(seed):
    plain = detection_prompt(rng=random.Random(seed))
    trained = detection_prompt(0.873, rng=random.Random(seed))
    assert cite_score(plain, 0.873) == trained
    assert (
        cite_score(f"{plain} Answer with yes or no.", 0.873) == f"{trained} Answer with yes or no."
    )


@pytest.mark.parametrize("score", [0.0, 0.5, 1.0])
def test_score_is_cited_once(score):
    once = cite_score(detection_prompt(), score)
    assert once.count("the forgery score is") == 1
    assert cite_score(once, 0.25) == once


@pytest.mark.parametrize("question", templates.QUESTIONS)
def test_question_alone(question):
    assert cite_score(question, 0.5) == detection_prompt(
        0.5, question=question, task_description=False
    )
    assert is_detection_prompt(question.lower())


@pytest.mark.parametrize(
    "text",
    [
        "What colour is the car?",
        "Where is the artifact?",
        templates.TASK_DESCRIPTIONS[0],
        "Which is right? Is this a deepfake image?",
    ],
)
def test_other_questions_stay_as_they_are(text):
    assert not is_detection_prompt(text)
    assert cite_score(text, 0.5) == text


def test_wrong_score():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        cite_score(detection_prompt(), 1.5)
