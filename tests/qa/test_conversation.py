"""The neutral record of a dialogue."""

import dataclasses
import json

import pytest

from llava_forgery.constants import FAKE, REAL
from llava_forgery.qa.conversation import Conversation, Message, order_regions

ASK, TELL = Message("user", "Is this a deepfake image?"), Message("assistant", "Yes. It is.")


def test_round_trip_through_json():
    conversation = Conversation((ASK, TELL), FAKE, ("nose", "mouth"), image="a/b.png")
    restored = Conversation.from_dict(json.loads(json.dumps(conversation.to_dict())))
    assert restored == conversation
    prompt = Conversation((ASK,), None)
    assert Conversation.from_dict(prompt.to_dict()) == prompt


def test_image_may_be_missing():
    row = {"messages": [ASK.to_dict(), TELL.to_dict()], "label": REAL, "regions": []}
    assert Conversation.from_dict(row).image is None


@pytest.mark.parametrize("row", [{"messages": [], "label": 0}, {"label": 0, "x": 1}])
def test_keys_are_checked(row):
    with pytest.raises(ValueError, match="expected the keys"):
        Conversation.from_dict(row)


def test_immutable():
    conversation = Conversation([ASK, TELL], FAKE, ["nose"])
    assert conversation.messages == (ASK, TELL)
    assert conversation.regions == ("nose",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        conversation.label = REAL


@pytest.mark.parametrize(
    ("role", "text", "message"),
    [
        ("system", "Hi", "role must be one of user, assistant"),
        ("user", "  ", "must not be empty"),
        ("user", "Hi ", "strip the white space"),
        ("user", "see <image>", "must not hold <image>"),
        ("assistant", "<forgery>", "must not hold <forgery>"),
    ],
)
def test_message_is_checked(role, text, message):
    with pytest.raises(ValueError, match=message):
        Message(role, text)


@pytest.mark.parametrize(
    ("messages", "label", "regions", "message"),
    [
        ((), None, (), "at least one message"),
        ((TELL,), None, (), "message 0 must be the user's"),
        ((ASK, ASK), None, (), "message 1 must be the assistant's"),
        ((ASK, TELL), 2, (), "label must be 0"),
        ((ASK,), REAL, (), "must end with the assistant's answer"),
        ((ASK, TELL), FAKE, (), "needs the names of its forged regions"),
        ((ASK, TELL), REAL, ("nose",), "only a fake image has forged regions"),
        ((ASK, TELL), None, ("nose",), "only a fake image has forged regions"),
        ((ASK, TELL), FAKE, ("mouth", "nose"), "must be in the order"),
        ((ASK, TELL), FAKE, ("ear",), "unknown regions"),
        ((ASK, TELL), FAKE, ("nose", "nose"), "named twice"),
        ((ASK, TELL), FAKE, ("nose", "face"), "must be alone"),
    ],
)
def test_conversation_is_checked(messages, label, regions, message):
    with pytest.raises(ValueError, match=message):
        Conversation(messages, label, regions)


def test_prompt():
    assert Conversation((ASK,), None).is_prompt
    assert not Conversation((ASK, TELL), None).is_prompt


def test_order_regions():
    assert order_regions(["mouth", "eyes", "nose"]) == ("eyes", "nose", "mouth")
    with pytest.raises(ValueError, match="got the string 'nose'"):
        order_regions("nose")
