"""LLaVA's JSON and Hugging Face data sets."""

import json
import random

import pytest

from llava_forgery.constants import FAKE, REAL
from llava_forgery.qa.build import build_conversation, build_prompt
from llava_forgery.qa.conversation import Conversation
from llava_forgery.qa.dataset import from_dataset, from_llava_json, to_dataset, to_llava_json


@pytest.fixture
def conversations():
    rng = random.Random(0)
    return [
        build_conversation(FAKE, ("nose", "chin"), rng=rng, score=0.9, follow_ups=2, image="a.png"),
        build_conversation(REAL, (), rng=rng, image="b/c.png"),
        build_prompt(0.3),
    ]


def test_llava_json_round_trip(conversations):
    entries = json.loads(json.dumps(to_llava_json(conversations)))
    assert from_llava_json(entries) == conversations


def test_llava_json_is_llavas():
    conversation = build_conversation(
        FAKE, ("nose",), rng=random.Random(0), score=0.93, vary=False, task_description=False,
        image="a.png",
    )  # fmt: skip
    assert to_llava_json([conversation]) == [
        {
            "id": "000000",
            "image": "a.png",
            "conversations": [
                {
                    "from": "human",
                    "value": "<image>\nAccording to KFD prediction, the forgery score is 0.93. "
                    "Is this a deepfake image?",
                },
                {
                    "from": "gpt",
                    "value": "Yes. This is a deepfake image, and the artifact is at the nose.",
                },
            ],
            "label": 1,
            "regions": ["nose"],
        }
    ]


def test_llavas_own_data_is_read():
    entry = {
        "id": "1",
        "image": "x.jpg",
        "conversations": [
            {"from": "human", "value": "What is this?\n<image>"},
            {"from": "gpt", "value": "A bus. "},
        ],
    }
    (conversation,) = from_llava_json([entry])
    assert [m.text for m in conversation.messages] == ["What is this?", "A bus."]
    assert (conversation.label, conversation.regions) == (None, ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "holds 1 times <image>, expected 0"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "turn 0 is from 'bot'"),
        ({"regions": ["nose"]}, "only a fake image"),
        ({"conversations": [{"from": "human"}]}, "entry '7' is not valid: KeyError"),
    ],
)
def test_bad_entries_are_named(change, message):
    entry = {
        "id": "7",
        "image": "x.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": "That."},
        ],
    }
    with pytest.raises(ValueError, match=message):
        from_llava_json([entry | change])


def test_dataset_round_trip(conversations, tmp_path):
    dataset = to_dataset(conversations)
    assert dataset.column_names == ["messages", "label", "regions", "image"]
    dataset.save_to_disk(tmp_path / "set")
    restored = from_dataset(type(dataset).load_from_disk(tmp_path / "set"))
    assert restored == conversations
    assert all(isinstance(conversation, Conversation) for conversation in restored)


def test_empty_dataset():
    assert from_dataset(to_dataset([])) == []
