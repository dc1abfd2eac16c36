"""What conversations are held about: images with their label and, of fakes, their regions."""

from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch

from llava_forgery.constants import FAKE, REAL
from llava_forgery.qa.templates import join_regions
from llava_forgery.simulate.pairs import FacePairs

FORGED = (
    "simulated forgery at the {regions}, made by llava-forgery to train detectors; not a real "
    "photograph"
)
PRISTINE = "crop of {source}, without forgery"


def to_bytes(image: torch.Tensor) -> np.ndarray:
    """(3, S, S) in [0, 1] to (S, S, 3) uint8."""
    return (image * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def from_bytes(image: np.ndarray) -> torch.Tensor:
    """(S, S, 3) uint8 to (3, S, S) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).float() / 255


@dataclass(frozen=True)
class Subject:
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
    """For the picture's metadata: what it is and where it comes from."""


class SubjectSource(Protocol):
    """Seeded supply of subjects, in units that are made together."""

    def __len__(self) -> int:
        """Number of units."""
        ...

    def __getitem__(self, unit: int) -> list[Subject]:
        """The unit's subjects, the same at every call."""
        ...

    def describe(self) -> dict[str, Any]:
        """All that the subjects hang on, as JSON takes it."""
        ...


class SimulatedSubjects:
    """Simulated forgeries, each followed by its pristine image: as many fakes as reals.

    Args:
        pairs: What to forge.
    """

    def __init__(self, pairs: FacePairs) -> None:
        self.pairs = pairs
        # Columns are read once; a row of the data set would decode its image each time.
        self._faces = {name: list(pairs.faces[name]) for name in ("identity", "video_id", "source")}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, unit: int) -> list[Subject]:
        pair = self.pairs[unit]
        face = {name: values[pair.row] for name, values in self._faces.items()}
        forged = FORGED.format(regions=join_regions(pair.regions))
        pristine = PRISTINE.format(source=face["source"])
        return [
            Subject(to_bytes(image), label, regions, face["identity"], face["video_id"], note)
            for image, label, regions, note in (
                (pair.forged, FAKE, pair.regions, forged),
                (pair.pristine, REAL, (), pristine),
            )
        ]

    def describe(self) -> dict[str, Any]:
        pairs = self.pairs
        return {
            "kind": "simulated",
            "faces": pairs.faces._fingerprint,
            "pairs": len(pairs),
            "size": pairs.size,
            "seed": pairs.seed,
            "simulator": asdict(pairs.simulator.config),
            "framing": asdict(pairs.framing),
            "degradation": asdict(pairs.degradation) if pairs.degradation else None,
        }
