"""A forgery adapter with its host, by whichever backend reads it."""

import importlib
from os import PathLike
from typing import Any

import torch
from transformers import PreTrainedModel

from llava_forgery.hosts.base import ForgeryModel
from llava_forgery.hosts.llava.names import in_llava_layout

# Imported when one is used: neither needs the other, and a prediction is to load no more than it
# needs. Each function takes the arguments of `AutoForgeryModel.from_pretrained` but `backend`.
BACKENDS = {
    "transformers": "llava_forgery.hosts.transformers.loading",
    "llava": "llava_forgery.hosts.llava.loading",
}


class AutoForgeryModel:
    """Loads what ``save_pretrained`` of either backend wrote."""

    @staticmethod
    def from_pretrained(
        directory: str | PathLike,
        base_model: str | PreTrainedModel | None = None,
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
            directory: The adapter's; or a whole model in LLaVA's layout.
            base_model: Folder or hub name of the bare host; by default the one the adapter names.
            backend: "transformers", "llava", or "auto" for the one whose layout the folder has.
            device: Device to load onto; a GPU if there is one by default. "auto" spreads the host
                over all GPUs and, if they are too small, the CPU.
            dtype: Of the host's weights, as transformers takes it.
            quantization: "4bit" or "8bit"; None leaves the weights as they are.
            allow_download: Whether what the adapter's files name, its host and the detector's
                encoder, may be downloaded. A host that is given here always may.
            options: Of the backend alone: ``template`` for the ``llava`` package.

        Returns:
            The host with the skill, in eval mode.

        Raises:
            FileNotFoundError: Adapter or host is missing.
            ImportError: The backend is not installed.
            ValueError: The host is not the one the adapter was trained for, a file is damaged, or
                there is no such backend.
        """
        if backend == "auto":
            backend = "llava" if in_llava_layout(directory) else "transformers"
        if backend not in BACKENDS:
            raise ValueError(f"backend must be auto, {' or '.join(BACKENDS)}, got {backend!r}")
        load = importlib.import_module(BACKENDS[backend]).load_pretrained
        return load(
            directory,
            base_model,
            device=device,
            dtype=dtype,
            quantization=quantization,
            allow_download=allow_download,
            **options,
        )
