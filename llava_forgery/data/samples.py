"""Subjects of conversations: images with their label and, for fakes, their regions."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Protocol

import datasets
import numpy as np

from llava_forgery.constants import FAKE, REAL
from llava_forgery.faces.records import FaceCrop, image_pixels
from llava_forgery.qa.conversation import order_regions
from llava_forgery.qa.mask_regions import COVERED, WHOLE, covered_regions
from llava_forgery.qa.templates import join_regions
from llava_forgery.rows import rows_digest
from llava_forgery.simulate.pairs import CENTRED, FacePairs, frame_face
from llava_forgery.tensors import to_bytes

logger = logging.getLogger(__name__)

FORGED = (
    "simulated forgery at the {regions}, made by llava-forgery to train detectors; not a real "
    "photograph"
)
PRISTINE = "crop of {source}, without forgery"


@dataclass(frozen=True)
class Sample:
    """One image to hold a conversation about."""

    image: np.ndarray
    """(S, S, 3) uint8 RGB."""
    label: int
    """0 real, 1 fake."""
    regions: tuple[str, ...]
    """Forged regions in the order of ``REGION_NAMES``; none unless the label is fake."""
    identity: str
    video_id: str
    note: str
    """Content and origin of the image, for the metadata of its file."""


class SampleSource(Protocol):
    """Seeded supply of samples, in units that are made together."""

    def __len__(self) -> int:
        """Number of units."""
        ...

    def __getitem__(self, unit: int) -> list[Sample]:
        """The samples of a unit, the same in every call."""
        ...

    def describe(self) -> dict[str, Any]:
        """Everything that the samples depend on, JSON-serializable."""
        ...


class SimulatedSamples:
    """Simulated forgeries, each followed by its pristine image: as many fakes as reals.

    Args:
        pairs: Pairs to forge.
    """

    def __init__(self, pairs: FacePairs) -> None:
        self.pairs = pairs
        # Columns are read once, as reading a row would decode its image each time.
        self._faces = {name: list(pairs.faces[name]) for name in ("identity", "video_id", "source")}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, unit: int) -> list[Sample]:
        pair = self.pairs[unit]
        face = {name: values[pair.row] for name, values in self._faces.items()}
        forged = FORGED.format(regions=join_regions(pair.regions))
        pristine = PRISTINE.format(source=face["source"])
        return [
            Sample(to_bytes(image), label, regions, face["identity"], face["video_id"], note)
            for image, label, regions, note in (
                (pair.forged, FAKE, pair.regions, forged),
                (pair.pristine, REAL, (), pristine),
            )
        ]

    def describe(self) -> dict[str, Any]:
        return {"kind": "simulated", **self.pairs.describe()}


class LabelledSamples:
    """Prepared faces with labels of their own, such as a benchmark's: fakes and reals alternate.

    Equally many are drawn at random from each label, as many as the rarer one has, with fakes
    spread evenly over their methods. The regions of a fake are those that its mask covers; a fake
    whose mask touches no part of the face (a frame that the method left unchanged) is skipped and
    counted.

    Args:
        faces: Rows of ``FaceCrop``, real and fake.
        size: Side S of the pictures in pixels; faces are framed as in inference.
        seed: Seed of the draw.
        unmasked_regions: Regions of fakes that have no mask; by default such a fake is an error.

    Raises:
        ValueError: One label is missing, or a fake has no mask and no regions were given.
    """

    def __init__(
        self,
        faces: datasets.Dataset,
        *,
        size: int,
        seed: int = 0,
        unmasked_regions: Sequence[str] = (),
    ) -> None:
        self.faces, self.size, self.seed = faces, size, seed
        self.unmasked_regions = order_regions(unmasked_regions)
        labels = faces["label"][:]
        self.regions = self._find_regions([i for i, label in enumerate(labels) if label == FAKE])
        rng = np.random.default_rng(seed)
        reals = rng.permutation([i for i, label in enumerate(labels) if label == REAL]).tolist()
        fakes = _in_turn(list(self.regions), faces, rng)
        count = min(len(reals), len(fakes))
        if not count:
            raise ValueError(
                f"expected real and fake faces, got {len(reals)} and {len(fakes)} that can be "
                "asked about; if all are real they can be forged: omit --as-is"
            )
        self.rows = list(zip(fakes[:count], reals[:count], strict=True))
        logger.info("%d fake and %d real faces of %d and %d", count, count, len(fakes), len(reals))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, unit: int) -> list[Sample]:
        return [self._sample(row) for row in self.rows[unit]]

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "labelled",
            "faces": rows_digest(self.faces),
            "size": self.size,
            "seed": self.seed,
            "unmasked_regions": self.unmasked_regions,
            "covered": [COVERED, WHOLE],
        }

    def _sample(self, row: int) -> Sample:
        face = FaceCrop.from_row(self.faces[row])
        # The centred framing is not random.
        image, _ = frame_face(face, self.size, CENTRED)
        method = f", made by {face.method}" if face.method else ""
        fake = f"fake face of {face.source}{method}, labelled so by its data set"
        return Sample(
            image=image,
            label=face.label,
            regions=self.regions.get(row, ()),
            identity=face.identity,
            video_id=face.video_id,
            note=fake if face.label == FAKE else PRISTINE.format(source=face.source),
        )

    def _find_regions(self, fakes: Sequence[int]) -> dict[int, tuple[str, ...]]:
        """Regions of each fake that has some; all are checked before any time is spent."""
        found, untouched = {}, []
        columns = self.faces.select_columns(
            [name for name in ("mask", "landmarks", "source") if name in self.faces.column_names]
        )
        for row in fakes:
            face = columns[row]
            if face.get("mask") is None:
                if not self.unmasked_regions:
                    raise ValueError(
                        f"the fake face {row} of {face['source']} has no mask, so its regions are "
                        "not known; import the benchmark with its masks, or say which regions "
                        "such fakes have (--unmasked-region face for swapped faces)"
                    )
                found[row] = self.unmasked_regions
                continue
            landmarks = np.asarray(face["landmarks"], dtype=np.float32)
            regions = covered_regions(image_pixels(face["mask"], "L"), landmarks)
            if regions:
                found[row] = regions
            else:
                untouched.append(f"{row} ({face['source']})")
        if untouched:
            logger.warning(
                "%d of %d fake faces are skipped: their masks touch no part of the face; the "
                "first are %s",
                len(untouched), len(fakes), ", ".join(untouched[:3]),
            )  # fmt: skip
        return found


def _in_turn(rows: Sequence[int], faces: datasets.Dataset, rng: np.random.Generator) -> list[int]:
    """Rows in a random order in which the methods alternate."""
    methods = faces["method"][:] if "method" in faces.column_names else [None] * len(faces)
    groups: dict[str, list[int]] = {}
    for row in rng.permutation(rows).tolist():
        groups.setdefault(str(methods[row]), []).append(row)
    turns = zip_longest(*(groups[name] for name in sorted(groups)))
    return [row for turn in turns for row in turn if row is not None]
