"""LLaVA's JSON, read and written entry by entry, for our conversations and any instruction data.

An entry of the list (the image is optional, and may be a list of several)::

    {"id": "000000", "image": "images/000000.png", "conversations": [
        {"from": "human", "value": "<image>\\nIs this a deepfake image?"},
        {"from": "gpt", "value": "Yes. This is a deepfake image, and the artifact is at the nose."}
    ], "label": 1, "regions": ["nose"]}

"label" and "regions" are our additions, which LLaVA's scripts ignore; so is "general": true, with
which ``data mix`` marks general instruction data.

:func:`read_llava_json` reads any such file into :class:`LlavaSample`, which keeps the texts
unchanged; :meth:`LlavaSample.to_conversation` converts it to the neutral conversation.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import datasets

from llava_forgery.constants import IMAGE_TOKEN
from llava_forgery.files import atomic_path, contained, parse_json, refuse_constant, to_json
from llava_forgery.qa.conversation import ROLES, Conversation, Message

logger = logging.getLogger(__name__)

SPEAKERS = ("human", "gpt")
"""LLaVA's names of the two speakers, in the order of ``ROLES``."""

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "image": datasets.List(datasets.Value("string")),
        "conversations": datasets.List(
            {"from": datasets.Value("string"), "value": datasets.Value("string")}
        ),
        "label": datasets.Value("int8"),
        "regions": datasets.List(datasets.Value("string")),
        "general": datasets.Value("bool"),
        "identity": datasets.Value("string"),
    }
)

# Number of characters read at a time.
_CHUNK = 1 << 20


class Turn(NamedTuple):
    """Message of one speaker."""

    speaker: str
    """"human" or "gpt"."""
    value: str
    """Text of the file, with its ``<image>`` tokens."""


@dataclass(frozen=True)
class LlavaSample:
    """One entry of LLaVA's JSON, with unchanged texts."""

    id: str
    turns: tuple[Turn, ...]
    """Alternating turns, starting with the human's, with as many ``<image>`` as ``images``."""
    images: tuple[str, ...] = ()
    """Paths relative to the image folder; none for text only."""
    label: int | None = None
    """0 real, 1 fake; None for general instruction data."""
    regions: tuple[str, ...] = ()
    """Forged regions in the order of ``REGION_NAMES``; none unless the label is fake."""
    general: bool = False
    """Whether it is general instruction data, which gets no placeholders in training."""
    identity: str | None = None
    """Person in the images, if known; models record whom they are trained on."""

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise ValueError(f"id must be a non-empty text, got {self.id!r}")
        for image in self.images:
            if not isinstance(image, str) or not image:
                raise ValueError(f"image must be a path or a list of paths, got {image!r}")
        if not isinstance(self.general, bool):
            raise ValueError(f"general must be true or false, got {self.general!r}")
        if not isinstance(self.identity, str | None):
            raise ValueError(f"identity must be a text, got {self.identity!r}")
        if self.general and self.label is not None:
            raise ValueError(
                f"general data is neither real nor fake, but the label is {self.label}; omit "
                "the label or the mark"
            )
        if len(self.turns) < 2:
            raise ValueError(f"expected at least a question and an answer, got {len(self.turns)}")
        for i, turn in enumerate(self.turns):
            if turn.speaker != SPEAKERS[i % 2]:
                raise ValueError(
                    f"turn {i} is from {turn.speaker!r}, expected {SPEAKERS[i % 2]!r}: turns "
                    "alternate, starting with the human's"
                )
            if not isinstance(turn.value, str) or not turn.value.strip():
                raise ValueError(f"turn {i} is empty, got {turn.value!r}")
        tokens = sum(turn.value.count(IMAGE_TOKEN) for turn in self.turns)
        if tokens != len(self.images):
            raise ValueError(
                f"the turns hold {tokens} times {IMAGE_TOKEN}, but the entry names "
                f"{len(self.images)} images; each image needs one {IMAGE_TOKEN}"
            )

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any], place: int | str = "?") -> "LlavaSample":
        """Read an entry; other keys are ignored.

        Args:
            entry: Parsed JSON.
            place: Name in messages of an entry without an id.

        Raises:
            ValueError: The entry is invalid; the message gives its id.
        """
        if not isinstance(entry, Mapping):
            raise ValueError(f"entry {place} is a {type(entry).__name__}, expected an object")
        name = entry.get("id", place)
        try:
            turns = entry["conversations"]
            if not isinstance(turns, list):
                raise ValueError(f"conversations must be a list, got {type(turns).__name__}")
            image = entry.get("image")
            images = () if image is None else (image,) if isinstance(image, str) else tuple(image)
            sample = cls(
                # Some of LLaVA's own files have numbers as ids.
                id=str(name),
                turns=tuple(Turn(turn["from"], turn["value"]) for turn in turns),
                images=images,
                label=entry.get("label"),
                regions=tuple(entry.get("regions") or ()),
                general=entry.get("general", False),
                identity=entry.get("identity"),
            )
            if sample.label is not None or sample.regions:
                # Label and regions follow the same rules as in our own conversations.
                sample.to_conversation()
        except KeyError as error:
            raise ValueError(f"entry {name!r} is not valid: the key {error} is missing") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"entry {name!r} is not valid: {error}") from error
        return sample

    def to_entry(self) -> dict[str, Any]:
        """The inverse of :meth:`from_entry`, without empty optional keys."""
        entry: dict[str, Any] = {"id": self.id}
        if self.images:
            entry["image"] = self.images[0] if len(self.images) == 1 else list(self.images)
        entry["conversations"] = [{"from": t.speaker, "value": t.value} for t in self.turns]
        if self.label is not None:
            entry |= {"label": self.label, "regions": list(self.regions)}
        if self.general:
            entry["general"] = True
        if self.identity is not None:
            entry["identity"] = self.identity
        return entry

    @classmethod
    def from_conversation(cls, name: str, conversation: Conversation) -> "LlavaSample":
        """LLaVA's form of a conversation: the image's token on a line before the first question.

        Raises:
            ValueError: The conversation awaits an answer.
        """
        turns = [
            Turn(SPEAKERS[ROLES.index(message.role)], message.text)
            for message in conversation.messages
        ]
        images = () if conversation.image is None else (conversation.image,)
        if images:
            turns[0] = Turn(turns[0].speaker, f"{IMAGE_TOKEN}\n{turns[0].value}")
        return cls(name, tuple(turns), images, conversation.label, conversation.regions)

    def to_conversation(self) -> Conversation:
        """The neutral conversation, whose single image precedes the first question.

        Raises:
            ValueError: There are several images, or one after the first turn, which the neutral
                conversation does not support.
        """
        if len(self.images) > 1 or any(IMAGE_TOKEN in turn.value for turn in self.turns[1:]):
            raise ValueError(
                f"sample {self.id!r} has {len(self.images)} images or one in a later turn; a "
                "conversation has at most one, in its first question"
            )
        # LLaVA's own data have the image before or after the question.
        texts = [turn.value.replace(IMAGE_TOKEN, "").strip() for turn in self.turns]
        messages = tuple(Message(ROLES[i % 2], text) for i, text in enumerate(texts))
        image = self.images[0] if self.images else None
        return Conversation(messages, self.label, self.regions, image)


def read_llava_json(
    path: str | PathLike,
    image_folder: str | PathLike | None = None,
    *,
    skip_invalid: bool = False,
    invalid: list[str] | None = None,
    allow_absolute_paths: bool = False,
) -> Iterator[LlavaSample]:
    """Read LLaVA's JSON (a list) or JSONL, one entry after another, with constant memory.

    Args:
        path: File to read.
        image_folder: Folder of the images, each of which must exist. None does not check.
        skip_invalid: Whether to skip invalid entries, each with a warning that names it. For large
            third-party data; a missing image remains an error.
        invalid: Receives the problems of such entries, instead of an error or a warning.
        allow_absolute_paths: As for :func:`image_file`.

    Yields:
        The samples in the order of the file.

    Raises:
        FileNotFoundError: There is no such file, or an image of a sample is missing.
        ValueError: The file is not JSON or not a list or has no valid entries, or an entry is
            invalid or its image is outside the folder; the message gives the file and the id.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected LLaVA's JSON")
    count = 0
    for place, entry in enumerate(_entries(path)):
        try:
            sample = LlavaSample.from_entry(entry, place=place)
        except ValueError as error:
            if invalid is not None:
                invalid.append(f"{path}: {error}")
                continue
            if not skip_invalid:
                raise ValueError(f"{path}: {error}") from error
            logger.warning("%s: skipped: %s", path, error)
            continue
        count += 1
        if image_folder is not None:
            _check_images(sample, image_folder, allow_absolute_paths)
        yield sample
    if not count:
        raise ValueError(f"{path} holds no valid entries")


def write_llava_json(
    samples: Iterable[LlavaSample],
    path: str | PathLike,
    image_folder: str | PathLike | None = None,
) -> int:
    """Write LLaVA's JSON, one entry per line; the file appears when it is complete.

    Args:
        samples: Samples, possibly a generator.
        path: File to write.
        image_folder: Folder of the images, each of which must exist. None does not check.

    Returns:
        The number of entries.

    Raises:
        FileNotFoundError: An image is missing; the message names it and the sample.
        ValueError: There are no samples, or an image is outside the folder.
    """
    count = 0
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for count, sample in enumerate(samples, start=1):
            if image_folder is not None:
                _check_images(sample, image_folder)
            file.write("[\n" if count == 1 else ",\n")
            file.write(to_json(sample.to_entry()))
        if not count:
            raise ValueError(f"no samples were given to write to {path}")
        file.write("\n]\n")
    return count


def llava_dataset(samples: Iterable[LlavaSample]) -> datasets.Dataset:
    """Samples as a Hugging Face data set, for mixing and mapping.

    Returns:
        Rows with the columns of ``FEATURES``; "image" is a list, empty for text only.
    """
    rows = []
    for sample in samples:
        entry = sample.to_entry()
        missing = {"label": None, "regions": [], "general": False, "identity": None}
        rows.append(missing | entry | {"image": list(sample.images)})
    columns = {name: [row[name] for row in rows] for name in FEATURES}
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def image_file(folder: str | PathLike, image: str, allow_absolute_paths: bool = False) -> Path:
    """Path of a sample's image.

    Args:
        folder: Folder that the path is relative to.
        image: Path in the data.
        allow_absolute_paths: Whether the path may lead out of the folder, by ``..`` or by being
            absolute. A link in the folder may always lead anywhere.

    Raises:
        ValueError: The path leads out of the folder, which is not allowed.
    """
    if allow_absolute_paths:
        return Path(folder) / image
    try:
        return contained(folder, image)
    except ValueError as error:
        raise ValueError(
            f"{error}; give the folder that holds all images, or allow any paths if you trust the "
            "data (--allow-absolute-paths)"
        ) from error


def _check_images(
    sample: LlavaSample, folder: str | PathLike, allow_absolute_paths: bool = False
) -> None:
    for image in sample.images:
        try:
            file = image_file(folder, image, allow_absolute_paths)
        except ValueError as error:
            raise ValueError(f"sample {sample.id!r}: {error}") from error
        if not file.is_file():
            raise FileNotFoundError(
                f"sample {sample.id!r} names the image {image}, which is not in {folder}; give "
                "the folder that its path is relative to"
            )


def _entries(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig") as file:
        start = file.read(1)
        while start and start.isspace():
            start = file.read(1)
        file.seek(0)
        if start == "[":
            yield from _list_entries(file, path)
        elif start == "{":
            yield from _line_entries(file, path)
        else:
            raise ValueError(
                f"{path} begins with {start!r}; expected a JSON list, or one entry per line"
            )


def _line_entries(file: TextIO, path: Path) -> Iterator[Any]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield parse_json(line, f"{path}, line {number}")


def _list_entries(file: TextIO, path: Path) -> Iterator[Any]:
    """The elements of one large list, of which only a part is held in memory."""
    decoder = json.JSONDecoder(parse_constant=refuse_constant)
    text = file.read(_CHUNK)
    at, count, chunk, closed = text.index("[") + 1, 0, _CHUNK, False

    def more() -> bool:
        # Consumed text is dropped; increasing reads keep the cost of a huge entry linear.
        nonlocal text, at, chunk
        piece = file.read(chunk)
        text, at, chunk = text[at:] + piece, 0, 2 * chunk
        return bool(piece)

    def skip_space() -> str:
        nonlocal at
        while True:
            while at < len(text) and text[at].isspace():
                at += 1
            if at < len(text):
                return text[at]
            if not more():
                raise ValueError(
                    f"{path} ends after {count} entries without the closing ]: it is cut off; "
                    "download or write it again"
                )

    while not closed:
        if skip_space() == "]" and not count:
            break
        while True:
            try:
                entry, at = decoder.raw_decode(text, at)
                break
            except ValueError as error:
                # Cut off, unless it is a NaN.
                if not isinstance(error, json.JSONDecodeError) or not more():
                    raise ValueError(
                        f"{path} is not valid JSON after its first {count} entries: "
                        f"{getattr(error, 'msg', error)}"
                    ) from error
        chunk = _CHUNK
        count += 1
        yield entry
        mark = skip_space()
        if mark not in ",]":
            raise ValueError(f"{path} has {mark!r} after entry {count - 1}, expected , or ]")
        at += 1
        closed = mark == "]"
