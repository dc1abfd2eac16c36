"""Saving and loading a detector.

A folder holds ``kfd_config.json`` (with the calibration and the people it was trained on, if
known), ``kfd.safetensors`` (what inference needs: trained weights and the two text features) and
``knowledge.safetensors`` (what only further training needs: the learned context, and the text
encoder if it was trained). Frozen encoders are never saved; they are rebuilt from ``encoder.name``
and ``encoder.pretrained``, and a few of their output values are compared with those recorded when
the detector was saved. A host's tower is read from the host that ``encoder.name`` names, or
compared when the detector is attached to a host.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from llava_forgery.downloads import named_by
from llava_forgery.files import portable_name, read_json, resolve_name, write_json
from llava_forgery.kfd.calibration import Calibration
from llava_forgery.kfd.config import EncoderConfig, KFDConfig
from llava_forgery.kfd.encoder import VisualEncoder, default_dtype
from llava_forgery.kfd.host_tower import HostEncoder, load_tower
from llava_forgery.kfd.trunk import NAME as TRUNK
from llava_forgery.weights import load_tensors, save_tensors

Detector = TypeVar("Detector", bound=nn.Module)

CONFIG, WEIGHTS, KNOWLEDGE = "kfd_config.json", "kfd.safetensors", "knowledge.safetensors"
FORMAT = 1
# open_clip's prefix for a folder.
LOCAL = "local-dir:"
# Relative to the norm. Twelve random blocks in bfloat16 differ from float32 by up to 0.008, in
# float16 by 0.001; weights that differ by a fiftieth of their spread differ by 0.03 or more.
TOLERANCE = 0.02


def _detector_state(detector: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that inference needs, without those of frozen encoders."""
    frozen = ("encoder.",) if detector.encoder.frozen else ()
    return {
        name: tensor
        for name, tensor in detector.state_dict().items()
        if not name.startswith(("knowledge.", *frozen))
    }


def _knowledge_state(detector: nn.Module) -> dict[str, torch.Tensor]:
    frozen = ("encoder.",) if detector.knowledge.encoder.frozen else ()
    return {
        name: tensor
        for name, tensor in detector.knowledge.state_dict().items()
        if not name.startswith(frozen)
    }


def portable_config(config: KFDConfig) -> dict[str, Any]:
    """A JSON-serializable configuration; a folder that holds the encoder is reduced to its name."""
    encoder = config.encoder
    values = config.to_dict()
    values["encoder"]["name"] = _moved(
        encoder, encoder.name, lambda name, _: Path(name).name if Path(name).is_dir() else name,
        Path(),
    )  # fmt: skip
    return values


def detector_digest(detector: nn.Module) -> str:
    """SHA-256 of a detector's own weights, configuration and calibration: detectors with the same
    digest give the same scores."""
    config = portable_config(detector.config)
    if detector.calibration is not None:
        config["calibration"] = detector.calibration.to_dict()
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(_detector_state(detector).items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def encoder_probe(encoder: VisualEncoder, side: int) -> list[float]:
    """A frozen encoder's mean features of a fixed picture.

    Args:
        encoder: Encoder with its weights loaded.
        side: Side of the picture in pixels.
    """
    ramp = torch.linspace(0, 1, side)
    picture = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side),
                           torch.full((side, side), 0.5)])  # fmt: skip
    features = encoder(picture[None].to(encoder.mean.device))
    return [float(value) for feature in features for value in feature.float().mean((0, 2, 3))[:8]]


def same_probe(want: list[float], have: list[float]) -> bool:
    """Whether two probes come from the same weights, possibly in different dtypes."""
    one, two = torch.tensor(want), torch.tensor(have)
    return one.shape == two.shape and float((one - two).norm()) <= TOLERANCE * float(one.norm())


def _probe_to_save(detector: nn.Module) -> list[float]:
    # Once attached to its host, the detector keeps the probe that the tower was compared with.
    if _lacks_tower(detector):
        assert detector.encoder.probe is not None
        return detector.encoder.probe
    return encoder_probe(detector.encoder, detector.config.encoder.image_size)


def save_detector(detector: nn.Module, directory: str | PathLike) -> None:
    """Write a detector's configuration and its own weights.

    Args:
        detector: The detector; its text features are refreshed first.
        directory: Output folder, created if it is missing; each file is replaced as a whole.
    """
    directory = Path(directory)
    detector.refresh_text_features()
    meta: dict[str, Any] = {"format": FORMAT, "config": detector.config.to_dict()}
    encoder = detector.config.encoder
    meta["config"]["encoder"]["name"] = _moved(encoder, encoder.name, portable_name, directory)
    if detector.calibration is not None:
        meta["calibration"] = detector.calibration.to_dict()
    if detector.training_people:
        meta["training_people"] = sorted(detector.training_people)
    if detector.encoder.frozen:
        meta["encoder_probe"] = _probe_to_save(detector)
    # A folder without a configuration is not a detector. It is removed first and written last, so
    # that an interruption while overwriting an older detector leaves no readable mixture of both.
    (directory / CONFIG).unlink(missing_ok=True)
    save_tensors(directory / WEIGHTS, _detector_state(detector))
    if detector.knowledge is not None:
        save_tensors(directory / KNOWLEDGE, _knowledge_state(detector))
    write_json(directory / CONFIG, meta)


def load_detector(
    build: Callable[[KFDConfig], Detector],
    directory: str | PathLike,
    with_knowledge: bool = False,
    with_tower: bool = True,
    base_model: str | None = None,
    dtype: torch.dtype | None = None,
) -> Detector:
    """Read a detector, in eval mode on the CPU.

    Args:
        build: Builds the detector that a configuration describes, without a host's tower.
        directory: Folder written by :func:`save_detector`.
        with_knowledge: Also read what further training needs.
        with_tower: For a detector on a host's vision tower: load the tower.
        base_model: Folder or hub name of that host, if it is no longer the one that was saved.
        dtype: Precision in which the detector is built and filled, so that it never takes more
            memory than that; None for torch's default. A host's tower keeps its own.

    Raises:
        FileNotFoundError: The folder or a file in it is missing, or a model that the configuration
            names is not on this machine and downloads are not allowed
            (:mod:`llava_forgery.downloads`). A host that is passed here may be downloaded.
        ValueError: A file does not fit the configuration, or the frozen encoder that is built
            here is not the one the detector was trained on.
    """
    directory = Path(directory)
    if not (directory / CONFIG).is_file():
        raise FileNotFoundError(
            f"{directory} holds no {CONFIG}: give the folder that "
            "`llava-forgery train detector` or save_pretrained wrote"
        )
    meta = read_json(directory / CONFIG)
    if meta.get("format") != FORMAT:
        raise ValueError(f"{directory / CONFIG} has format {meta.get('format')}, not {FORMAT}")
    config = KFDConfig.from_dict(meta["config"])
    if config.encoder.kind != "host" and base_model is not None:
        raise ValueError(
            f"{directory} holds a detector with an encoder of its own ({config.encoder.name}); it "
            "takes no host"
        )
    name = _moved(config.encoder, base_model or config.encoder.name, resolve_name, directory)
    config = replace(config, encoder=replace(config.encoder, name=name))
    # Our own trunk needs no download.
    own = config.encoder.kind == "timm" and config.encoder.name == TRUNK
    named = nullcontext() if own else named_by(directory / CONFIG, _named(config.encoder))
    with named, default_dtype(dtype):
        detector = build(config)
    if with_tower and isinstance(detector.encoder, HostEncoder):
        named = {"host of the vision tower": name}
        with nullcontext() if base_model is not None else named_by(directory / CONFIG, named):
            detector.encoder.adopt(load_tower(name))
    load_weights(detector, directory, with_knowledge)
    detector.calibration = _calibration(meta, directory)
    detector.training_people = frozenset(meta.get("training_people", ()))
    detector.eval()
    if isinstance(detector.encoder, HostEncoder):
        detector.encoder.probe = meta["encoder_probe"]
    if detector.encoder.frozen and not _lacks_tower(detector):
        _compare_probe(detector, meta, directory)
    return detector


def read_calibration(directory: str | PathLike) -> Calibration | None:
    """The calibration of a saved detector; None if it has none.

    Raises:
        FileNotFoundError: There is no detector.
        ValueError: As :func:`load_detector`.
    """
    return _calibration(read_json(Path(directory) / CONFIG), Path(directory))


def write_calibration(directory: str | PathLike, calibration: Calibration | None) -> None:
    """Replace the calibration of a saved detector; its weights stay unchanged.

    Raises:
        FileNotFoundError: There is no detector.
    """
    path = Path(directory) / CONFIG
    meta = read_json(path)
    meta.pop("calibration", None)
    if calibration is not None:
        meta["calibration"] = calibration.to_dict()
    write_json(path, meta)


def _calibration(meta: dict[str, Any], directory: Path) -> Calibration | None:
    if "calibration" not in meta:
        return None
    try:
        return Calibration.from_dict(meta["calibration"])
    except ValueError as error:
        raise ValueError(f"{directory / CONFIG}: {error}") from error


def _named(encoder: EncoderConfig) -> dict[str, str]:
    """The models that a configuration names, except for a host's tower."""
    name = encoder.text_model if encoder.kind == "host" else encoder.name
    weights = {} if encoder.pretrained is None else {"weights": encoder.pretrained}
    return {"encoder": name or "of bytes", **weights}


def _moved(
    encoder: EncoderConfig, name: str, move: Callable[[str, Path], str], directory: Path
) -> str:
    """The encoder's name; if it is a folder, made relative to ``directory`` or resolved again."""
    if encoder.kind == "host":
        return move(name, directory)
    if name.startswith(LOCAL):
        return LOCAL + move(name.removeprefix(LOCAL), directory)
    return name


def _lacks_tower(detector: nn.Module) -> bool:
    return isinstance(detector.encoder, HostEncoder) and detector.encoder.tower is None


def load_weights(detector: nn.Module, directory: Path, with_knowledge: bool) -> None:
    """Fill a built detector from a folder, strictly."""
    weights = load_tensors(directory / WEIGHTS, _detector_state(detector))
    _fill(detector, weights)
    if with_knowledge:
        _fill(detector.knowledge, load_tensors(directory / KNOWLEDGE, _knowledge_state(detector)))


def _fill(module: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Copy tensors into parameters and buffers of the same names, which were already checked."""
    state = module.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)


def _compare_probe(detector: nn.Module, meta: dict[str, Any], directory: Path) -> None:
    encoder = detector.config.encoder
    if not same_probe(meta["encoder_probe"], encoder_probe(detector.encoder, encoder.image_size)):
        source = f"pretrained={encoder.pretrained!r}" if encoder.kind != "host" else "the host"
        raise ValueError(
            f"{directory} was trained on other weights of {encoder.name} than the ones built here "
            f"from {source}; a frozen encoder is not saved, so the same weights must be available"
        )
