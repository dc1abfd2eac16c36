"""A dialogue about one face, before any host's template, tokens or placeholders."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llava_forgery.constants import (
    FAKE,
    FORGERY_TOKEN,
    IMAGE_TOKEN,
    LABEL_NAMES,
    REAL,
    REGION_NAMES,
    WHOLE_FACE,
)

ROLES = ("user", "assistant")


def order_regions(regions: Iterable[str]) -> tuple[str, ...]:
    """Region names in the order of ``REGION_NAMES``.

    Raises:
        ValueError: A name is unknown or repeated, or "face" is given with others, which it covers.
    """
    if isinstance(regions, str):
        raise ValueError(f"expected several region names, got the string {regions!r}")
    names = tuple(regions)
    unknown = [name for name in names if name not in REGION_NAMES]
    if unknown:
        raise ValueError(f"unknown regions {unknown}; expected some of {', '.join(REGION_NAMES)}")
    if len(set(names)) != len(names):
        raise ValueError(f"a region is named twice: {names}")
    if WHOLE_FACE in names and len(names) > 1:
        raise ValueError(f'"{WHOLE_FACE}" covers the other regions and must be alone, got {names}')
    return tuple(name for name in REGION_NAMES if name in names)


@dataclass(frozen=True)
class Message:
    """One turn."""

    role: str
    """"user" or "assistant"."""
    text: str
    """Text without placeholders, which are added when rendering."""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}, got {self.role!r}")
        if not isinstance(self.text, str) or not self.text.strip():
            raise ValueError(f"the text of a message must not be empty, got {self.text!r}")
        # Templates differ in whether they strip; a stripped text reads the same in all.
        if self.text != self.text.strip():
            raise ValueError(f"strip the white space around the message {self.text!r}")
        for token in (IMAGE_TOKEN, FORGERY_TOKEN):
            if token in self.text:
                raise ValueError(
                    f"a message must not hold {token}, which is added when rendering; "
                    f"got {self.text!r}"
                )

    def to_dict(self) -> dict[str, str]:
        """``{"role", "text"}``."""
        return {"role": self.role, "text": self.text}


@dataclass(frozen=True)
class Conversation:
    """Turns about one face, with its label and regions.

    A labelled conversation is training data and ends with an answer. A prompt has no label and
    may end with a question.
    """

    messages: tuple[Message, ...]
    """Alternating messages, starting with the user's."""
    label: int | None
    """0 real, 1 fake; None if unknown."""
    regions: tuple[str, ...] = ()
    """Forged regions in the order of ``REGION_NAMES``; none unless the label is fake."""
    image: str | None = None
    """Path of the picture, relative to a folder that depends on the data set."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "messages", tuple(self.messages))
        object.__setattr__(self, "regions", tuple(self.regions))
        if not self.messages:
            raise ValueError("a conversation needs at least one message")
        for i, message in enumerate(self.messages):
            expected = ROLES[i % 2]
            if message.role != expected:
                raise ValueError(
                    f"message {i} must be the {expected}'s, got the {message.role}'s: turns "
                    "alternate, starting with the user's"
                )
        if self.label not in (None, REAL, FAKE):
            raise ValueError(
                f"label must be {REAL} ({LABEL_NAMES[REAL]}), {FAKE} ({LABEL_NAMES[FAKE]}) or "
                f"None, got {self.label!r}"
            )
        if order_regions(self.regions) != self.regions:
            raise ValueError(f"regions must be in the order {REGION_NAMES}, got {self.regions}")
        if self.label == FAKE and not self.regions:
            raise ValueError("a fake image needs the names of its forged regions, got none")
        if self.label != FAKE and self.regions:
            raise ValueError(
                f"only a fake image has forged regions, got label {self.label} with {self.regions}"
            )
        if self.label is not None and self.is_prompt:
            raise ValueError("a labelled conversation must end with the assistant's answer")

    @property
    def is_prompt(self) -> bool:
        """Whether the next turn is the assistant's."""
        return self.messages[-1].role == "user"

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``{"messages", "label", "regions", "image"}``."""
        return {
            "messages": [message.to_dict() for message in self.messages],
            "label": self.label,
            "regions": list(self.regions),
            "image": self.image,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Conversation":
        """The inverse of :meth:`to_dict`; "image" may be missing.

        Raises:
            ValueError: A key is missing or unknown, or a value is invalid.
        """
        needed = {"messages", "label", "regions"}
        if not needed <= set(value) <= needed | {"image"}:
            raise ValueError(
                f"expected the keys messages, label, regions, optionally image, got {sorted(value)}"
            )
        label = value["label"]
        return cls(
            messages=tuple(Message(m["role"], m["text"]) for m in value["messages"]),
            label=None if label is None else int(label),
            regions=tuple(value["regions"]),
            image=value.get("image"),
        )
