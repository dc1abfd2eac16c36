"""Face images with labels for measurements, from any source."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import datasets
import numpy as np

from llava_forgery.constants import FAKE, REAL
from llava_forgery.data.samples import SimulatedSamples
from llava_forgery.faces.records import FaceCrop
from llava_forgery.simulate.pairs import CENTRED, FacePair, FacePairs, draw_frame, frame_face
from llava_forgery.tensors import to_bytes


@dataclass(frozen=True)
class LabelledImage:
    """One face as a detector sees it."""

    image: np.ndarray
    """(S, S, 3) uint8."""
    label: int
    """0 real, 1 fake."""
    key: str
    """Name of the image; all random changes to it depend on this name."""
    group: str
    """Unit that is resampled for intervals: the video, or the photograph it was forged from."""

    def __post_init__(self) -> None:
        if self.image.dtype != np.uint8 or self.image.ndim != 3 or self.image.shape[2] != 3:
            raise ValueError(
                f"image must be (S, S, 3) uint8, got {self.image.shape} {self.image.dtype}"
            )
        if self.label not in (REAL, FAKE):
            raise ValueError(f"label must be {REAL} (real) or {FAKE} (fake), got {self.label!r}")


class ManifestImages(Sequence[LabelledImage]):
    """Prepared faces with their own labels, such as a benchmark's.

    Args:
        faces: Rows of ``FaceCrop``: real, fake or both.
        size: Side S of the images in pixels; faces are framed as in inference.
    """

    source = "labelled faces"

    def __init__(self, faces: datasets.Dataset, size: int) -> None:
        self.labels = [int(label) for label in faces["label"]]
        self.faces, self.size = faces, size
        self.groups = list(faces["video_id"])

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, index: int) -> LabelledImage:
        face = FaceCrop.from_row(self.faces[index])
        image, _ = frame_face(face, self.size, CENTRED)
        return LabelledImage(image, face.label, f"{face.source}#{index}", face.video_id)

    def truth(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The true mask (S, S) uint8, 255 where forged, and the landmarks (68, 2) in the image;
        None if no mask is known or it covers nothing of the image."""
        if "mask" not in self.faces.column_names:
            return None
        face = FaceCrop.from_row(self.faces[index])
        if face.mask is None:
            return None
        frame = draw_frame(face.landmarks, CENTRED)
        mask = frame.cut(cv2.merge([face.mask] * 3), self.size)[..., 0]
        return (mask, frame_face(face, self.size, CENTRED)[1]) if (mask > 127).any() else None

    def describe(self) -> dict[str, Any]:
        """Everything that the images depend on, JSON-serializable."""
        return {"kind": self.source, "faces": self.faces._fingerprint, "size": self.size}


class PairImages(Sequence[LabelledImage]):
    """Simulated forgeries, each followed by its pristine image.

    Both have the same key, so that random changes are the same for both.
    """

    source = "simulated forgeries"

    def __init__(self, pairs: FacePairs) -> None:
        self.pairs = pairs
        self.labels = [FAKE, REAL] * len(pairs)
        videos = pairs.faces["video_id"]
        self.groups = [videos[pairs.row_of(i // 2)] for i in range(2 * len(pairs))]
        self._last: tuple[int, FacePair] | None = None

    def __len__(self) -> int:
        return 2 * len(self.pairs)

    def __getitem__(self, index: int) -> LabelledImage:
        place = index // 2
        last = self._last
        if last is None or last[0] != place:
            last = self._last = (place, self.pairs[place])
        pair = last[1]
        image = pair.pristine if index % 2 else pair.forged
        return LabelledImage(
            to_bytes(image), self.labels[index], f"pair {place}", self.groups[index]
        )

    def describe(self) -> dict[str, Any]:
        """Everything that the images depend on, JSON-serializable."""
        return SimulatedSamples(self.pairs).describe()


def evaluation_images(
    faces: datasets.Dataset, size: int, *, pairs: int | None = None, seed: int = 2
) -> ManifestImages | PairImages:
    """Images to evaluate on: faces of both classes as they are, or forgeries of real faces.

    Args:
        faces: Rows of ``FaceCrop``, of people who were not in training.
        size: Side S of the images in pixels.
        pairs: Number of simulated forgeries; by default two for each face. Only if all faces are
            real.
        seed: Seed of the simulator.

    Raises:
        ValueError: ``pairs`` is given for faces of both classes, or all faces are fake.
    """
    if set(faces["label"]) == {REAL, FAKE}:
        if pairs is not None:
            raise ValueError(
                "these faces hold fakes already and are judged as they are; leave pairs out"
            )
        return ManifestImages(faces, size)
    count = 2 * len(faces) if pairs is None else pairs
    return PairImages(FacePairs(faces, count, size=size, seed=seed, framing=CENTRED, role="test"))
