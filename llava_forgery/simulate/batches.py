"""Pairs of a batch forged at once with torch, for trainings whose GPU is faster than their CPUs.

Worker processes frame the faces; the training's process forges them on the device and degrades
them on the CPU, whose codecs have no twin there. The draws are those of :class:`FacePairs`, so that
both ways give the same pairs within a few grey levels.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from llava_forgery.simulate import staging
from llava_forgery.simulate.pairs import FacePair, FacePairs, FramedFace

_MOST_THREADS = 16


class FramedPairs(Dataset):
    """Pairs before they are forged; labelled fakes are pairs already.

    Args:
        pairs: What is to be forged.
        device: Where :meth:`forge` renders.
    """

    def __init__(self, pairs: FacePairs, device: torch.device) -> None:
        self.pairs, self.device = pairs, device

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> FramedFace | FacePair:
        return self.pairs.frame(index)

    def forge(self, batch: "FramedBatch") -> list[FacePair]:
        """Forge a batch.

        Args:
            batch: From :func:`collate_framed`.

        Returns:
            The pairs in the same order, on the CPU.

        Raises:
            ValueError: A face lies outside its image.
        """
        waiting = [face for face in batch.faces if isinstance(face, FramedFace)]
        if not waiting:
            return batch.faces
        images = torch.from_numpy(np.stack([face.image for face in waiting]))
        forged = self.pairs.simulator.forge_on_device(
            staging.upload(images, self.device).permute(0, 3, 1, 2).contiguous(),
            np.stack([face.landmarks for face in waiting]),
            [face.seed for face in waiting],
            [face.donor for face in waiting],
        )
        pictures = (
            staging.download(tensor.permute(0, 2, 3, 1).contiguous()).numpy()
            for tensor in (forged.image, forged.pristine, forged.mask)
        )
        image, pristine, mask = pictures
        arguments = (waiting, image, pristine, mask[..., 0], forged.regions)
        # Codecs and OpenCV release Python's lock for most of their work.
        with ThreadPoolExecutor(min(_MOST_THREADS, torch.get_num_threads())) as pool:
            made = iter(list(pool.map(self.pairs.finish, *arguments)))
        return [next(made) if isinstance(face, FramedFace) else face for face in batch.faces]


@dataclass(frozen=True)
class FramedBatch:
    """Faces of a batch; not a list, whose tensors the Trainer's data loader would move."""

    faces: list[FramedFace | FacePair]


def collate_framed(faces: list[FramedFace | FacePair]) -> dict[str, FramedBatch]:
    """Members of :class:`FramedPairs` as the Trainer takes a batch."""
    return {"batch": FramedBatch(faces)}
