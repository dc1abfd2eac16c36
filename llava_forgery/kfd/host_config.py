"""Configuration of a detector on a host's vision tower, read from the host without its weights.

Only towers that see an image as one square of a fixed size are supported: with them the detector's
grid of patches covers the image. Hosts that cut an image into tiles or take it at its native size
need a detector with an encoder of its own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
from transformers import AutoConfig, AutoImageProcessor

from llava_forgery.files import read_json
from llava_forgery.kfd.config import EncoderConfig, HostTower, KFDConfig
from llava_forgery.kfd.host_tower import OWN_ENCODER, check_processor
from llava_forgery.noise import quiet

# Width of the text features if the text encoder is trained with the detector.
TEXT_WIDTH = 256
# Their classifier halves the maps three times.
LITE_GRID = 8


@quiet()
def host_config(
    host: str,
    *,
    taps: Sequence[int] | None = None,
    text_model: str | None = None,
    text_weights: str | None = None,
    **changes: Any,
) -> KFDConfig:
    """The configuration of a detector on a host's vision tower; no weights are read.

    Args:
        host: Folder or hub name of a transformers image-text-to-text model.
        taps: Tapped blocks, counted from 1; by default spread like the paper's 16, 24, 32 of 32.
        text_model: See ``EncoderConfig.text_model``.
        text_weights: open_clip's weights tag of ``text_model``, or a path.
        changes: Other fields of :class:`KFDConfig`.

    Raises:
        FileNotFoundError: transformers finds no such host.
        ValueError: Its tower does not see an image as one square of a fixed size, or there are no
            such blocks.
    """
    try:
        config = AutoConfig.from_pretrained(host, trust_remote_code=False)
        processor = AutoImageProcessor.from_pretrained(host, trust_remote_code=False)
    except OSError as error:
        raise FileNotFoundError(
            f"the host {host!r} could not be read ({str(error).splitlines()[0]}); give its folder "
            "or hub name"
        ) from error
    vision = getattr(config, "vision_config", None)
    side = _square(vision, "image_size", host)
    tower = HostTower(
        model_type=vision.model_type,
        width=_number(vision, "hidden_size", host),
        layers=_number(vision, "num_hidden_layers", host),
        patch_size=_square(vision, "patch_size", host),
        mean=tuple(processor.image_mean) if processor.do_normalize else (0.0, 0.0, 0.0),
        std=tuple(processor.image_std) if processor.do_normalize else (1.0, 1.0, 1.0),
    )
    encoder = EncoderConfig(
        kind="host",
        name=host,
        pretrained=text_weights,
        taps=tuple(taps) if taps is not None else spread_taps(tower.layers),
        text_width=TEXT_WIDTH if text_model is None else _text_width(text_model),
        image_size=side,
        text_model=text_model,
        tower=tower,
    )
    check_processor(processor, encoder, host)
    # A text encoder that is trained from scratch learns slowly at CLIP's temperature.
    changes.setdefault("temperature", 10.0 if text_model is None else 100.0)
    detector = KFDConfig(encoder=encoder, **changes)
    grid = side // tower.patch_size
    if detector.heads == "lite" and grid < LITE_GRID:
        raise ValueError(
            f"the tower of {host} has {grid} x {grid} patches, the 'lite' heads need at least "
            f"{LITE_GRID} x {LITE_GRID}; use heads='paper', which enlarge the maps"
        )
    return detector


def spread_taps(layers: int) -> tuple[int, ...]:
    """Half of the blocks, three quarters and all, as 16, 24, 32 of 32 (LVLM-DFD, section 4.1)."""
    return tuple(sorted({max(1, layers // 2), max(1, 3 * layers // 4), layers}))


def parse_taps(text: str | None) -> tuple[int, ...] | None:
    """Parse numbers separated by commas, such as ``12,18,24``; None stays None.

    Raises:
        ValueError: The text is not a list of numbers.
    """
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"taps must be numbers such as 12,18,24, got {text!r}") from None


def _text_width(text_model: str) -> int:
    if text_model.startswith("local-dir:"):
        file = Path(text_model.removeprefix("local-dir:")) / "open_clip_config.json"
        return read_json(file)["model_cfg"]["embed_dim"]
    known = open_clip.get_model_config(text_model)
    if known is None:
        raise ValueError(
            f"open_clip has no model {text_model!r}; open_clip.list_models() gives the names"
        )
    return known["embed_dim"]


def _number(vision: Any, name: str, host: str) -> int:
    value = getattr(vision, name, None)
    if not isinstance(value, int):
        raise ValueError(
            f"the vision configuration of {host} has no {name} (got {value!r}): it is not a tower "
            f"for square images of a fixed size; {OWN_ENCODER}"
        )
    return value


def _square(vision: Any, name: str, host: str) -> int:
    """A size that may be given as one number or as two equal ones."""
    value = getattr(vision, name, None)
    if isinstance(value, (list, tuple)) and len(set(value)) == 1:
        return value[0]
    return _number(vision, name, host)
