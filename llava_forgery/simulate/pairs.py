"""An endless, seeded supply of forged and pristine faces for training and evaluation."""

import logging
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any, Literal, NamedTuple, get_args

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset

from llava_forgery.constants import REAL
from llava_forgery.faces.crop import JITTER, MARGIN, MARGINS, crop_box, rotation
from llava_forgery.faces.records import FaceCrop, load_faces
from llava_forgery.rows import rows_digest
from llava_forgery.simulate.config import SimulatorConfig
from llava_forgery.simulate.degrade import DegradeConfig, compress_before, degrade
from llava_forgery.simulate.foreground import Donor
from llava_forgery.simulate.simulator import ForgerySimulator, to_tensor

logger = logging.getLogger(__name__)

Role = Literal["training", "stage2", "warmup", "calibration", "validation", "test", "preview"]
"""What pairs are for. It is part of each pair's seed: pairs of two roles have no forgery in common,
whatever their seeds."""
ROLES: tuple[Role, ...] = get_args(Role)

# A donor is the one of so many drawn people whose pose is the nearest.
_CANDIDATES = 6
# Decoded crops that are kept, in bytes: decoding takes longer than forging.
_KEPT_BYTES = 64 * 2**20


class FacePair(NamedTuple):
    """One simulated forgery with its pristine image."""

    forged: torch.Tensor
    """(3, S, S) in [0, 1]."""
    pristine: torch.Tensor
    """(3, S, S) in [0, 1]."""
    mask: torch.Tensor
    """(1, S, S) in [0, 1]."""
    regions: tuple[str, ...]
    """Names of the forged regions."""
    row: int
    """Row of the face in the data set that the pair was made from; -1 of a labelled fake."""
    paired: bool = True
    """Whether the forgery was made from the pristine image, which then is its reference."""
    masked: bool = True
    """Whether the mask is known; it is 0 everywhere if not."""


class FramedFace(NamedTuple):
    """What pair ``index`` is made from, before it is forged."""

    image: np.ndarray
    """(S, S, 3) uint8 RGB."""
    landmarks: np.ndarray
    """(68, 2) float32 in its pixels."""
    seed: int
    """Of the forgery."""
    donor: Donor | None
    """Of a configuration with swaps."""
    row: int
    """As :attr:`FacePair.row`."""
    rng: np.random.Generator
    """Of what happens to the pair after it is forged."""


@dataclass(frozen=True)
class FramingConfig:
    """How a face is placed in the picture."""

    margin: tuple[float, float] = MARGINS
    """Space around the landmarks' box on each side, as a share of its longer side, drawn
    uniformly."""
    jitter: float = JITTER
    """Largest move of the face's centre, as a share of the box's longer side."""
    angle: float = 12.0
    """Largest turn of the picture in degrees, either way: heads of videos are tilted."""

    def __post_init__(self) -> None:
        if self.margin[0] > self.margin[1] or min(self.margin[0], self.jitter, self.angle) < 0:
            raise ValueError(
                f"margin must be (low, high), and margin, jitter and angle not negative, got "
                f"{self.margin}, {self.jitter} and {self.angle}"
            )

    @property
    def is_fixed(self) -> bool:
        """Whether there is nothing to draw."""
        return self.margin[0] == self.margin[1] and self.jitter == self.angle == 0


CENTRED = FramingConfig(margin=(MARGIN, MARGIN), jitter=0.0, angle=0.0)
"""The framing of evaluation and inference."""


class FacePairs(Dataset):
    """Pair ``i`` depends on role, seed, ``i`` and the faces only: not on workers, order or batches.

    Each round goes over all faces once in an order of its own. The length is as long as one likes,
    so that a whole training is one pass, which can be resumed at any point.

    Args:
        faces: Rows of :class:`FaceCrop`, real faces only.
        length: Number of pairs.
        size: Side S of the images in pixels.
        seed: Of everything.
        simulator: How forgeries are drawn.
        framing: How the face is placed.
        degradation: Changes that both images share; None leaves them out.
        role: What the pairs are for, one of ``ROLES``.

    Raises:
        ValueError: No faces, or faces labelled fake; an unknown role; only one person, and swaps
            to make.
    """

    def __init__(
        self,
        faces: datasets.Dataset,
        length: int,
        size: int = 224,
        seed: int = 0,
        simulator: SimulatorConfig | None = None,
        framing: FramingConfig | None = None,
        degradation: DegradeConfig | None = None,
        role: Role = "training",
    ) -> None:
        if role not in ROLES:
            raise ValueError(f"role is one of {', '.join(ROLES)}, got {role!r}")
        if len(faces) == 0 or length < 1:
            raise ValueError(f"expected faces and a length, got {len(faces)} faces and {length}")
        fakes = sum(label != REAL for label in faces["label"])
        if fakes:
            raise ValueError(
                f"forgeries are simulated from real faces, but {fakes} of {len(faces)} are "
                "labelled fake; leave them out (load_real_faces)"
            )
        self.faces, self.length, self.size, self.seed = faces, length, size, seed
        self.simulator = ForgerySimulator(simulator)
        self.framing = framing or FramingConfig()
        self.degradation, self.role = degradation, role
        # Behind the seed in every sequence. New roles stand at the end, so that these numbers stay.
        self._tag = ROLES.index(role)
        self._people = faces["identity"] if self.simulator.config.swap else None
        if self._people is not None and len(set(self._people)) < 2:
            raise ValueError(
                "a swap needs two people, but all faces are of one; add people, or set "
                "SimulatorConfig.swap to 0"
            )
        # The last round's order: drawing it anew for each pair would cost more than the pair once
        # there are a million faces.
        self._order: tuple[int, np.ndarray] | None = None
        self._kept: dict[int, FaceCrop] = {}
        self._room = _KEPT_BYTES

    def __len__(self) -> int:
        return self.length

    def describe(self) -> dict[str, Any]:
        """All that the pairs depend on, as JSON takes it."""
        return {
            "faces": rows_digest(self.faces),
            "pairs": self.length,
            "size": self.size,
            "seed": self.seed,
            "role": self.role,
            "simulator": asdict(self.simulator.config),
            "framing": asdict(self.framing),
            "degradation": asdict(self.degradation) if self.degradation else None,
        }

    def row_of(self, index: int) -> int:
        """Row of the face that pair ``index`` is made from."""
        if not 0 <= index < self.length:
            raise IndexError(f"pair {index} of {self.length}")
        lap, place = divmod(index, len(self.faces))
        order = self._order
        if order is None or order[0] != lap:
            rng = np.random.default_rng([self.seed, self._tag, 0, lap])
            order = self._order = (lap, rng.permutation(len(self.faces)))
        return int(order[1][place])

    def face(self, row: int) -> FaceCrop:
        """The face of a row."""
        face = self._kept.get(row)
        if face is None:
            face = FaceCrop.from_row(self.faces[row])
            # The first ones stay: rounds visit all faces, so that making room for the latest ones
            # would only drop what comes next.
            if face.image.nbytes <= self._room:
                self._room -= face.image.nbytes
                self._kept[row] = face
        return face

    def _donor(self, row: int, landmarks: np.ndarray, rng: np.random.Generator) -> Donor:
        """Another person whose head is held alike, of a few that are drawn."""
        drawn: set[int] = set()
        while not drawn:
            rows = rng.integers(len(self.faces), size=_CANDIDATES).tolist()
            drawn = {other for other in rows if self._people[other] != self._people[row]}
        others = sorted(drawn)
        found = np.asarray(self.faces.select_columns("landmarks")[others]["landmarks"])
        aim = _shape(landmarks)
        apart = [np.abs(_shape(points) - aim).sum() for points in found]
        face = self.face(others[int(np.argmin(apart))])
        return Donor(*frame_face(face, self.size, CENTRED))

    def frame(self, index: int) -> FramedFace:
        """The face of pair ``index``, cut out and ready for :meth:`forge`."""
        row = self.row_of(index)
        face = self.face(row)
        rng = np.random.default_rng([self.seed, self._tag, 1, index])
        image, landmarks = frame_face(face, self.size, self.framing, rng)
        if self.degradation is not None:
            image = compress_before(image, self.degradation, rng)
        seed = int(rng.integers(2**63))
        donor = None if self._people is None else self._donor(row, landmarks, rng)
        return FramedFace(image, landmarks, seed, donor, row, rng)

    def finish(
        self,
        framed: FramedFace,
        image: np.ndarray,
        pristine: np.ndarray,
        mask: np.ndarray,
        regions: tuple[str, ...],
    ) -> FacePair:
        """The pair of a forged face, degraded; arguments as in ``ForgedFace``."""
        images = np.stack([image, pristine])
        if self.degradation is not None:
            images, mirrored = degrade(images, self.degradation, framed.rng)
            mask = mask[:, ::-1] if mirrored else mask
        return FacePair(
            to_tensor(images[0]),
            to_tensor(images[1]),
            to_tensor(np.ascontiguousarray(mask)),
            regions,
            framed.row,
        )

    def forge(self, framed: FramedFace) -> FacePair:
        """The pair of a framed face."""
        forged = self.simulator.forge(framed.image, framed.landmarks, framed.seed, framed.donor)
        return self.finish(framed, forged.image, forged.pristine, forged.mask, forged.plan.regions)

    def __getitem__(self, index: int) -> FacePair:
        return self.forge(self.frame(index))


def load_real_faces(folder: str | PathLike, split: str | None = None) -> datasets.Dataset:
    """The faces of a prepared folder that can be forged; how many are left out is logged.

    Args:
        folder: As for :func:`~llava_forgery.faces.records.load_faces`.
        split: Likewise.

    Raises:
        FileNotFoundError: There is no such folder, or no faces in it.
        ValueError: All are fake, or as ``load_faces``.
    """
    faces = load_faces(folder, split)
    rows = [i for i, label in enumerate(faces["label"]) if label == REAL]
    if not rows:
        raise ValueError(f"all faces in {folder} are fake; forgeries are simulated from real ones")
    if len(rows) == len(faces):
        return faces
    logger.info("%d fake faces of %s are left out", len(faces) - len(rows), folder)
    return faces.select(rows)


class Frame(NamedTuple):
    """A square around a face."""

    centre: np.ndarray
    """(2,) x and y in pixels of the crop."""
    side: float
    """In pixels of the crop."""
    angle: float
    """Degrees that it is turned about its centre, clockwise as seen."""
    drawn: bool
    """Whether it is a frame to train on, of a framing with ranges."""

    def cut(self, image: np.ndarray, size: int) -> np.ndarray:
        """(size, size, 3) uint8 of a crop (H, W, 3) uint8."""
        x, y = self.centre - self.side / 2
        box = (x, y, x + self.side, y + self.side)
        return crop_box(image, box, size, self.angle, single_pass=self.drawn)


def draw_frame(
    landmarks: np.ndarray, framing: FramingConfig, rng: np.random.Generator | None = None
) -> Frame:
    """A frame for a face with landmarks (68, 2); arguments as for :func:`frame_face`."""
    low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    longer = float((high - low).max())
    if rng is None:
        if not framing.is_fixed:
            raise ValueError(f"a framing with ranges needs a generator: {framing}")
        draw = np.zeros(4)
    else:
        draw = rng.random(4)
    margin = framing.margin[0] + (framing.margin[1] - framing.margin[0]) * float(draw[0])
    centre = (low + high) / 2 + (2 * draw[1:3] - 1) * framing.jitter * longer
    angle = (2 * float(draw[3]) - 1) * framing.angle
    return Frame(centre, longer * (1 + 2 * margin), angle, not framing.is_fixed)


def frame_face(
    face: FaceCrop, size: int, framing: FramingConfig, rng: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a face out of its crop with a drawn margin, position and turn.

    Args:
        face: With its landmarks.
        size: Side of the result in pixels.
        framing: Ranges.
        rng: Of the draws; not needed for a framing without a range, such as ``CENTRED``.

    Returns:
        Image (size, size, 3) uint8 and landmarks (68, 2) float32 in its pixels.
    """
    frame = draw_frame(face.landmarks, framing, rng)
    turned = (face.landmarks - frame.centre) @ rotation(frame.angle)
    landmarks = turned * (size / frame.side) + size / 2
    return frame.cut(face.image, size), landmarks.astype(np.float32)


def _shape(landmarks: np.ndarray) -> np.ndarray:
    """Landmarks (68, 2) without the face's place and size."""
    centred = landmarks - landmarks.mean(axis=0)
    return centred / np.linalg.norm(centred)
