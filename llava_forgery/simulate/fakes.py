"""Labelled fakes beside simulated forgeries, such as those of FaceForensics++.

A labelled fake has no pristine image of its own; a real face stands beside it, and both go through
the same degradation. Where the fakes' folder holds real faces as well, the real face is one of
them: otherwise camera and compression would tell the two apart.
"""

import logging
from typing import Any

import cv2
import datasets
import numpy as np

from llava_forgery.constants import FAKE, REAL
from llava_forgery.faces.records import FaceCrop
from llava_forgery.rows import rows_digest
from llava_forgery.simulate.degrade import degrade
from llava_forgery.simulate.pairs import FacePair, FacePairs, Frame, FramedFace, draw_frame
from llava_forgery.simulate.simulator import to_tensor

logger = logging.getLogger(__name__)


# Draws of a fake whose mask covers something, before it is an error.
_TRIES = 20


class LabelledPairs(FacePairs):
    """Simulated pairs, some of which are a labelled fake and a real face instead.

    Pair ``i`` depends on the seed, ``i`` and the faces only. Fakes are drawn evenly over their
    methods. A fake without a mask has ``FacePair.masked`` off; one whose mask is empty (a frame
    that the method left as it was) is drawn again.

    Args:
        faces: Of :class:`FacePairs`.
        length: Likewise.
        labelled: Labelled faces; their real ones, or those of ``faces`` if there are none, stand
            beside the fakes.
        ratio: Share of the pairs that show a labelled fake, above 0 and at most 1.
        options: Of :class:`FacePairs`.

    Raises:
        ValueError: No face is labelled fake, the ratio is out of range, or as :class:`FacePairs`.
    """

    def __init__(
        self,
        faces: datasets.Dataset,
        length: int,
        labelled: datasets.Dataset,
        ratio: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(faces, length, **options)
        if not 0 < ratio <= 1:
            raise ValueError(f"the share of labelled fakes must be in (0, 1], got {ratio}")
        labels = labelled["label"][:]
        fakes = [row for row, label in enumerate(labels) if label == FAKE]
        if not fakes:
            raise ValueError(
                f"none of {len(labelled)} faces is labelled fake; give the folder of a benchmark's "
                "faces that data prepare wrote"
            )
        self.labelled, self.ratio = labelled, ratio
        methods = ["None"] * len(labels)
        if "method" in labelled.column_names:
            methods = [str(method) for method in labelled["method"]]
        groups: dict[str, list[int]] = {}
        for row in fakes:
            groups.setdefault(methods[row], []).append(row)
        self._methods = [(name, groups[name]) for name in sorted(groups)]
        self._reals = [row for row, label in enumerate(labels) if label == REAL]
        if not self._reals:
            logger.warning(
                "the labelled fakes come without real faces: beside them stand faces of another "
                "source, so that camera and compression may tell the two apart; prepare the "
                "benchmark's real faces into the same folder"
            )

    def describe(self) -> dict[str, Any]:
        labelled = {"faces": rows_digest(self.labelled), "ratio": self.ratio}
        return {**super().describe(), "labelled": labelled}

    def frame(self, index: int) -> FramedFace | FacePair:
        """As :meth:`FacePairs.frame`; a labelled pair needs no forging and is whole."""
        row = self.row_of(index)
        rng = np.random.default_rng([self.seed, self._tag, 2, index])
        if rng.random() >= self.ratio:
            return super().frame(index)
        fake, mask, frame = self._fake(rng)
        if self._reals:
            row = self._reals[int(rng.integers(len(self._reals)))]
            real = FaceCrop.from_row(self.labelled[row])
        else:
            real = self.face(row)
        beside = draw_frame(real.landmarks, self.framing, rng)
        images = np.stack([frame.cut(fake.image, self.size), beside.cut(real.image, self.size)])
        if self.degradation is not None:
            images, mirrored = degrade(images, self.degradation, rng)
            mask = mask[:, ::-1] if mirrored else mask
        return FacePair(
            to_tensor(images[0]),
            to_tensor(images[1]),
            to_tensor(np.ascontiguousarray(mask)),
            regions=(),
            row=-1,
            paired=False,
            masked=fake.mask is not None,
        )

    def forge(self, framed: FramedFace | FacePair) -> FacePair:
        return framed if isinstance(framed, FacePair) else super().forge(framed)

    def _fake(self, rng: np.random.Generator) -> tuple[FaceCrop, np.ndarray, Frame]:
        """A fake, its mask (S, S) uint8 in the frame, and the frame."""
        name, group = self._methods[int(rng.integers(len(self._methods)))]
        for _ in range(_TRIES):
            fake = FaceCrop.from_row(self.labelled[group[int(rng.integers(len(group)))]])
            frame = draw_frame(fake.landmarks, self.framing, rng)
            if fake.mask is None:
                return fake, np.zeros((self.size, self.size), np.uint8), frame
            mask = frame.cut(cv2.merge([fake.mask] * 3), self.size)[..., 0]
            if (mask > 127).any():
                return fake, mask, frame
        raise ValueError(
            f"{_TRIES} fakes of the method {name} were drawn and the mask of none covers "
            "anything; import the benchmark with its masks, or without any"
        )
