"""Pictures as LLaVA's models take them, and what the detector can see of those."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image


class HostImages:
    """Pictures as LLaVA's model takes them.

    Args:
        processor: Of the host's vision tower.
        config: The host's, for ``image_aspect_ratio`` and ``image_grid_pinpoints``.
    """

    def __init__(self, processor: Any, config: Any) -> None:
        self.processor, self.config = processor, config

    def __call__(
        self, images: Sequence[Image.Image]
    ) -> tuple[list[torch.Tensor], list[tuple[int, int]]]:
        """Prepare the images of one sample.

        Returns:
            (3, H, W) or (tiles, 3, H, W) for each, and (width, height) of each photograph. A
            sample of text alone gets one empty image, of one tile where images have tiles: LLaVA's
            model counts on one, reads nothing from it, and processes that train together must all
            read the same weights.
        """
        from llava.mm_utils import process_images

        if not images:
            side = self.processor.crop_size
            empty = torch.zeros(3, side["height"], side["width"])
            tiled = (getattr(self.config, "image_aspect_ratio", None) or "").startswith("anyres")
            return [empty[None] if tiled else empty], [(side["width"], side["height"])]
        # One by one: LLaVA stacks what it gets together, and any-resolution images differ.
        pixels = [process_images([image], self.processor, self.config)[0] for image in images]
        return pixels, [image.size for image in images]


def picture_of(
    pixels: torch.Tensor,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    aspect: str | None = None,
    image_size: Sequence[int] | None = None,
) -> torch.Tensor:
    """What the detector can see of an image that was prepared for the host.

    LLaVA's tools give the host's ``images`` and nothing else. It is second best: the host's
    processor has resized, and may have cropped, the photograph. Of an image in tiles the first,
    which shows the whole, is taken. Padding is cut off and squeezed proportions are restored where
    the photograph's size is known.

    Args:
        pixels: (3, H, W), or (tiles, 3, H, W), normalised by the host's processor.
        size: Side S of the detector's input.
        mean: Of the host's processor, for pixels in [0, 1].
        std: Likewise.
        aspect: LLaVA's ``image_aspect_ratio``: None, "square", "pad" or "anyres...".
        image_size: (width, height) of the photograph.

    Returns:
        (3, S, S) float32 in [0, 1].
    """
    whole = pixels[0] if pixels.ndim == 4 else pixels
    shape = (3, 1, 1)
    image = whole.float() * whole.new_tensor(std).float().view(shape)
    image = (image + whole.new_tensor(mean).float().view(shape)).clamp(0, 1)
    if image_size is not None and aspect is not None:
        width, height = (int(value) for value in image_size)
        side, longer = image.shape[-1], max(width, height)
        shown = (max(1, round(side * height / longer)), max(1, round(side * width / longer)))
        if aspect == "pad":
            top, left = (side - shown[0]) // 2, (side - shown[1]) // 2
            image = image[:, top : top + shown[0], left : left + shown[1]]
        elif aspect.startswith("anyres"):
            image = _resize(image, shown)
        rest = [side - length for length in shown]
        if image.shape[1:] == shown:
            margins = (rest[1] // 2, rest[1] - rest[1] // 2, rest[0] // 2, rest[0] - rest[0] // 2)
            image = F.pad(image[None], margins, mode="replicate")[0]
    return _resize(image, (size, size)).clamp(0, 1)


def _resize(image: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    if image.shape[1:] == shape:
        return image
    return F.interpolate(image[None], shape, mode="bilinear", align_corners=False, antialias=True)[
        0
    ]


def pictures_of(
    images: torch.Tensor | Sequence[torch.Tensor],
    wanted: Sequence[int],
    size: int,
    config: Any,
    processor: Any,
    image_sizes: Sequence[Sequence[int]] | None,
) -> torch.Tensor:
    """(N, 3, S, S) of some of a batch's images; see :func:`picture_of`.

    Args:
        images: LLaVA's, of the whole batch.
        wanted: Indices of those that are shown to the detector.
        size: Side S of the detector's input.
        config: The model's.
        processor: The image processor of the model's own tower.
        image_sizes: (width, height) of all photographs, where known.
    """
    aspect = getattr(config, "image_aspect_ratio", None)
    return torch.stack(
        [
            picture_of(
                images[i],
                size,
                processor.image_mean,
                processor.image_std,
                aspect,
                None if image_sizes is None else image_sizes[i],
            )
            for i in wanted
        ]
    )
