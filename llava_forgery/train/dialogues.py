"""Training dialogues for either backend, read from any of three formats.

LLaVA's JSON; a Hugging Face data set that ``data build-qa`` wrote; or LLaVA-NeXT's YAML, which
draws from several JSON files::

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
    """One sample, before template and tokens."""

    id: str
    turns: tuple[str, ...]
    """Question, answer, question, answer ...; one ``<image>`` for each image."""
    images: tuple[Image.Image, ...] = ()
    """RGB."""
    label: int | None = None
    """0 real, 1 fake; None where nothing is said of it."""
    regions: tuple[str, ...] = ()
    """Forged regions of a fake, if they are known."""


class DialogueSource(Protocol):
    """Something that dialogues are read from."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> TrainingDialogue: ...

    @property
    def lengths(self) -> list[int]:
        """Words of each, negative where there is no image: what LLaVA groups by."""

    @property
    def general(self) -> list[bool]:
        """Which are general instruction data, whatever the source is given as."""

    @property
    def people(self) -> frozenset[str]:
        """Whom the images show, where that is known, by
        :func:`~llava_forgery.faces.identities.identity_digest`."""

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
        # A text with a label has lost its image: that is an error of the sample.
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
    """Some of a source's dialogues, under their names there.

    Args:
        source: The whole.
        rows: Which of it.
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
        # Whose dialogues were left out as invalid may be among them.
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
    """The dialogues of the skill and, if any, general ones, by "skill" and "general".

    Args:
        data: As ``path`` of :func:`open_source`.
        general: Likewise.
        image_folder: Of ``data``.
        general_images: Of ``general``; by default ``image_folder``.
        seed: As for :func:`open_source`, as are the other options and errors.
        invalid: Likewise.
        allow_absolute_paths: Likewise.

    Raises:
        FileNotFoundError: See :func:`open_source`.
        ValueError: Likewise.
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
