"""Pairs of answers for DPO: a right one and one that contradicts, about the same image."""

import logging
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import datasets
import torch
from PIL import Image
from torch.utils.data import Dataset

from llava_forgery.constants import FAKE, REAL
from llava_forgery.faces.identities import identity_digests
from llava_forgery.faces.records import image_pixels
from llava_forgery.files import fingerprint_of
from llava_forgery.hosts.base import PromptEncoder
from llava_forgery.hosts.likelihood import last_answers
from llava_forgery.hosts.llava.tower import KFDImageProcessor
from llava_forgery.kfd.calibration import Thresholds
from llava_forgery.qa.build import kfd_result
from llava_forgery.qa.conversation import Conversation, Message
from llava_forgery.qa.preference import KINDS, PreferencePair, build_pair
from llava_forgery.rows import embedded, rows_digest
from llava_forgery.train.run_record import describe_tokens
from llava_forgery.train.stage2 import Collator

logger = logging.getLogger(__name__)


class PreferenceSamples(Dataset):
    """Pairs about the images of ``data build-qa``, as many of real ones as of fakes.

    The first question is the conversation's own. An image whose score certainly speaks against its
    label is left out: no answer fits both. Of the label that then has more images some are left
    out as well, since answers would otherwise lean to it.

    Args:
        rows: From ``build_conversations``.
        prompts: The host's.
        max_length: Most tokens of prompt and answer.
        size: Side S of the detector's pictures in pixels; None where it sees what the host sees.
        thresholds: Of the detector.
        most: Pairs at most, drawn from all; None takes as many as there are.
        seed: Of the pairs; they have a role of their own in it, so that none of their draws is one
            of the conversations'.

    Attributes:
        reference: (N, 2) the reference's log-likelihoods of both answers, once they are known.

    Raises:
        ValueError: The rows are no conversations about images, or none of a label is left.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        *,
        prompts: PromptEncoder,
        max_length: int,
        size: int | None,
        thresholds: Thresholds | None = None,
        most: int | None = None,
        seed: int = 0,
    ) -> None:
        missing = {"image", "label", "regions", "score", "messages"} - set(rows.column_names)
        if missing:
            raise ValueError(
                f"the preference data lacks {', '.join(sorted(missing))}; give a folder that "
                "llava-forgery data build-qa wrote"
            )
        self.rows, self.prompts, self.max_length = embedded(rows, "the data"), prompts, max_length
        self._pictures = None if size is None else KFDImageProcessor(size)
        bands = {FAKE: "real", REAL: "fake"}
        known = rows.remove_columns("image")
        fitting: dict[int, list[int]] = {REAL: [], FAKE: []}
        for place, row in enumerate(known):
            score, label = row["score"], row["label"]
            if score is None or (thresholds or Thresholds()).band(score) != bands[label]:
                fitting[label].append(place)
        each = min(map(len, fitting.values()))
        if most is not None:
            each = min(each, max(1, most // 2))
        rng = random.Random(f"preference-{seed}")
        self._places = sorted(
            place for places in fitting.values() for place in rng.sample(places, each)
        )
        self.pairs = [
            _pair_of(known[place], random.Random(f"preference-{seed}-{place}"))
            for place in self._places
        ]
        kinds = Counter(pair.kind for pair in self.pairs)
        logger.info(
            "%d pairs (%s); the score of %d images speaks against their label: they are left out",
            len(self.pairs),
            ", ".join(f"{kind} {kinds[kind]}" for kind in KINDS),
            len(rows) - sum(map(len, fitting.values())),
        )
        if not self.pairs:
            raise ValueError(
                f"there are {len(fitting[REAL])} real and {len(fitting[FAKE])} fake images whose "
                "score fits their label; pairs need both"
            )
        self.reference: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def is_skill(self) -> list[bool]:
        """All of them; see :class:`~llava_forgery.train.samples.TrainingSamples`."""
        return [True] * len(self)

    @property
    def people(self) -> frozenset[str]:
        """Digests of the people whom the pairs show."""
        known = self.rows.column_names
        names = self.rows.select(self._places)["identity"] if "identity" in known else ()
        return identity_digests(names)

    @property
    def lengths(self) -> list[int]:
        """Words of each pair's prompt and chosen answer."""
        return [
            sum(len(message.text.split()) for message in pair.prompt.messages)
            + len(pair.chosen.split())
            for pair in self.pairs
        ]

    def describe(self) -> dict[str, Any]:
        """Everything that the samples depend on except the host's image processor, as JSON."""
        said = [
            [[m.text for m in pair.prompt.messages], pair.chosen, pair.rejected]
            for pair in self.pairs
        ]
        return {
            "rows": rows_digest(self.rows),
            "pairs": fingerprint_of(self._places, said),
            "tokens": describe_tokens(self[0]["chosen"]),
        }

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``chosen`` and ``rejected``, encoded with labels on the last answer; ``forgery_images``
        (1, 3, S, S) and ``reference`` (2,), if any."""
        pair = self.pairs[index]
        row = self.rows[self._places[index]]
        image = Image.fromarray(image_pixels(row["image"], "RGB"))
        sample: dict[str, Any] = {
            name: self._encode(pair.prompt, answer, image)
            for name, answer in (("chosen", pair.chosen), ("rejected", pair.rejected))
        }
        if self._pictures is not None:
            sample["forgery_images"] = self._pictures([image])["pixel_values"]
        if self.reference is not None:
            sample["reference"] = self.reference[index]
        return sample

    def _encode(self, prompt: Conversation, answer: str, image: Image.Image) -> dict[str, Any]:
        said = Conversation((*prompt.messages, Message("assistant", answer)), label=None)
        sample = self.prompts.encode(said, [image], max_length=self.max_length)
        sample["labels"] = last_answers(sample["labels"][None])[0]
        return sample


class PreferenceCollator(Collator):
    """Joins samples of :class:`PreferenceSamples`: all chosen sequences, then all rejected ones."""

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """What ``collate`` gives of the 2B sequences, ``forgery_images`` (B, 3, S, S) and
        ``reference`` (2B,), if any."""
        flat = [dict(sample[name]) for name in ("chosen", "rejected") for sample in samples]
        batch = self.collate(flat)
        if "forgery_images" in samples[0]:
            batch["forgery_images"] = torch.cat([s["forgery_images"] for s in samples])
        if "reference" in samples[0]:
            batch["reference"] = torch.stack([s["reference"] for s in samples], dim=1).flatten()
        return batch


def _pair_of(row: dict[str, Any], rng: random.Random) -> PreferencePair:
    question = row["messages"][0]["text"]
    score = row["score"]
    # "How sure are you?" is asked of a score that the host was told.
    cited = score is not None and kfd_result(score) in question
    kinds = [kind for kind in KINDS if kind != "region" or row["label"] == FAKE]
    return build_pair(
        rng.choice(kinds),
        question,
        row["label"],
        row["regions"],
        rng=rng,
        score=score if cited else None,
    )
