"""Training dialogues for either backend, read from any of three formats.

These are LLaVA's JSON; a Hugging Face data set that ``data build-qa`` wrote; and LLaVA-NeXT's YAML,
which draws from several JSON files::

    datasets:
      - json_path: forgery.json
        sampling_strategy: all            # or first:500, end:10%, random:2000
      - json_path: more.json
        sampling_strategy: random:25%
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
import yaml
from PIL import Image

from llava_forgery.constants import IMAGE_TOKEN
from llava_forgery.faces.identities import identity_digests
from llava_forgery.faces.records import image_pixels
from llava_forgery.files import fingerprint_of
from llava_forgery.images import read_image
from llava_forgery.qa.llava_json import LlavaSample, image_file, read_llava_json
from llava_forgery.rows import embedded, load_rows, rows_digest
from llava_forgery.tables import read_text
from llava_forgery.train.run_record import spread

logger = logging.getLogger(__name__)

STRATEGIES = ("all", "first", "end", "random")


@dataclass(frozen=True)
class TrainingDialogue:
    """One sample before template and tokenizer are applied."""

    id: str
    turns: tuple[str, ...]
    """Question, answer, question, answer ...; one ``<image>`` for each image."""
    images: tuple[Image.Image, ...] = ()
    """RGB."""
    label: int | None = None
    """0 real, 1 fake; None if unknown."""
    regions: tuple[str, ...] = ()
    """Forged regions of a fake, if known."""


class DialogueSource(Protocol):
    """Source of dialogues."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> TrainingDialogue: ...

    @property
    def lengths(self) -> list[int]:
        """Number of words of each dialogue, negative without an image, by which LLaVA groups."""

    @property
    def general(self) -> list[bool]:
        """Which dialogues are general instruction data, however the source is passed."""

    @property
    def people(self) -> frozenset[str]:
        """Known people in the images, as
        :func:`~llava_forgery.faces.identities.identity_digest` gives them."""

    def name(self, index: int) -> str:
        """Name of a dialogue for messages, without reading its images."""

    def fingerprint(self) -> str:
        """Digest that changes with the dialogues and their images, and with an image's time."""

    def content(self) -> str:
        """Digest of the dialogues and the sizes of their images, independent of their location."""


class JsonSource:
    """Entries of LLaVA's JSON.

    Args:
        samples: Entries.
        image_folder: Folder that their paths are relative to.
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

    def __getitem__(self, index: int) -> TrainingDialogue:
        sample = self.samples[index]
        files = [self._file(name) for name in sample.images]
        images = (Image.fromarray(read_image(file)) for file in files)
        turns = tuple(turn.value for turn in sample.turns)
        return TrainingDialogue(sample.id, turns, tuple(images), sample.label, sample.regions)

    @property
    def lengths(self) -> list[int]:
        return [
            _length([turn.value for turn in sample.turns], bool(sample.images))
            for sample in self.samples
        ]

    @property
    def general(self) -> list[bool]:
        # A text with a label has lost its image, which is an error of the sample.
        return [
            sample.general or (not sample.images and sample.label is None)
            for sample in self.samples
        ]

    @property
    def people(self) -> frozenset[str]:
        return identity_digests(sample.identity for sample in self.samples)

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
            # Outside the folder; it is not read.
            return [name]


class RowSource:
    """Rows of a data set from ``data build-qa``, which contains the images.

    Args:
        rows: Rows with the columns image and messages.
        name: Name of the data set, for the ids of the samples.
    """

    def __init__(self, rows: datasets.Dataset, name: str) -> None:
        missing = {"image", "messages"} - set(rows.column_names)
        if missing or not isinstance(rows.features["image"], datasets.Image):
            raise ValueError(
                f"{name} is not a data set of conversations with images, it has the columns "
                f"{', '.join(rows.column_names)}; make one with llava-forgery data build-qa, or "
                "give LLaVA's JSON"
            )
        self.rows, self.title = embedded(rows, name), name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TrainingDialogue:
        row = self.rows[index]
        if row["image"] is None or not row["messages"]:
            raise ValueError("the row has no image or no messages")
        first, *others = (message["text"] for message in row["messages"])
        turns = (f"{IMAGE_TOKEN}\n{first}", *others)
        image = Image.fromarray(image_pixels(row["image"], "RGB"))
        label, regions = row.get("label"), tuple(row.get("regions") or ())
        return TrainingDialogue(self.name(index), turns, (image,), label, regions)

    @property
    def lengths(self) -> list[int]:
        return [_length([m["text"] for m in messages], True) for messages in self.rows["messages"]]

    @property
    def general(self) -> list[bool]:
        return [False] * len(self)

    @property
    def people(self) -> frozenset[str]:
        known = "identity" in self.rows.column_names
        return identity_digests(self.rows["identity"]) if known else frozenset()

    def name(self, index: int) -> str:
        return f"{self.title}[{index}]"

    def fingerprint(self) -> str:
        return fingerprint_of(rows_fingerprint(self.rows))

    def content(self) -> str:
        return rows_digest(self.rows)


class Selection:
    """A subset of a source's dialogues, with unchanged names.

    Args:
        source: The whole source.
        rows: Indices of the dialogues.
    """

    def __init__(self, source: DialogueSource, rows: Sequence[int]) -> None:
        self.source, self.rows = source, list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TrainingDialogue:
        return self.source[self.rows[index]]

    @property
    def lengths(self) -> list[int]:
        lengths = self.source.lengths
        return [lengths[row] for row in self.rows]

    @property
    def general(self) -> list[bool]:
        general = self.source.general
        return [general[row] for row in self.rows]

    @property
    def people(self) -> frozenset[str]:
        # May include people whose dialogues were excluded as invalid.
        return self.source.people

    def name(self, index: int) -> str:
        return self.source.name(self.rows[index])

    def fingerprint(self) -> str:
        return fingerprint_of(self.source.fingerprint(), self.rows)

    def content(self) -> str:
        return fingerprint_of(self.source.content(), self.rows)


def open_source(
    path: str | PathLike,
    image_folder: str | PathLike | None = None,
    seed: int = 0,
    invalid: list[str] | None = None,
    allow_absolute_paths: bool = False,
) -> DialogueSource:
    """Read training dialogues.

    Args:
        path: JSON, JSONL, YAML, or a data set's folder.
        image_folder: Folder that paths in JSON and YAML are relative to; by default that of the
            file.
        seed: Seed of the random draws of a YAML file.
        invalid: Receives the problems of JSON entries instead of raising an error; images are then
            not checked, for a later pass over all samples that finds the missing ones.
        allow_absolute_paths: Whether paths of images may lead out of the image folder.

    Raises:
        FileNotFoundError: The file or one of its images does not exist.
        ValueError: The file is invalid, or holds no samples.
    """
    path = Path(path)
    if path.is_dir():
        source: DialogueSource = RowSource(load_rows(path), path.name)
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


def open_sources(
    data: str | PathLike,
    general: str | PathLike | None = None,
    image_folder: str | PathLike | None = None,
    general_images: str | PathLike | None = None,
    seed: int = 0,
    invalid: list[str] | None = None,
    allow_absolute_paths: bool = False,
) -> dict[str, DialogueSource]:
    """The dialogues of the skill and, if any, general ones, by the keys "skill" and "general".

    Args:
        data: Path of the skill's dialogues, as for :func:`open_source`.
        general: Path of general dialogues, as for :func:`open_source`.
        image_folder: Image folder of ``data``.
        general_images: Image folder of ``general``; by default ``image_folder``.
        seed: As for :func:`open_source`.
        invalid: As for :func:`open_source`.
        allow_absolute_paths: As for :func:`open_source`.

    Raises:
        FileNotFoundError: As for :func:`open_source`.
        ValueError: As for :func:`open_source`.
    """
    options = (seed, invalid, allow_absolute_paths)
    sources = {"skill": open_source(data, image_folder, *options)}
    if general is not None:
        sources["general"] = open_source(general, general_images or image_folder, *options)
    return sources


def read_yaml(
    path: Path,
    image_folder: Path,
    seed: int = 0,
    invalid: list[str] | None = None,
    allow_absolute_paths: bool = False,
) -> list[LlavaSample]:
    """The samples of LLaVA-NeXT's YAML; ``json_path`` is relative to it, or absolute.

    Raises:
        FileNotFoundError: A JSON file or an image does not exist.
        ValueError: A key is missing or unknown, or a strategy is invalid.
    """
    content = yaml.safe_load(read_text(path))
    entries = content.get("datasets") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} must hold a list `datasets`, as in LLaVA-NeXT")
    samples: list[LlavaSample] = []
    for number, entry in enumerate(entries):
        known = {"json_path", "sampling_strategy"}
        if not isinstance(entry, dict) or "json_path" not in entry or not set(entry) <= known:
            raise ValueError(
                f"{path}: data set {number} must have json_path and optionally sampling_strategy, "
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
    """Choose samples by LLaVA-NeXT's rule.

    Args:
        samples: All samples.
        strategy: ``all``, or ``first:N``, ``end:N``, ``random:N``; N may be a share such as
            ``10%``, which is rounded up.
        rng: Generator for ``random``.

    Raises:
        ValueError: The strategy is unknown.
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


def rows_fingerprint(rows: datasets.Dataset) -> list[Any]:
    """Fingerprint that changes with a data set's rows, even if files were replaced in place."""
    return [rows._fingerprint, [_state(Path(file["filename"])) for file in rows.cache_files]]


def _state(path: Path) -> list[Any]:
    """Name, size and time of a file; only the name if it is missing."""
    try:
        found = path.stat()
    except OSError:
        return [path.name]
    return [path.name, found.st_size, found.st_mtime_ns]


def _warn_of_unmarked(path: Path, samples: Sequence[LlavaSample]) -> None:
    """Warn of general data without the mark, which would be trained as the skill's."""
    unmarked = [s.id for s in samples if s.images and s.label is None and not s.general]
    if unmarked and any(sample.label is not None for sample in samples):
        logger.warning(
            "%s: %d of %d entries have an image and neither a label nor the mark general, such as "
            "%r: they are treated as the skill's; if they are not, mix again (llava-forgery data "
            "mix marks general data)",
            path, len(unmarked), len(samples), unmarked[0],
        )  # fmt: skip


def _length(texts: Sequence[str], has_image: bool) -> int:
    words = sum(len(text.split()) for text in texts)
    return words if has_image else -words
