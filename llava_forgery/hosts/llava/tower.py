"""The detector with the interface of the ``llava`` package's vision towers.

LLaVA's builders ask a tower for ``is_loaded``, ``load_model``, ``dtype``, ``device``, ``config``,
``hidden_size``, ``num_patches`` and ``image_processor`` (haotian-liu/LLaVA at c121f04,
``clip_encoder.py``). The output of this tower is not a grid of features but a ``KFDOutput``, which
the projector ``forgery_prompt_learner`` reads.
"""

import logging
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import BatchFeature

from llava_forgery.files import read_json
from llava_forgery.hosts.llava.names import PREFIX
from llava_forgery.images import to_rgb
from llava_forgery.kfd.checkpoint import CONFIG, WEIGHTS
from llava_forgery.kfd.config import KFDConfig
from llava_forgery.kfd.detector import KFDOutput, KnowledgeGuidedForgeryDetector

logger = logging.getLogger(__name__)


class KFDImageProcessor:
    """Pictures to the detector's input, with the interface of LLaVA's image processors.

    Pictures are padded to a square by repeating the edge, so that faces keep their proportions. The
    detector normalises by itself, so mean and deviation are 0 and 1.

    Args:
        size: Side S of the detector's input in pixels.
    """

    image_mean = (0.0, 0.0, 0.0)
    image_std = (1.0, 1.0, 1.0)

    def __init__(self, size: int) -> None:
        self.size = {"shortest_edge": size, "height": size, "width": size}
        self.crop_size = {"height": size, "width": size}

    def preprocess(
        self,
        images: Image.Image | np.ndarray | Sequence[Image.Image | np.ndarray],
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Prepare one or several pictures.

        Args:
            images: PIL images, or arrays as for :func:`llava_forgery.images.to_rgb`.
            return_tensors: Must be "pt".

        Returns:
            ``pixel_values`` (N, 3, S, S) float32 in [0, 1].

        Raises:
            ValueError: ``return_tensors`` is not "pt".
        """
        if return_tensors not in (None, "pt"):
            raise ValueError(f'return_tensors must be "pt", got {return_tensors!r}')
        if isinstance(images, (Image.Image, np.ndarray)):
            images = [images]
        pixels = torch.stack([self._prepare(image) for image in images])
        return BatchFeature({"pixel_values": pixels})

    __call__ = preprocess

    def _prepare(self, image: Image.Image | np.ndarray) -> torch.Tensor:
        pixels = to_rgb(image)
        height, width = pixels.shape[:2]
        side, size = max(height, width), self.crop_size["height"]
        top, left = (side - height) // 2, (side - width) // 2
        margins = (top, side - height - top, left, side - width - left)
        square = cv2.copyMakeBorder(pixels, *margins, cv2.BORDER_REPLICATE)
        if side != size:
            how = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
            square = cv2.resize(square, (size, size), interpolation=how)
        return torch.from_numpy(np.ascontiguousarray(square)).permute(2, 0, 1).float() / 255


class KFDVisionTower(nn.Module):
    """A frozen detector as one of LLaVA's vision towers.

    Args:
        vision_tower: ``kfd:DIR``, or only the folder.
        args: LLaVA's configuration, which is not used.
        delay_load: Whether to read only the configuration; :meth:`load_model` loads the weights.

    Raises:
        FileNotFoundError: The folder holds no detector, or no weights.
        ValueError: The configuration is invalid.
    """

    def __init__(
        self, vision_tower: str | PathLike, args: Any = None, delay_load: bool = False
    ) -> None:
        super().__init__()
        self.vision_tower_name = str(vision_tower)
        self.directory = Path(self.vision_tower_name.removeprefix(PREFIX))
        self.config = _read_config(self.directory)
        self.image_processor = KFDImageProcessor(self.config.encoder.image_size)
        self.is_loaded = False
        if not delay_load:
            self.load_model()

    def load_model(self, device_map: Any = None) -> None:
        """Load the weights, unless they are loaded.

        Args:
            device_map: A device, or LLaVA's ``{"": device}``; "auto" and None leave the detector
                on the CPU, from where it moves with its model.
        """
        if self.is_loaded:
            logger.info("%s is already loaded", self.vision_tower_name)
            return
        # If it reads a host's vision tower, that is the model's own.
        self.kfd = KnowledgeGuidedForgeryDetector.from_pretrained(self.directory, with_tower=False)
        self.kfd.requires_grad_(False)
        self.is_loaded = True
        device = device_map.get("") if isinstance(device_map, dict) else device_map
        if device not in (None, "auto"):
            self.to(device)

    def train(self, mode: bool = True) -> "KFDVisionTower":
        """The detector is frozen and stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: torch.Tensor | Sequence[torch.Tensor]) -> KFDOutput:
        """Detect forgeries.

        Args:
            images: (N, 3, S, S) in [0, 1] from :attr:`image_processor`, or a list of (3, S, S).

        Raises:
            RuntimeError: The weights were not loaded; or the detector reads its model's vision
                tower, and only the model can ask it.
        """
        if not self.is_loaded:
            raise RuntimeError(f"{self.vision_tower_name} is not loaded; call load_model()")
        if not isinstance(images, torch.Tensor):
            images = torch.stack(list(images))
        return self.kfd(images.to(self.device, self.dtype))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the detector's own layers."""
        return self._reference.dtype

    @property
    def device(self) -> torch.device:
        """Device of the detector."""
        return self._reference.device

    @property
    def _reference(self) -> torch.Tensor:
        return next(self.kfd.consistency.parameters()) if self.is_loaded else torch.empty(0)

    @property
    def dummy_feature(self) -> torch.Tensor:
        """(1, 2 L) zeros, for LLaVA's code."""
        return torch.zeros(1, self.hidden_size, device=self.device, dtype=self.dtype)

    @property
    def hidden_size(self) -> int:
        """2 L: number of values at each place of the consistency maps, [real, fake] per layer."""
        return 2 * self.config.num_layers

    @property
    def num_patches_per_side(self) -> int:
        """Side of the consistency maps.

        Raises:
            RuntimeError: The weights were not loaded: only the encoder knows its grid.
        """
        side = self.config.encoder.image_size
        if self.config.encoder.tower is not None:
            return side // self.config.encoder.tower.patch_size
        picture = torch.zeros(1, 3, side, side, device=self.device, dtype=self.dtype)
        return self(picture).consistency_maps.shape[-1]

    @property
    def num_patches(self) -> int:
        """Number of places of the consistency maps."""
        return self.num_patches_per_side**2


def _read_config(directory: Path) -> KFDConfig:
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"the forgery tower {directory} holds no {name}; give the folder that "
                "`llava-forgery train detector` wrote, as kfd:DIR"
            )
    return KFDConfig.from_dict(read_json(directory / CONFIG)["config"])
