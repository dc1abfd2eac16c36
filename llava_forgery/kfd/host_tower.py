"""The vision tower of a transformers host as the detector's image encoder.

In stage 1 only the tower is loaded from the host's checkpoint. Later the detector uses the tower
of the loaded host, and the hidden states reach it without a second encoding
(:mod:`llava_forgery.hosts.transformers.shared_tower`). The tower is never saved with the detector.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from llava_forgery.call_state import in_call, lock_of, of_call
from llava_forgery.kfd.config import EncoderConfig
from llava_forgery.kfd.encoder import VisualEncoder
from llava_forgery.noise import quiet
from llava_forgery.optional import lazy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

transformers = lazy("transformers")

OWN_ENCODER = (
    "train a detector with an encoder of its own (train detector --preset, encoder kind "
    "'open_clip' or 'timm') for this host"
)


def vision_tower(host: nn.Module) -> PreTrainedModel:
    """The module of a transformers host that encodes images.

    Raises:
        ValueError: transformers finds no such module.
    """
    tower = host.get_encoder(modality="image")
    if tower is host or tower is host.base_model:
        raise ValueError(f"{type(host).__name__} has no vision tower of its own; {OWN_ENCODER}")
    return tower


def tower_blocks(tower: PreTrainedModel) -> nn.ModuleList:
    """The tower's transformer blocks, in order.

    Raises:
        ValueError: The blocks cannot be found.
    """
    layers = getattr(tower.config, "num_hidden_layers", None)
    for module in tower.modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return module
    raise ValueError(f"{type(tower).__name__} has no list of {layers} blocks; {OWN_ENCODER}")


@contextmanager
def tapped(tower: PreTrainedModel, taps: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Collect the outputs of some blocks while this thread or task runs the tower once.

    Args:
        tower: Vision tower of the host.
        taps: Tapped blocks, counted from 1.

    Yields:
        Hidden state (B, T, C) of each tap, without a graph; filled while the tower runs.
    """
    states: dict[int, torch.Tensor] = {}

    def keep(tap: int):
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            if of_call(tower) is not states:
                return
            assert tap not in states, "the tower ran twice"
            states[tap] = (output[0] if isinstance(output, tuple) else output).detach()

        return hook

    blocks = tower_blocks(tower)
    # torch numbers hooks without a lock: those of two threads could get the same number.
    with lock_of(tower):
        handles = [blocks[tap - 1].register_forward_hook(keep(tap)) for tap in taps]
    try:
        with in_call(tower, states):
            yield states
    finally:
        with lock_of(tower):
            for handle in handles:
                handle.remove()


class HostEncoder(VisualEncoder):
    """A host's vision tower, frozen, in its own dtype; tokens before the patches are dropped.

    It is built without a tower; :meth:`adopt` sets one. Once the detector is attached to its host,
    the tower belongs to the host only, and this encoder merely arranges what is tapped from it.

    Args:
        config: Configuration of kind ``host``.

    Attributes:
        tower: The tower; None if it belongs to the host.
        probe: Output values of the right tower (:mod:`llava_forgery.kfd.checkpoint`).
    """

    frozen = True

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config.tower.mean, config.tower.std)
        self.config = config
        self.grid = config.image_size // config.tower.patch_size
        self.widths = (config.tower.width,) * len(config.taps)
        self.tower: PreTrainedModel | None = None
        self.probe: list[float] | None = None

    def adopt(self, tower: PreTrainedModel) -> None:
        """Take a tower, freeze it and put it into eval mode.

        Raises:
            ValueError: It differs from the one that the detector was trained on.
        """
        check_tower(tower, self.config)
        self.tower = tower.requires_grad_(False).eval()

    def borrow(self, tower: PreTrainedModel) -> AbstractContextManager[None]:
        """Context in which calls of this thread or task use the host's tower."""
        return in_call(self, tower)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, S, S) in [0, 1] to the host's ``pixel_values``."""
        return (images - self.mean) / self.std

    @torch.no_grad()
    def features(self, normalised: torch.Tensor) -> list[torch.Tensor]:
        borrowed = of_call(self)
        tower = self.tower if borrowed is None else borrowed
        if tower is None:
            raise RuntimeError(
                "this detector reads its host's vision tower: call the model that attach_forgery "
                "returned, or load the detector with with_tower=True"
            )
        with tapped(tower, self.config.taps) as states:
            tower(pixel_values=normalised.to(tower.dtype))
        return self.arrange(states)

    def arrange(self, states: dict[int, torch.Tensor]) -> list[torch.Tensor]:
        """Hidden states (B, T, C) of the taps to grids (B, C, h, w).

        Raises:
            ValueError: T does not match one square image, with or without a class token.
        """
        grids = []
        for tap in self.config.taps:
            extra = states[tap].shape[1] - self.grid**2
            if extra not in (0, 1):
                raise ValueError(
                    f"the host's tower gave {states[tap].shape[1]} tokens, expected "
                    f"{self.grid**2} patches of one image of {self.config.image_size} pixels and "
                    "at most a class token"
                )
            patches = states[tap][:, extra:].transpose(1, 2)
            grids.append(patches.unflatten(2, (self.grid, self.grid)))
        return grids


def check_tower(tower: PreTrainedModel, config: EncoderConfig) -> None:
    """Compare a tower with the one that a detector was trained on.

    Raises:
        ValueError: They differ; the message names the field and both values.
    """
    found = {
        "model_type": tower.config.model_type,
        "width": getattr(tower.config, "hidden_size", None),
        "layers": getattr(tower.config, "num_hidden_layers", None),
        "image_size": getattr(tower.config, "image_size", None),
        "patch_size": getattr(tower.config, "patch_size", None),
    }
    wanted = {name: getattr(config.tower, name) for name in found if name != "image_size"}
    wanted["image_size"] = config.image_size
    for name, want in wanted.items():
        have = found[name]
        if have not in (want, [want, want], (want, want)):
            raise ValueError(
                f"the detector was trained on a vision tower with {name} {want}, this host's has "
                f"{have}: give the host it was trained with ({config.name!r}), or train a detector "
                "for this one (train detector --base-model)"
            )


def check_interface(host: PreTrainedModel) -> None:
    """Check that a host accepts finished image features and makes them from ``pixel_values`` only.

    Raises:
        ValueError: It does not, so one encoding cannot serve host and detector.
    """
    name = type(host).__name__
    if "mm_encoder_outputs" not in inspect.signature(host.forward).parameters:
        raise ValueError(
            f"{name} of transformers {transformers.__version__} does not accept finished image "
            f"features (no host does before 5.18); {OWN_ENCODER}"
        )
    needed = [
        parameter.name
        for parameter in inspect.signature(host.base_model.get_image_features).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    if needed != ["pixel_values"]:
        raise ValueError(
            f"{name} makes its image features from {', '.join(needed)}, not from pixel_values "
            f"only, so its tower cannot be shared; {OWN_ENCODER}"
        )


def check_processor(image_processor: Any, config: EncoderConfig, host: str) -> None:
    """Check that the host sees a square image as the detector does: whole, once, normalised.

    Raises:
        ValueError: It does not; the message says how they differ.
    """
    side = config.image_size
    row = np.arange(side)
    # Neighbouring pixels differ, so that a resized or shifted picture is noticed.
    picture = (37 * row[None, :, None] + 91 * row[:, None, None] + 53 * np.arange(3)) % 256
    picture = picture.astype(np.uint8)
    values = image_processor(images=[Image.fromarray(picture)], return_tensors="pt")
    shape = tuple(values["pixel_values"].shape)
    if shape != (1, 3, side, side):
        raise ValueError(
            f"{host} turns one image of {side} pixels into pixel_values of shape {shape}, expected "
            f"{(1, 3, side, side)}: it cuts images into tiles or takes them at their native size, "
            f"so its tower cannot be shared; {OWN_ENCODER}"
        )
    tower = config.tower
    expected = (picture / 255 - np.float64(tower.mean)) / np.float64(tower.std)
    difference = np.abs(values["pixel_values"][0].permute(1, 2, 0).double().numpy() - expected)
    # One step of 256 grey values; libraries round differently within it.
    if difference.max() > 1.01 / 255 / min(tower.std):
        raise ValueError(
            f"{host} does not pass a square image of {side} pixels to its tower with mean "
            f"{tower.mean} and std {tower.std} (pixels differ by up to {difference.max():.2g}): "
            f"the detector would see a different picture than the host; {OWN_ENCODER}"
        )


@quiet()
def load_tower(host: str) -> PreTrainedModel:
    """Only the vision tower of a host, in the dtype of its checkpoint.

    Args:
        host: Folder or hub name.

    Raises:
        FileNotFoundError: transformers finds no such host.
        ValueError: The tower cannot be shared with the host, or the checkpoint does not hold all of
            it.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(host, trust_remote_code=False)
        # Without weights, to find the tower's class and name.
        with torch.device("meta"):
            skeleton = transformers.AutoModelForImageTextToText.from_config(
                config, trust_remote_code=False
            )
        check_interface(skeleton)
        skeleton_tower = vision_tower(skeleton)
        path = next(name for name, part in skeleton.named_modules() if part is skeleton_tower)
        name = re.escape(path.rsplit(".", 1)[-1])
        tower, report = type(skeleton_tower).from_pretrained(
            host,
            config=skeleton_tower.config,
            # Names in checkpoints of CLIP and SigLIP towers have one level more than the modules.
            key_mapping={rf"^(?:.*\.)?{name}\.(?:vision_model\.)?": ""},
            output_loading_info=True,
            dtype="auto",
        )
    except OSError as error:
        raise FileNotFoundError(
            f"the vision tower of {host!r} could not be loaded ({str(error).splitlines()[0]}); "
            "give the host's folder or hub name (--base-model)"
        ) from error
    lacking = [*report["missing_keys"], *report["mismatched_keys"]]
    if lacking:
        raise ValueError(
            f"the checkpoint of {host!r} does not hold its whole vision tower under the names of "
            f"{type(tower).__name__}: {len(lacking)} tensors are missing or differ in shape, such "
            f"as {lacking[0]}; {OWN_ENCODER}"
        )
    return tower
