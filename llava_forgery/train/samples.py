"""Stage 2's data set on either backend: dialogues of the skill and general ones as a host's inputs.

Dialogues of the skill get placeholders, and the detector sees their images. General data preserve
what the host can do: those passed as general, those that ``data mix`` marked, and text without an
image. They are unchanged if placeholders are written; if placeholders always follow images
(:mod:`llava_forgery.hosts.placement`), general questions about an image have them as well, as in
use.
"""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from llava_forgery.data.validation import LISTED, find_invalid, settle_invalid
from llava_forgery.files import fingerprint_of
from llava_forgery.hosts.base import PromptEncoder
from llava_forgery.hosts.llava.tower import KFDImageProcessor
from llava_forgery.hosts.pictures import ClientPrompts
from llava_forgery.hosts.placement import ALWAYS, WHOLE
from llava_forgery.qa.mixing import mix_general
from llava_forgery.train.dialogues import DialogueSource, Selection, TrainingDialogue
from llava_forgery.train.run_record import describe_tokens


class TrainingSamples(Dataset):
    """Dialogues as the model's inputs, skill and general data mixed.

    Args:
        skill: Dialogues that teach the skill, except those that the source marks as general.
        general: General dialogues, if any.
        general_ratio: Share of the general ones in [0, 1); at 0.5 the two alternate.
        prompts: Prompt encoder of the host.
        max_length: Maximum number of tokens of a sample.
        size: Side S of the detector's pictures in pixels; None if it sees what the host sees, or if
            there is none.
        seed: Seed of the draws from the general data.
        crop: What the detector sees of pictures of general questions, as in use: the cut-out
            "face", or the whole picture ("none").

    Raises:
        ValueError: No dialogue would teach the skill.
    """

    def __init__(
        self,
        skill: DialogueSource,
        general: DialogueSource | None = None,
        general_ratio: float = 0.5,
        *,
        prompts: PromptEncoder,
        max_length: int,
        size: int | None,
        seed: int = 0,
        crop: str = WHOLE,
    ) -> None:
        self.skill, self.general = skill, general
        self.order = _mixed_order(len(skill), len(general or ()), general_ratio, seed)
        marked = skill.general
        self.is_skill = [of_skill and not marked[row] for of_skill, row in self.order]
        if not any(self.is_skill):
            raise ValueError(
                f"all {len(skill)} samples of the skill's data are general ones or texts without "
                "an image, so nothing would teach the skill; give its conversations as data "
                "(--data, --data_path)"
            )
        self.prompts, self.max_length = prompts, max_length
        self._pictures = None if size is None else KFDImageProcessor(size)
        self._crop, self._clients = crop, ClientPrompts()

    def __len__(self) -> int:
        return len(self.order)

    @property
    def lengths(self) -> list[int]:
        """As for :attr:`DialogueSource.lengths`."""
        skill = self.skill.lengths
        general = self.general.lengths if self.general else []
        return [(skill if of_skill else general)[row] for of_skill, row in self.order]

    @property
    def people(self) -> frozenset[str]:
        """As for :attr:`DialogueSource.people`."""
        return self.skill.people | (self.general.people if self.general else frozenset())

    def describe(self) -> dict[str, Any]:
        """Everything that the samples depend on except the host's image processor, as JSON."""
        first = self._dialogue(0)
        tokens = self.prompts.check_turns(
            first.turns,
            first.images,
            skill=_is_placed(first, self.is_skill[0], self.prompts),
            max_length=self.max_length,
        )
        return {
            "skill": self.skill.content(),
            "general": None if self.general is None else self.general.content(),
            "order": fingerprint_of(self.order),
            "tokens": describe_tokens(tokens),
        }

    def __getitem__(self, index: int) -> dict[str, Any]:
        dialogue, is_skill = self._dialogue(index), self.is_skill[index]
        placed = _is_placed(dialogue, is_skill, self.prompts)
        try:
            check_dialogue(dialogue, is_skill)
            sample = self.prompts.encode_turns(
                dialogue.turns, dialogue.images, skill=placed, max_length=self.max_length
            )
        except ValueError as error:
            raise ValueError(f"sample {dialogue.id!r}: {error}") from error
        if placed and self._pictures is not None:
            sample["forgery_images"] = self._shown(dialogue.images, is_skill)
        return sample

    def _shown(self, images: Sequence[Image.Image], is_skill: bool) -> torch.Tensor:
        """(N, 3, S, S) in [0, 1]; faces of the skill's data are already framed."""
        if is_skill or self._crop == WHOLE:
            return self._pictures(list(images))["pixel_values"]
        size = self._pictures.crop_size["height"]
        return self._clients.frame([np.asarray(image) for image in images], size, self._crop)

    def _dialogue(self, index: int) -> TrainingDialogue:
        of_skill, row = self.order[index]
        return (self.skill if of_skill else self.general)[row]


def _is_placed(dialogue: TrainingDialogue, is_skill: bool, prompts: PromptEncoder) -> bool:
    """Whether placeholders follow the images of a dialogue."""
    return is_skill or (bool(dialogue.images) and prompts.placement == ALWAYS)


def check_dialogue(dialogue: TrainingDialogue, is_skill: bool) -> None:
    """Check a dialogue before it is encoded.

    Raises:
        ValueError: An answer is empty, or there is nothing to detect.
    """
    if is_skill and not dialogue.images:
        raise ValueError(
            "it has a label and no image, so there is nothing to detect; give it its image, or "
            "omit the label"
        )
    if not all(turn.strip() for turn in dialogue.turns[1::2]):
        raise ValueError("an answer is empty, so there is nothing to learn from it")


class DialogueCheck:
    """Whether a training can read and encode a dialogue; a check for ``find_invalid``.

    Args:
        source: Dialogues to check.
        is_skill: Whether they teach the skill, except those that the source marks as general.
        prompts: Prompt encoder of the host.
        max_length: Maximum number of tokens of a sample.
    """

    def __init__(
        self, source: DialogueSource, is_skill: bool, prompts: PromptEncoder, max_length: int
    ) -> None:
        self.source, self.prompts, self.max_length = source, prompts, max_length
        self.is_skill = [is_skill and not general for general in source.general]

    def __call__(self, row: int) -> None:
        dialogue, is_skill = self.source[row], self.is_skill[row]
        check_dialogue(dialogue, is_skill)
        placed = _is_placed(dialogue, is_skill, self.prompts)
        self.prompts.check_turns(
            dialogue.turns, dialogue.images, skill=placed, max_length=self.max_length
        )


def valid_dialogues(
    sources: dict[str, DialogueSource],
    prompts: PromptEncoder,
    max_length: int,
    folder: str | PathLike,
    invalid: Sequence[str] = (),
    skip_invalid: bool = False,
) -> dict[str, DialogueSource]:
    """The valid dialogues of each source, by one pass over all of them (:mod:`data.validation`).

    Args:
        sources: Sources by "skill", "general" and "validation".
        prompts: Prompt encoder of the host, whose weights are not needed.
        max_length: Maximum number of tokens of a sample.
        folder: Folder of the training.
        invalid: Problems already found in the entries of their files.
        skip_invalid: Whether to skip invalid dialogues, which are then listed and counted.

    Raises:
        ValueError: Some are invalid and not to be skipped, or none of a source is valid.
    """
    checks = {
        name: (DialogueCheck(source, name != "general", prompts, max_length), len(source))
        for name, source in sources.items()
    }
    parts = {name: source.fingerprint() for name, source in sources.items()}
    found = find_invalid(checks, fingerprint_of(parts, prompts.fingerprint(), max_length), folder)
    listed = [
        *invalid,
        *(
            f"{name} data: sample {source.name(row)!r}: {reason}"
            for name, source in sources.items()
            for row, reason in sorted(found[name].items())
        ),
    ]
    count = len(invalid) + sum(len(source) for source in sources.values())
    settle_invalid(listed, count, folder, skip_invalid)
    left: dict[str, DialogueSource] = {}
    for name, source in sources.items():
        rows = [row for row in range(len(source)) if row not in found[name]]
        if not rows:
            raise ValueError(f"no sample of the {name} data is valid; see {folder}/{LISTED}")
        left[name] = source if len(rows) == len(source) else Selection(source, rows)
    return left


def _mixed_order(skill: int, general: int, ratio: float, seed: int) -> list[tuple[bool, int]]:
    """(whether from the skill's source, row) of each sample."""

    def rows(is_skill: bool, count: int) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"skill": [is_skill] * count, "row": list(range(count))})

    if not general:
        return [(True, row) for row in range(skill)]
    mixed = mix_general(rows(True, skill), rows(False, general), ratio, seed)
    return list(zip(mixed["skill"], mixed["row"], strict=True))
