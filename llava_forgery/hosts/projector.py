"""The host's own projector, from vision tower to language model, if it is trained as well."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from llava_forgery.weights import load_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# File of an adapter with a trained projector, by the host's names of its weights.
TRAINABLES = "host_trainables.safetensors"


class TrainedProjector:
    """A host's projector that is trained, or was trained by an adapter, with its original weights.

    Args:
        host: Bare host.
        name: Name of the projector in the host's base model (``HostFamily.projector``).

    Attributes:
        module: The projector.

    Raises:
        ValueError: The host has no projector of that name.
    """

    def __init__(self, host: PreTrainedModel, name: str) -> None:
        try:
            self.module = host.base_model.get_submodule(name)
        except AttributeError as error:
            raise ValueError(
                f"this {type(host).__name__} has no projector {name}; do not train it"
            ) from error
        self._prefix = next(path for path, one in host.named_modules() if one is self.module)
        self._before = {
            name: p.detach().to("cpu", copy=True) for name, p in self.module.named_parameters()
        }
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def unfreeze(self) -> None:
        """Make it trainable, in full precision whatever the host's, as updates are far smaller than
        the resolution of half precision."""
        dtype = next(self.module.parameters()).dtype
        self.module.requires_grad_(True).float()
        if dtype != torch.float32 and not self._handles:
            self._handles = [
                self.module.register_forward_pre_hook(
                    lambda _, inputs: tuple(_cast(value, torch.float32) for value in inputs)
                ),
                self.module.register_forward_hook(lambda _, __, output: _cast(output, dtype)),
            ]

    def state(self) -> dict[str, torch.Tensor]:
        """Weights by the host's names."""
        named = self.module.named_parameters()
        return {f"{self._prefix}.{name}": p.detach() for name, p in named}

    @torch.no_grad()
    def fill(self, directory: Path) -> None:
        """Load it from an adapter's folder, strictly.

        Raises:
            FileNotFoundError: The adapter holds no trained projector.
            ValueError: The weights do not match.
        """
        own = self.state()
        for name, tensor in load_tensors(directory / TRAINABLES, own).items():
            own[name].copy_(tensor)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the original weights."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for name, parameter in self.module.named_parameters():
            before = self._before[name]
            parameter.data = before.to(parameter.device, copy=True)


def fill_projector(projector: TrainedProjector | None, directory: Path) -> None:
    """Load a host's trained projector, if any, from an adapter's folder, strictly.

    Raises:
        FileNotFoundError: It is trained, but the adapter holds none.
        ValueError: The weights do not match; or it is not trained, but the adapter holds one.
    """
    if projector is not None:
        projector.fill(directory)
    elif (directory / TRAINABLES).is_file():
        raise ValueError(
            f"{directory} holds weights of the host's own projector, which this training does not "
            "change; train the projector as before, or give another output folder"
        )


def _cast(value: object, dtype: torch.dtype) -> object:
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(dtype) if floating else value
