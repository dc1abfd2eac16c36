"""A detector described as JSON and built from it, for self-contained checkpoints.

A detector's own folder names its frozen encoder (:mod:`llava_forgery.kfd.checkpoint`); a checkpoint
of a whole model contains it and only needs its architecture.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from llava_forgery.files import read_json
from llava_forgery.kfd.calibration import Calibration
from llava_forgery.kfd.checkpoint import LOCAL, portable_config
from llava_forgery.kfd.config import KFDConfig
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.kfd.host_tower import HostEncoder
from llava_forgery.optional import lazy
from llava_forgery.weights import compare_tensors, open_tensors

huggingface_hub = lazy("huggingface_hub")

_HUB, _OPEN_CLIP = "hf-hub:", "open_clip_config.json"


def describe(detector: KnowledgeGuidedForgeryDetector) -> dict[str, Any]:
    """JSON-serializable input of :func:`build_skeleton`.

    Args:
        detector: Detector with an encoder of its own, or on the tower of a host.

    Returns:
        ``config`` and, where present, ``open_clip`` (the architecture of an encoder that open_clip
        does not know by name), ``calibration``, ``training_people`` and, on a host's tower,
        ``encoder_probe``.
    """
    values: dict[str, Any] = {"config": portable_config(detector.config)}
    name = detector.config.encoder.name
    if detector.config.encoder.kind == "open_clip":
        if name.startswith(LOCAL):
            values["open_clip"] = read_json(Path(name.removeprefix(LOCAL)) / _OPEN_CLIP)
        elif name.startswith(_HUB):
            # Already in the cache, as the detector was loaded from there.
            path = huggingface_hub.hf_hub_download(name.removeprefix(_HUB), _OPEN_CLIP)
            values["open_clip"] = read_json(path)
    if detector.calibration is not None:
        values["calibration"] = detector.calibration.to_dict()
    if detector.training_people:
        values["training_people"] = sorted(detector.training_people)
    if isinstance(detector.encoder, HostEncoder):
        values["encoder_probe"] = detector.encoder.probe
    return values


def build_skeleton(values: Mapping[str, Any]) -> KnowledgeGuidedForgeryDetector:
    """A detector without its weights, frozen and in eval mode.

    All its buffers are persistent, so that its checkpoint is complete.

    Args:
        values: Output of :func:`describe`.

    Raises:
        ValueError: The values come from another version.
    """
    config = KFDConfig.from_dict(values["config"])
    # No weights are needed: the checkpoint has the encoder.
    bare = replace(config.encoder, pretrained=None, text_model=None)
    # timm and open_clip compute while they build.
    with tempfile.TemporaryDirectory() as folder, torch.device("cpu"):
        if "open_clip" in values:
            (Path(folder) / _OPEN_CLIP).write_text(json.dumps(values["open_clip"]))
            bare = replace(bare, name=f"{LOCAL}{folder}")
        detector = KnowledgeGuidedForgeryDetector(
            replace(config, encoder=bare), with_knowledge=False, with_tower=False
        )
    detector.config = config
    for module in detector.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, buffer)
    if "calibration" in values:
        detector.calibration = Calibration.from_dict(values["calibration"])
    detector.training_people = frozenset(values.get("training_people", ()))
    if isinstance(detector.encoder, HostEncoder):
        detector.encoder.probe = values["encoder_probe"]
    return detector.requires_grad_(False).eval()


def load_from_model(
    values: Mapping[str, Any], directory: str | PathLike, prefix: str = "kfd."
) -> KnowledgeGuidedForgeryDetector:
    """A detector with an encoder of its own out of a whole model's safetensors; nothing else of
    them is read.

    Args:
        values: From :func:`describe`.
        directory: The model's folder.
        prefix: Of its tensors' names.

    Raises:
        ValueError: The tensors do not fit, or a file is damaged.
    """
    detector = build_skeleton(values)
    found: dict[str, torch.Tensor] = {}
    for path in sorted(Path(directory).glob("*.safetensors")):
        with open_tensors(path) as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            found |= {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    compare_tensors(found, detector.state_dict(), str(directory))
    detector.load_state_dict(found, assign=True)
    return detector.requires_grad_(False)
