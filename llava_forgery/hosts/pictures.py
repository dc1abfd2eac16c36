"""The detector's view of pictures that a program only gave to the host.

Programs unaware of the skill only give the host's pixel tensors, which is second best: the host's
processor has resized, and may have cropped, the photographs. They are converted back to 8-bit
pictures, in which faces are found and framed as usual.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from llava_forgery.call_state import lock_of
from llava_forgery.faces.crop import whole_square
from llava_forgery.faces.detect import get_detector
from llava_forgery.faces.detected import FaceDetector, square_of_face
from llava_forgery.hosts.placement import FACE
from llava_forgery.tensors import from_bytes

logger = logging.getLogger(__name__)


class ClientPrompts:
    """Support of a model for programs unaware of its skill, with warnings that are given once;
    threads may share it."""

    def __init__(self) -> None:
        self.said_unused = self.said_derived = False
        self._detector: FaceDetector | None = None

    def tell_unused(self, model: nn.Module) -> None:
        """Warn once that the skill was not used, unless the model trains on general data."""
        if self.said_unused or model.training:
            return
        self.said_unused = True
        logger.warning(
            "the prompt shows an image and holds no forgery placeholders, so the answer is that of "
            "the host and its LoRA, without the skill; let the model place them by itself "
            '(`llava-forgery convert placement`, or placement="always" at load time), or make its '
            "inputs with the processor of an exported checkpoint"
        )

    def tell_derived(self) -> None:
        """Warn once that the detector sees pictures as prepared for the host."""
        if not self.said_derived:
            self.said_derived = True
            logger.warning(
                "no forgery_images are given: the detector sees the images as the host's processor "
                "prepared them; give forgery_images for its own resolution"
            )

    def frame(self, pictures: Sequence[np.ndarray], size: int, crop: str) -> torch.Tensor:
        """Frame pictures for the detector.

        Args:
            pictures: (H, W, 3) uint8 RGB each.
            size: Side S of the detector's input.
            crop: "face": the largest face is cut out as in training, unless the picture is already
                framed so; without a face the whole picture is used, with a warning. "none": the
                whole picture, padded to a square by repeating its edge.

        Returns:
            (N, 3, S, S) float32 in [0, 1].
        """
        return torch.stack([from_bytes(self.square(p, size, crop)) for p in pictures])

    def square(self, pixels: np.ndarray, size: int, crop: str) -> np.ndarray:
        """A single picture as in :meth:`frame`, (S, S, 3) uint8."""
        if crop == FACE:
            face = square_of_face(pixels, size, self._find)
            for warning in face.warnings:
                logger.warning("a picture of the prompt: %s", warning)
            return face.image
        return whole_square(pixels, size)

    def _find(self) -> FaceDetector:
        with lock_of(self):
            if self._detector is None:
                self._detector = get_detector("dlib")
            return self._detector


def picture_of(
    pixels: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    aspect: str | None = None,
    image_size: Sequence[int] | None = None,
) -> np.ndarray:
    """Convert an image that was prepared for the host back to a picture.

    Padding is removed and proportions are restored if the photograph's size is known.

    Args:
        pixels: (3, H, W), normalised by the host's processor.
        mean: Channel means of the host's processor, for pixels in [0, 1].
        std: Channel standard deviations of the host's processor, for pixels in [0, 1].
        aspect: LLaVA's ``image_aspect_ratio``: None, "square", "pad" or "anyres...".
        image_size: (width, height) of the photograph.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    shape = (3, 1, 1)
    image = pixels.detach().float().cpu()
    image = image * image.new_tensor(std).view(shape) + image.new_tensor(mean).view(shape)
    image = image.clamp(0, 1)
    if image_size is not None and aspect is not None:
        width, height = (int(value) for value in image_size)
        side, longer = image.shape[-1], max(width, height)
        shown = (max(1, round(side * height / longer)), max(1, round(side * width / longer)))
        if aspect == "pad":
            top, left = (side - shown[0]) // 2, (side - shown[1]) // 2
            image = image[:, top : top + shown[0], left : left + shown[1]]
        elif aspect.startswith("anyres") and shown != image.shape[1:]:
            image = F.interpolate(
                image[None], shown, mode="bilinear", align_corners=False, antialias=True
            )[0].clamp(0, 1)
    return (image * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
