"""Training samples for a model of the ``llava`` package, from any of three formats.

LLaVA's JSON; a Hugging Face data set that ``data build-qa`` wrote; or LLaVA-NeXT's YAML, which
draws from several JSON files::

    datasets:
      - json_path: forgery.json
        sampling_strategy: all            # or first:500, end:10%, random:2000
      - json_path: more.json
        sampling_strategy: random:25%

What comes from ``--data_path`` teaches the skill: its images get placeholders and are shown to the
detector. General data keeps what the host can do and stays as it is: what comes from
``--general_data_path``, what ``data mix`` marked as general, and text without an image.
"""

import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import datasets
import torch
import yaml
from PIL import Image
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from llava_forgery.constants import IMAGE_TOKEN
from llava_forgery.data.validation import fingerprint_of
from llava_forgery.faces.records import image_pixels
from llava_forgery.hosts.llava.encoder import collate
from llava_forgery.hosts.llava.images import HostImages
from llava_forgery.hosts.llava.text import PromptStyle, encode_turns
from llava_forgery.images import read_image
from llava_forgery.qa.llava_json import LlavaSample, image_file, read_llava_json
from llava_forgery.qa.mixing import mix_general
from llava_forgery.rows import embedded, load_rows, rows_digest
from llava_forgery.tables import read_text
from llava_forgery.train.run_record import describe_tokens, spread

logger = logging.getLogger(__name__)

STRATEGIES = ("all", "first", "end", "random")


@dataclass(frozen=True)
class Dialogue:
    """One sample, before template and tokens."""

    id: str
    turns: tuple[str, ...]
    """Question, answer, question, answer ...; one ``<image>`` for each image."""
    images: tuple[Image.Image, ...] = ()
    """RGB."""
    label: int | None = None
    """0 real, 1 fake; None where nothing is said of it."""


class Source(Protocol):
    """Something that dialogues are read from."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Dialogue: ...

    @property
    def lengths(self) -> list[int]:
        """Words of each, negative where there is no image: what LLaVA groups by."""

    @property
    def general(self) -> list[bool]:
        """Which are general instruction data, whatever the source is given as."""

    def name(self, index: int) -> str:
        """What messages call a dialogue, without reading its images."""

    def fingerprint(self) -> str:
        """Changes with the dialogues and their images, also with an image's time."""

    def content(self) -> str:
        """The same wherever the data lie: changes with the dialogues, and images by their sizes."""


class JsonSource:
    """Entries of LLaVA's JSON.

    Args:
        samples: The entries.
        image_folder: What their paths are relative to.
        allow_absolute_paths: As for :func:`~llava_forgery.qa.llava_json.image_file`.
    """

    def __init__(
        self,
        samples: Sequence[LlavaSample],
        image_folder: str | PathLike,
        allow_absolute_paths: bool = False,
    ) -> None:
        self.samples, self.image_folder = list(samples), Path(image_folder)
        self.allow_absolute_paths = allow_absolute_paths

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Dialogue:
        sample = self.samples[index]
        files = [self._file(name) for name in sample.images]
        images = (Image.fromarray(read_image(file)) for file in files)
        turns = tuple(turn.value for turn in sample.turns)
        return Dialogue(sample.id, turns, tuple(images), sample.label)

    @property
    def lengths(self) -> list[int]:
        return [
            _length([turn.value for turn in sample.turns], bool(sample.images))
            for sample in self.samples
        ]

    @property
    def general(self) -> list[bool]:
        # A text with a label has lost its image: that is an error of the sample.
        return [
            sample.general or (not sample.images and sample.label is None)
            for sample in self.samples
        ]

    def name(self, index: int) -> str:
        return self.samples[index].id

    def fingerprint(self) -> str:
        files = {image for sample in self.samples for image in sample.images}
        return fingerprint_of(
            [sample.to_entry() for sample in self.samples],
            [str(self.image_folder.resolve()), self.allow_absolute_paths],
            [self._state(name) for name in sorted(files)],
        )

    def content(self) -> str:
        files = sorted({image for sample in self.samples for image in sample.images})
        entries = [sample.to_entry() for sample in self.samples]
        return fingerprint_of(entries, [self._state(name)[:2] for name in spread(files)])

    def _file(self, name: str) -> Path:
        return image_file(self.image_folder, name, self.allow_absolute_paths)

    def _state(self, name: str) -> list[Any]:
        try:
            return _state(self._file(name))
        except ValueError:
            # It lies outside the folder, which is not looked at.
            return [name]


class RowSource:
    """Rows of a data set from ``data build-qa``, whose images lie in it.

    Args:
        rows: With the columns image and messages.
        name: Of the data set, for the samples' ids.
    """

    def __init__(self, rows: datasets.Dataset, name: str) -> None:
        missing = {"image", "messages"} - set(rows.column_names)
        if missing or not isinstance(rows.features["image"], datasets.Image):
            raise ValueError(
                f"{name} is no data set of conversations with images, it has the columns "
                f"{', '.join(rows.column_names)}; make one with llava-forgery data build-qa, or "
                "give LLaVA's JSON"
            )
        self.rows, self.title = embedded(rows, name), name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Dialogue:
        row = self.rows[index]
        if row["image"] is None or not row["messages"]:
            raise ValueError("the row has no image or no messages")
        first, *others = (message["text"] for message in row["messages"])
        turns = (f"{IMAGE_TOKEN}\n{first}", *others)
        image = Image.fromarray(image_pixels(row["image"], "RGB"))
        return Dialogue(self.name(index), turns, (image,))

    @property
    def lengths(self) -> list[int]:
        return [_length([m["text"] for m in messages], True) for messages in self.rows["messages"]]

    @property
    def general(self) -> list[bool]:
        return [False] * len(self)

    def name(self, index: int) -> str:
        return f"{self.title}[{index}]"

    def fingerprint(self) -> str:
        return fingerprint_of(rows_fingerprint(self.rows))

    def content(self) -> str:
        return rows_digest(self.rows)


class Selection:
    """Some of a source's dialogues, under their names there.

    Args:
        source: The whole.
        rows: Which of it.
    """

    def __init__(self, source: Source, rows: Sequence[int]) -> None:
        self.source, self.rows = source, list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Dialogue:
        return self.source[self.rows[index]]

    @property
    def lengths(self) -> list[int]:
        lengths = self.source.lengths
        return [lengths[row] for row in self.rows]

    @property
    def general(self) -> list[bool]:
        general = self.source.general
        return [general[row] for row in self.rows]

    def name(self, index: int) -> str:
        return self.source.name(self.rows[index])

    def fingerprint(self) -> str:
        return fingerprint_of(self.source.fingerprint(), self.rows)

    def content(self) -> str:
        return fingerprint_of(self.source.content(), self.rows)


class DialogueCheck:
    """Whether a training could read and encode a dialogue; a check of ``find_invalid``.

    Args:
        source: The dialogues.
        is_skill: Whether they teach the skill, but for those that the source tells to be general.
        encoding: What :func:`encode_dialogue` takes beside them.
    """

    def __init__(self, source: Source, is_skill: bool, encoding: "Encoding") -> None:
        self.source, self.encoding = source, encoding
        self.is_skill = [is_skill and not general for general in source.general]

    def __call__(self, row: int) -> None:
        encode_dialogue(self.source[row], self.encoding, self.is_skill[row])


def open_source(
    path: str | PathLike,
    image_folder: str | PathLike | None = None,
    seed: int = 0,
    invalid: list[str] | None = None,
    allow_absolute_paths: bool = False,
) -> Source:
    """Read ``--data_path`` or ``--general_data_path``.

    Args:
        path: JSON, JSONL, YAML, or a data set's folder.
        image_folder: What paths in JSON and YAML are relative to; by default the folder of the
            file.
        seed: Of what a YAML file draws at random.
        invalid: Receives what is wrong with entries of the JSON instead of an error, and images
            are not looked for: for a pass over all samples, which finds the missing ones.
        allow_absolute_paths: Whether paths of images may lead out of the image folder.

    Raises:
        FileNotFoundError: The file or one of its images is not there.
        ValueError: It is not valid, or holds no samples.
    """
    path = Path(path)
    if path.is_dir():
        source: Source = RowSource(load_rows(path), path.name)
    elif not path.is_file():
        raise FileNotFoundError(
            f"there is no {path}; give LLaVA's JSON, LLaVA-NeXT's YAML or a data set's folder"
        )
    else:
        folder = path.parent if image_folder is None else Path(image_folder)
        if path.suffix in (".yaml", ".yml"):
            samples = read_yaml(path, folder, seed, invalid, allow_absolute_paths)
        else:
            samples = _read_json(path, folder, invalid, allow_absolute_paths)
        source = JsonSource(samples, folder, allow_absolute_paths)
        _warn_of_unmarked(path, samples)
    if not len(source):
        raise ValueError(f"{path} holds no samples")
    return source


def read_yaml(
    path: Path,
    image_folder: Path,
    seed: int = 0,
    invalid: list[str] | None = None,
    allow_absolute_paths: bool = False,
) -> list[LlavaSample]:
    """The samples of LLaVA-NeXT's YAML; ``json_path`` is relative to it, or absolute.

    Raises:
        FileNotFoundError: A JSON file or an image is not there.
        ValueError: A key is missing or unknown, or a strategy is not valid.
    """
    content = yaml.safe_load(read_text(path))
    entries = content.get("datasets") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} must hold a list `datasets`, as LLaVA-NeXT has it")
    samples: list[LlavaSample] = []
    for number, entry in enumerate(entries):
        known = {"json_path", "sampling_strategy"}
        if not isinstance(entry, dict) or "json_path" not in entry or not set(entry) <= known:
            raise ValueError(
                f"{path}: data set {number} must have json_path and perhaps sampling_strategy, "
                f"got {entry!r}"
            )
        json_path = path.parent / entry["json_path"]
        found = _read_json(json_path, image_folder, invalid, allow_absolute_paths)
        try:
            strategy = str(entry.get("sampling_strategy", "all"))
            samples += choose(found, strategy, random.Random(f"{seed}-{number}"))
        except ValueError as error:
            raise ValueError(f"{path}: data set {number}: {error}") from error
    return samples


def _read_json(
    path: Path, folder: Path, invalid: list[str] | None, anywhere: bool
) -> list[LlavaSample]:
    if invalid is None:
        return list(read_llava_json(path, folder, allow_absolute_paths=anywhere))
    return list(read_llava_json(path, invalid=invalid))


def choose(samples: list[Any], strategy: str, rng: random.Random) -> list[Any]:
    """Some of the samples, by LLaVA-NeXT's rule.

    Args:
        samples: All.
        strategy: ``all``, or ``first:N``, ``end:N``, ``random:N``; N may be a share, as ``10%``,
            which is rounded up.
        rng: For ``random``.

    Raises:
        ValueError: Another strategy.
    """
    kind, colon, number = strategy.partition(":")
    digits = number.removesuffix("%")
    if kind not in STRATEGIES or (kind == "all") == bool(colon) or (colon and not digits.isdigit()):
        raise ValueError(
            f"sampling_strategy must be all, first:N, end:N or random:N, N a number or a share "
            f"such as 10%, got {strategy!r}"
        )
    if kind == "all":
        return samples
    count = int(digits)
    if number.endswith("%"):
        count = math.ceil(count * len(samples) / 100)
    count = min(count, len(samples))
    if kind == "random":
        return rng.sample(samples, count)
    # samples[-0:] would be all of them.
    return samples[:count] if kind == "first" else samples[len(samples) - count :]


@dataclass(frozen=True)
class Encoding:
    """How dialogues become tokens."""

    tokenizer: PreTrainedTokenizerBase
    """The checkpoint's."""
    style: PromptStyle
    """Template and placeholders."""
    max_length: int
    """Most tokens of a sample."""
    image_tokens: int = 1
    """Least tokens that the model makes of an image, before it cuts off at ``max_length``."""

    def fingerprint(self) -> str:
        """Changes with all that decides on the tokens of a dialogue."""
        style = self.style
        return fingerprint_of(
            self.tokenizer.backend_tokenizer.to_str() if self.tokenizer.is_fast else None,
            repr(style.template),
            [style.n_forgery, style.im_start_end, self.max_length, self.image_tokens],
        )


def encode_dialogue(
    dialogue: Dialogue, encoding: Encoding, is_skill: bool
) -> dict[str, torch.Tensor]:
    """Tokens and labels, as :func:`~llava_forgery.hosts.llava.text.encode_turns` gives them.

    Raises:
        ValueError: An answer is empty, no token is left to learn from, or there is nothing to
            detect.
    """
    if is_skill and not dialogue.images:
        raise ValueError(
            "it has a label and no image, so there is nothing to detect; give it its image, or "
            "leave the label out"
        )
    if not all(turn.strip() for turn in dialogue.turns[1::2]):
        raise ValueError("an answer is empty, so there is nothing to learn from it")
    return encode_turns(
        dialogue.turns,
        encoding.tokenizer,
        encoding.style,
        skill=is_skill,
        max_length=encoding.max_length,
        image_tokens=encoding.image_tokens,
    )


class TrainingSamples(Dataset):
    """Dialogues as the model's inputs, skill and general data mixed.

    Args:
        skill: Dialogues that teach the skill, but for those that it tells to be general.
        general: General dialogues, if any.
        general_ratio: Share of the general ones; at 0.5 the two alternate.
        encoding: How dialogues become tokens.
        images: Prepares images for the host.
        forgery_images: Prepares images for the detector; None where it reads the host's tower.
        seed: Of what is drawn of the general data.
    """

    def __init__(
        self,
        skill: Source,
        general: Source | None,
        general_ratio: float,
        *,
        encoding: "Encoding",
        images: HostImages,
        forgery_images: Any | None,
        seed: int = 0,
    ) -> None:
        self.skill, self.general = skill, general
        self.order = _mixed_order(len(skill), len(general or ()), general_ratio, seed)
        marked = skill.general
        self._is_skill = [of_skill and not marked[row] for of_skill, row in self.order]
        if not any(self._is_skill):
            raise ValueError(
                f"all {len(skill)} samples of the skill's data are general ones or texts without "
                "an image, so nothing would teach the skill; give --data_path its conversations"
            )
        self.encoding = encoding
        self.images, self.forgery_images = images, forgery_images

    def __len__(self) -> int:
        return len(self.order)

    def describe(self) -> dict[str, Any]:
        """All that the samples depend on but the host's image processor, as JSON takes it."""
        is_skill, row = self.order[0]
        first = (self.skill if is_skill else self.general)[row]
        return {
            "skill": self.skill.content(),
            "general": None if self.general is None else self.general.content(),
            "order": fingerprint_of(self.order),
            "tokens": describe_tokens(encode_dialogue(first, self.encoding, self._is_skill[0])),
        }

    @property
    def is_skill(self) -> list[bool]:
        """Which samples teach the skill."""
        return list(self._is_skill)

    @property
    def lengths(self) -> list[int]:
        """As :attr:`Source.lengths`."""
        skill = self.skill.lengths
        general = self.general.lengths if self.general else []
        return [(skill if of_skill else general)[row] for of_skill, row in self.order]

    def __getitem__(self, index: int) -> dict[str, Any]:
        of_skill, row = self.order[index]
        is_skill = self._is_skill[index]
        dialogue = (self.skill if of_skill else self.general)[row]
        try:
            sample: dict[str, Any] = encode_dialogue(dialogue, self.encoding, is_skill)
        except ValueError as error:
            raise ValueError(f"sample {dialogue.id!r}: {error}") from error
        sample["images"], sample["image_sizes"] = self.images(dialogue.images)
        if is_skill and self.forgery_images is not None:
            pixels = self.forgery_images.preprocess(list(dialogue.images))["pixel_values"]
            sample["forgery_images"] = pixels
        return sample


class LlavaCollator:
    """Joins samples of :class:`TrainingSamples`; see
    :func:`llava_forgery.hosts.llava.encoder.collate`."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """``forgery_images`` (M, 3, S, S) are of the skill's samples, where they have any."""
        samples = [dict(sample) for sample in samples]
        shown = [sample.pop("forgery_images") for sample in samples if "forgery_images" in sample]
        batch = collate(samples, self.pad_id)
        return {**batch, "forgery_images": torch.cat(shown)} if shown else batch


def rows_fingerprint(rows: datasets.Dataset) -> list[Any]:
    """Changes with a data set's rows, also where its files were replaced in place."""
    return [rows._fingerprint, [_state(Path(file["filename"])) for file in rows.cache_files]]


def _state(path: Path) -> list[Any]:
    """Name, size and time of a file; the name alone where it is missing."""
    try:
        found = path.stat()
    except OSError:
        return [path.name]
    return [path.name, found.st_size, found.st_mtime_ns]


def _warn_of_unmarked(path: Path, samples: Sequence[LlavaSample]) -> None:
    """General data that was mixed in without the mark would be trained as the skill's."""
    unmarked = [s.id for s in samples if s.images and s.label is None and not s.general]
    if unmarked and any(sample.label is not None for sample in samples):
        logger.warning(
            "%s: %d of %d entries have an image and neither a label nor the mark general, such as "
            "%r: they are taken for the skill's; mix anew (llava-forgery data mix marks what is "
            "general) if they are not",
            path, len(unmarked), len(samples), unmarked[0],
        )  # fmt: skip


def _length(texts: Sequence[str], has_image: bool) -> int:
    words = sum(len(text.split()) for text in texts)
    return words if has_image else -words


def _mixed_order(skill: int, general: int, ratio: float, seed: int) -> list[tuple[bool, int]]:
    """(whether of the skill's source, row) of each sample."""

    def rows(is_skill: bool, count: int) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"skill": [is_skill] * count, "row": list(range(count))})

    if not general:
        return [(True, row) for row in range(skill)]
    mixed = mix_general(rows(True, skill), rows(False, general), ratio, seed)
    return list(zip(mixed["skill"], mixed["row"], strict=True))
