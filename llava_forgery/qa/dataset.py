"""Conversations as LLaVA's JSON and as a Hugging Face data set."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets

from llava_forgery.constants import IMAGE_TOKEN
from llava_forgery.qa.conversation import ROLES, Conversation, Message

FEATURES = datasets.Features(
    {
        "messages": datasets.List(
            {"role": datasets.Value("string"), "text": datasets.Value("string")}
        ),
        "label": datasets.Value("int8"),
        "regions": datasets.List(datasets.Value("string")),
        "image": datasets.Value("string"),
    }
)

# LLaVA's names of the two sides.
SPEAKERS = ("human", "gpt")


def to_llava_json(conversations: Sequence[Conversation]) -> list[dict[str, Any]]:
    """Conversations as LLaVA's training scripts read them.

    "label" and "regions" stand beside LLaVA's own keys, which ignore them, so that nothing is
    lost on the way back. An entry without an image has no "image" key and no image token.

    Returns:
        Entries such as ``{"id": "000000", "image": "a.png", "conversations": [{"from": "human",
        "value": "<image>\\n..."}, {"from": "gpt", "value": "..."}], "label": 1, "regions": [..]}``.
    """
    return [_to_entry(f"{i:06d}", conversation) for i, conversation in enumerate(conversations)]


def from_llava_json(entries: Iterable[Mapping[str, Any]]) -> list[Conversation]:
    """The inverse of :func:`to_llava_json`; entries without a label become unlabelled.

    Raises:
        ValueError: An entry is not valid; the message gives its id.
    """
    conversations = []
    for i, entry in enumerate(entries):
        try:
            conversations.append(_from_entry(entry))
        except (KeyError, ValueError) as error:
            raise ValueError(f"entry {entry.get('id', i)!r} is not valid: {error!r}") from error
    return conversations


def to_dataset(conversations: Iterable[Conversation]) -> datasets.Dataset:
    """A row for each conversation, with the columns of :meth:`Conversation.to_dict`."""
    rows = [conversation.to_dict() for conversation in conversations]
    columns = {name: [row[name] for row in rows] for name in FEATURES}
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def from_dataset(dataset: datasets.Dataset) -> list[Conversation]:
    """The inverse of :func:`to_dataset`."""
    rows = dataset.select_columns(list(FEATURES))
    return [Conversation.from_dict(row) for row in rows]


def _to_entry(name: str, conversation: Conversation) -> dict[str, Any]:
    turns = [
        {"from": SPEAKERS[ROLES.index(message.role)], "value": message.text}
        for message in conversation.messages
    ]
    entry: dict[str, Any] = {"id": name}
    if conversation.image is not None:
        entry["image"] = conversation.image
        turns[0]["value"] = f"{IMAGE_TOKEN}\n{turns[0]['value']}"
    entry["conversations"] = turns
    entry["label"] = conversation.label
    entry["regions"] = list(conversation.regions)
    return entry


def _from_entry(entry: Mapping[str, Any]) -> Conversation:
    image = entry.get("image")
    messages = []
    for i, turn in enumerate(entry["conversations"]):
        if turn["from"] not in SPEAKERS:
            raise ValueError(f"turn {i} is from {turn['from']!r}, expected one of {SPEAKERS}")
        text = turn["value"]
        if i == 0 and text.count(IMAGE_TOKEN) != int(image is not None):
            raise ValueError(
                f"the first turn holds {text.count(IMAGE_TOKEN)} times {IMAGE_TOKEN}, expected "
                f"{int(image is not None)}"
            )
        if i == 0:
            # LLaVA's own data puts the image before or behind the question.
            text = text.replace(IMAGE_TOKEN, "")
        messages.append(Message(ROLES[SPEAKERS.index(turn["from"])], text.strip()))
    return Conversation(
        tuple(messages),
        label=entry.get("label"),
        regions=tuple(entry.get("regions", ())),
        image=image,
    )
