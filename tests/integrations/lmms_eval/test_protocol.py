import pytest

from llava_forgery.infer.dialogue import NOTHING_SAID
from llava_forgery.integrations.lmms_eval.protocol import (
    read_report,
    read_transcript,
    write_report,
    write_transcript,
)
from llava_forgery.qa.conversation import Message


@pytest.mark.parametrize("p_yes", [0.0, 1.0, 0.1 + 0.2, 1e-12, 3.4e-05, 0.49821993708610535])
def test_numbers_come_back_exactly(p_yes):
    report = read_report(write_report("Yes. The nose [left].", p_yes, 1 - p_yes, 0.773))
    assert report == ("Yes. The nose [left].", p_yes, 1 - p_yes, 0.773)


@pytest.mark.parametrize(
    "text", ["Yes.", "", "[p_yes=0.5]", "[p_yes=0.5 score=0.5 fake_from=0.5] Yes."]
)
def test_answers_without_a_report(text):
    assert read_report(text) == (text, None, None, None)


def test_empty_answer_keeps_its_numbers():
    assert read_report(write_report("", 0.25, 0.5, 0.7)) == ("", 0.25, 0.5, 0.7)


def test_transcript_comes_back_as_turns():
    text = write_transcript(["Is it fake?", "Yes.\nThe nose:\n\nleft", "Where?"])
    assert read_transcript(text) == (
        Message("user", "Is it fake?"),
        Message("assistant", "Yes. The nose: left"),
        Message("user", "Where?"),
    )


def test_a_model_that_says_nothing_has_had_its_turn():
    messages = read_transcript(write_transcript(["Is it fake?", " ", "Where?"]))
    assert messages[1].text == NOTHING_SAID


@pytest.mark.parametrize(
    "text",
    [
        "Is it fake?",
        "User: one turn",
        "User: a\nAssistant: b",
        "User: a\nUser: b\nUser: c",
        "User: a\nAssistant: b\nand more\nUser: c",
    ],
)
def test_anything_else_is_one_question(text):
    assert read_transcript(f" {text}\n") == (Message("user", text),)


@pytest.mark.parametrize("turns", [["a", "b"], [], ["a", "b", " "]])
def test_transcript_ends_with_a_question(turns):
    with pytest.raises(ValueError, match=r"user's turn|is empty"):
        write_transcript(turns)
