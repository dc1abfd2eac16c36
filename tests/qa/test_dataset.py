"""Conversations as a Hugging Face data set."""

import random

import pytest

from llava_forgery.constants import FAKE, REAL
from llava_forgery.qa.build import build_conversation, build_prompt
from llava_forgery.qa.conversation import Conversation
from llava_forgery.qa.dataset import from_dataset, to_dataset


@pytest.fixture
def conversations():
    rng = random.Random(0)
    return [
        build_conversation(FAKE, ("nose", "chin"), rng=rng, score=0.9, follow_ups=2, image="a.png"),
        build_conversation(REAL, (), rng=rng, image="b/c.png"),
        build_prompt(0.3),
    ]


def test_dataset_round_trip(conversations, tmp_path):
    dataset = to_dataset(conversations)
    assert dataset.column_names == ["messages", "label", "regions", "image"]
    dataset.save_to_disk(tmp_path / "set")
    restored = from_dataset(type(dataset).load_from_disk(tmp_path / "set"))
    assert restored == conversations
    assert all(isinstance(conversation, Conversation) for conversation in restored)


def test_empty_dataset():
    assert from_dataset(to_dataset([])) == []
