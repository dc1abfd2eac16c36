"""Conversations as a Hugging Face data set."""

from collections.abc import Iterable

import datasets

from llava_forgery.qa.conversation import Conversation

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


def to_dataset(conversations: Iterable[Conversation]) -> datasets.Dataset:
    """A row for each conversation, with the columns of :meth:`Conversation.to_dict`."""
    rows = [conversation.to_dict() for conversation in conversations]
    columns = {name: [row[name] for row in rows] for name in FEATURES}
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def from_dataset(dataset: datasets.Dataset) -> list[Conversation]:
    """The inverse of :func:`to_dataset`."""
    rows = dataset.select_columns(list(FEATURES))
    return [Conversation.from_dict(row) for row in rows]
