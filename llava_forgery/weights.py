"""Reading and writing tensors strictly: every key and every shape must be the expected one."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from llava_forgery.files import atomic_path


def save_tensors(path: str | PathLike, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as safetensors, atomically."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(plain, temporary)


def load_tensors(
    path: str | PathLike, expected: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Read safetensors that hold exactly the expected names and shapes.

    Args:
        path: The file.
        expected: Name to tensor of the wanted shape.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not safetensors; or names are missing, unknown or of another shape: all of
            them are listed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the folder is not complete")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    compare_tensors(tensors, expected, str(path))
    return tensors


def compare_tensors(
    tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], source: str
) -> None:
    """Raise ``ValueError`` listing every missing, unknown or misshapen tensor."""
    problems = [f"missing {name}" for name in expected if name not in tensors]
    problems += [f"unknown {name}" for name in tensors if name not in expected]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if problems:
        raise ValueError(f"{source} does not fit: " + "; ".join(problems))
