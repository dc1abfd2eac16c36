"""Pictures as inputs of LLaVA's models, and their conversion back for the detector."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from llava_forgery.hosts.pictures import picture_of


class HostImages:
    """Prepares pictures for LLaVA's model.

    Args:
        processor: Image processor of the host's vision tower.
        config: Configuration of the host, for ``image_aspect_ratio`` and ``image_grid_pinpoints``.
    """

    def __init__(self, processor: Any, config: Any) -> None:
        self.processor, self.config = processor, config

    def __call__(
        self, images: Sequence[Image.Image]
    ) -> tuple[list[torch.Tensor], list[tuple[int, int]]]:
        """Prepare the images of one sample.

        Returns:
            (3, H, W) or (tiles, 3, H, W) for each, and (width, height) of each photograph. A
            sample of text only gets one empty image, of one tile if images have tiles: LLaVA's
            model requires one and ignores it, and processes that train together must all read the
            same weights.
        """
        from llava.mm_utils import process_images

        if not images:
            side = self.processor.crop_size
            empty = torch.zeros(3, side["height"], side["width"])
            tiled = (getattr(self.config, "image_aspect_ratio", None) or "").startswith("anyres")
            return [empty[None] if tiled else empty], [(side["width"], side["height"])]
        # One by one, as LLaVA stacks images of a call, and any-resolution images differ in shape.
        pixels = [process_images([image], self.processor, self.config)[0] for image in images]
        return pixels, [image.size for image in images]


def pictures_of(
    images: torch.Tensor | Sequence[torch.Tensor],
    wanted: Sequence[int],
    config: Any,
    processor: Any,
    image_sizes: Sequence[Sequence[int]] | None,
) -> list[np.ndarray]:
    """Some of a batch's images as pictures (H, W, 3) uint8; see
    :func:`~llava_forgery.hosts.pictures.picture_of`. For an image in tiles the first is used, which
    shows the whole image.

    Args:
        images: LLaVA's images of the whole batch: (3, H, W) or (tiles, 3, H, W) each.
        wanted: Indices of the images for the detector.
        config: Configuration of the model.
        processor: Image processor of the model's own tower.
        image_sizes: (width, height) of all photographs, if known.
    """
    aspect = getattr(config, "image_aspect_ratio", None)
    return [
        picture_of(
            images[i][0] if images[i].ndim == 4 else images[i],
            processor.image_mean,
            processor.image_std,
            aspect,
            None if image_sizes is None else image_sizes[i],
        )
        for i in wanted
    ]
