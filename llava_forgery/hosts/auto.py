"""A forgery adapter with its host, in either backend; pictures and texts as its inputs.

model = AutoForgeryModel.from_pretrained("ADAPTER")
processor = ForgeryProcessor(model)
inputs = processor(images="face.png", text="Is this a deepfake image?")
ids = model.generate(**inputs, **processor.stopping(), max_new_tokens=64)
processor.decode(ids, inputs)
"""

import importlib
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import Image

from llava_forgery.faces.crop import whole_square
from llava_forgery.hosts.base import ForgeryModel
from llava_forgery.hosts.llava.names import in_llava_layout
from llava_forgery.hosts.names import is_exported
from llava_forgery.hub import local_folder
from llava_forgery.images import read_image, to_rgb
from llava_forgery.qa.conversation import Conversation, Message
from llava_forgery.tensors import from_bytes, to_device

Picture = str | PathLike | np.ndarray | Image.Image

# Imported on use, so that a prediction loads no more than it needs. Each function takes the
# arguments of `AutoForgeryModel.from_pretrained` except `backend`.
BACKENDS = {
    "transformers": "llava_forgery.hosts.transformers.loading",
    "llava": "llava_forgery.hosts.llava.loading",
}
_EXPORTED = "llava_forgery.hosts.transformers.export"


class AutoForgeryModel:
    """Loads models saved by ``save_pretrained`` of either backend."""

    @staticmethod
    def from_pretrained(
        directory: str | PathLike,
        base_model: str | None = None,
        backend: str = "auto",
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str = "auto",
        quantization: str | None = None,
        allow_download: bool = False,
        **options: Any,
    ) -> ForgeryModel:
        """Load an adapter and its host.

        Args:
            directory: Folder or hub name (``owner/name[@revision]``) of the adapter, or of a whole
                model in LLaVA's layout or written by ``convert export-transformers``.
            base_model: Folder or hub name of the bare host; by default the one the adapter names.
            backend: "transformers", "llava", or "auto" for the one whose layout the folder has.
            device: Device to load onto; by default a GPU if there is one. "auto" spreads the host
                over all GPUs and, if they are too small, the CPU.
            dtype: Dtype of the host's weights, as for transformers.
            quantization: "4bit" or "8bit"; None does not quantise the weights.
            allow_download: Whether models that the adapter's files name, its host and the
                detector's encoder, may be downloaded. A host that is passed here always may.
            options: ``placement`` and ``crop``, to override the adapter's
                (:mod:`llava_forgery.hosts.placement`); and for the ``llava`` package ``template``.

        Returns:
            The host with the skill, in eval mode.

        Raises:
            FileNotFoundError: Adapter or host is missing.
            ImportError: The backend is not installed.
            ValueError: The host is not the one the adapter was trained for, a file is damaged, or
                the backend is unknown.
        """
        directory = local_folder(directory)
        if backend == "auto":
            backend = "llava" if in_llava_layout(directory) else "transformers"
        if backend not in BACKENDS:
            raise ValueError(f"backend must be auto, {' or '.join(BACKENDS)}, got {backend!r}")
        whole = backend == "transformers" and is_exported(directory)
        load = importlib.import_module(_EXPORTED if whole else BACKENDS[backend]).load_pretrained
        return load(
            directory,
            base_model,
            device=device,
            dtype=dtype,
            quantization=quantization,
            allow_download=allow_download,
            **options,
        )


class ForgeryProcessor:
    """Converts face crops and questions to inputs of a model's ``forward`` and ``generate``.

    Texts are used unchanged. :class:`~llava_forgery.infer.predictor.ForgeryPredictor` finds faces
    and asks as in training, with the detector's score in the prompt.

    Args:
        model: Host with the skill, of either backend.
    """

    def __init__(self, model: ForgeryModel) -> None:
        self._model = model

    def __call__(
        self,
        images: Picture | Sequence[Picture],
        text: str | Conversation | Sequence[str | Conversation],
        *,
        max_length: int | None = None,
    ) -> dict[str, Any]:
        """A batch of prompts, each about one face.

        Args:
            images: N face crops: paths, PIL images or arrays (H, W, 3) uint8 RGB; or one. They are
                padded to a square and resized for the detector.
            text: N questions, or conversations; or one. Conversations that end with an answer
                give ``labels``, on the answers only.
            max_length: Maximum number of tokens of a prompt; nothing is ever truncated.

        Returns:
            ``input_ids`` and ``attention_mask`` (N, T), padded on the left; with answers padded on
            the right, with ``labels`` (N, T). ``forgery_images`` (N, 3, S, S) in [0, 1], unless the
            detector reads the host's own vision tower. The host's inputs for the images. All are on
            the model's device.

        Raises:
            FileNotFoundError: A picture is missing.
            ValueError: The numbers of images and texts differ, prompts and answered conversations
                are mixed, a picture is broken, or a text is longer than ``max_length``.
        """
        pictures = [self._square(image) for image in _listed(images)]
        conversations = [
            Conversation((Message("user", one),), label=None) if isinstance(one, str) else one
            for one in _listed(text)
        ]
        if len(pictures) != len(conversations):
            raise ValueError(
                f"got {len(pictures)} images and {len(conversations)} texts; give one image for "
                "each text"
            )
        kinds = {conversation.is_prompt for conversation in conversations}
        if len(kinds) != 1:
            raise ValueError("expected prompts or answered conversations, got both or neither")
        prompts = self._model.prompts
        samples = [
            prompts.encode(conversation, [picture], max_length=max_length)
            for conversation, picture in zip(conversations, pictures, strict=True)
        ]
        batch = prompts.collate(samples, padding_side="left" if kinds == {True} else "right")
        if self._model.takes_forgery_images:
            batch["forgery_images"] = torch.stack(
                [from_bytes(np.asarray(picture)) for picture in pictures]
            )
        return to_device(batch, self._model.device)

    def stopping(self) -> dict[str, Any]:
        """Arguments of ``generate`` that end an answer besides the host's own end token."""
        return self._model.prompts.stopping()

    def decode(self, sequences: torch.Tensor, inputs: Mapping[str, Any]) -> list[str]:
        """The answers in the output of ``generate``.

        Args:
            sequences: (N, T + new tokens).
            inputs: Prompts (N, T), from the call.
        """
        start = inputs["input_ids"].shape[1]
        return [self._model.prompts.decode(ids) for ids in sequences[:, start:]]

    def _square(self, image: Picture) -> Image.Image:
        pixels = read_image(image) if isinstance(image, (str, PathLike)) else to_rgb(image)
        return Image.fromarray(whole_square(pixels, self._model.kfd.config.encoder.image_size))


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
