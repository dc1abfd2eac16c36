"""The supported families of transformers, one record for each.

The mechanism is the same for all: hooks on the input embedding. A record holds the differences
found by the contract test (``tests/hosts/test_families.py``). Another family is added by one call
before ``attach_forgery``::

    register_family(HostFamily("mistral3", "Mistral 3"))
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedModel

from llava_forgery.call_state import lock_of


@dataclass(frozen=True)
class HostFamily:
    """Properties of a family that ``attach_forgery`` and dialogues need."""

    model_type: str
    """``config.model_type`` of its checkpoints."""
    name: str
    """Display name."""
    cache_mode: Literal["cache", "language_model", "recompute"] = "recompute"
    """How later turns of a dialogue are computed. ``cache``: the host's ``generate`` continues from
    the keys and values of previous turns, without pixels. ``language_model``: the same with the
    ``generate`` of the host's language model, if the host's own requires pixels. ``recompute``:
    everything is recomputed, which is always correct."""
    stateful_attributes: tuple[str, ...] = ()
    """Attributes of ``host.model`` that hold state of the last call by anyone. They are cleared
    before a turn on the cache, so that the host recomputes them from the whole prompt."""
    cached_turn_inputs: tuple[str, ...] = ()
    """Inputs besides those of the tokens that a turn on the cache still needs."""
    bidirectional_prefix: bool = False
    """Whether all tokens of the first prompt attend to each other in both directions: its keys and
    values can then only be reused as a whole."""
    projector: str = "multi_modal_projector"
    """The module between vision tower and language model, in the host's base model."""
    pixels: Literal["squares", "first tile", "last tile", "patches"] = "squares"
    """Content of ``pixel_values``: the whole image, or tiles of which the first or the last shows
    the whole image, or Qwen's patches."""
    image_end: str = ""
    """Text that its processor adds after the last token of an image, if any; ``{bos}`` stands for
    the token that begins texts."""
    last_tile: str = ""
    """Mark before the tile that shows the whole image, if each tile is a run of tokens."""
    notes: str = ""
    """Notes for users, for the table in docs/transformers.md."""

    def __post_init__(self) -> None:
        if not self.model_type or not self.name:
            raise ValueError(
                f"a family needs model_type and name, got {self.model_type!r} and {self.name!r}"
            )
        if self.cache_mode not in ("cache", "language_model", "recompute"):
            raise ValueError(
                "family.cache_mode must be 'cache', 'language_model' or 'recompute', got "
                f"{self.cache_mode!r}"
            )


# Qwen's positions depend on the grid of an image; the host keeps the offset of its last prompt.
_QWEN: dict[str, Any] = {
    "cache_mode": "cache",
    "stateful_attributes": ("rope_deltas",),
    "cached_turn_inputs": ("image_grid_thw",),
    "projector": "visual.merger",
    "pixels": "patches",
    "image_end": "<|vision_end|>",
}
_IDEFICS: dict[str, Any] = {
    "cache_mode": "cache",
    "projector": "connector",
    "pixels": "last tile",
    "image_end": "<fake_token_around_image>",
    "last_tile": "<global-img>",
}
_FAMILIES: dict[str, HostFamily] = {}


def register_family(family: HostFamily) -> None:
    """Register a family; doing so twice with the same record has no effect.

    Raises:
        ValueError: The model type is already registered with another record.
    """
    known = _FAMILIES.get(family.model_type, family)
    if known != family:
        raise ValueError(
            f"the model type {family.model_type!r} is already known, as {known}; got {family}"
        )
    _FAMILIES[family.model_type] = family


for _family in (
    HostFamily("llava", "LLaVA 1.5", "cache"),
    HostFamily("llava_next", "LLaVA-NeXT (1.6)", "cache", pixels="first tile"),
    HostFamily(
        "llava_onevision",
        "LLaVA-OneVision",
        "cache",
        pixels="first tile",
        notes="several images of a prompt are shown at base resolution, one in tiles",
    ),
    HostFamily("qwen2_vl", "Qwen2-VL", **_QWEN),
    HostFamily("qwen2_5_vl", "Qwen2.5-VL", **_QWEN),
    HostFamily("qwen3_vl", "Qwen3-VL", **_QWEN),
    HostFamily("internvl", "InternVL", "cache", pixels="last tile", image_end="</img>"),
    HostFamily("idefics3", "Idefics3", **_IDEFICS),
    HostFamily("smolvlm", "SmolVLM", notes="its processor needs `num2words`", **_IDEFICS),
    HostFamily("gemma3", "Gemma 3", "cache", image_end="<end_of_image>\n\n"),
    HostFamily(
        "paligemma",
        "PaliGemma",
        "cache",
        bidirectional_prefix=True,
        image_end="{bos}",
        notes="no chat template of its own; causal from the first answer on",
    ),
    HostFamily(
        "instructblip",
        "InstructBLIP",
        "language_model",
        projector="language_projection",
        image_end="{bos}",
        notes="no chat template of its own; the Q-Former reads the first question alone",
    ),
):
    register_family(_family)


def known_families() -> Iterator[HostFamily]:
    """All records, in the order of registration."""
    yield from _FAMILIES.values()


def family_of(host: PreTrainedModel) -> HostFamily:
    """The record of a host.

    An untested family is an error rather than a guess: most would run, but differences between
    families (masks, positions, turns that the cache allows) do not cause a crash.

    Raises:
        ValueError: The model type is unknown; the message lists the known ones, and the call that
            adds one.
    """
    model_type = host.config.model_type
    if model_type not in _FAMILIES:
        raise ValueError(
            f"hosts of the model type {model_type!r} are untested; known are "
            f"{', '.join(_FAMILIES)}. To use it anyway, call "
            "llava_forgery.hosts.families."
            f'register_family(HostFamily("{model_type}", "its name")) first'
        )
    return _FAMILIES[model_type]


def exclusive(host: PreTrainedModel) -> AbstractContextManager[Any]:
    """The context in which to call a host that threads share: its lock, or nothing.

    Threads take turns if a host keeps state of the current call: stateful families, rotary
    embeddings that depend on the prompt's length, weights that are fetched per layer, quantised
    layers, which complete themselves in their first pass, and compiled steps. All others are called
    concurrently.

    Args:
        host: Host of transformers or of the ``llava`` package, without peft's wrapper.
    """
    family = _FAMILIES.get(host.config.model_type)
    rope = getattr(host.config.get_text_config(), "rope_parameters", None) or {}
    # One for the model, or one for each kind of its layers.
    ropes = [values for values in (rope, *rope.values()) if isinstance(values, dict)]
    places = {str(place) for place in getattr(host, "hf_device_map", {}).values()}
    generation = getattr(host, "generation_config", None)
    alone = (
        bool(family and family.stateful_attributes)
        or any(values.get("rope_type") in ("dynamic", "longrope") for values in ropes)
        or "disk" in places
        or ("cpu" in places and len(places) > 1)
        or getattr(host, "hf_quantizer", None) is not None
        or getattr(generation, "cache_implementation", None) is not None
    )
    return lock_of(host) if alone else nullcontext()


def host_table() -> str:
    """The families as a Markdown table."""
    later = {
        "cache": "on the cache",
        "language_model": "on the cache, through the language model",
        "recompute": "recomputed",
    }
    lines = ["| family | `model_type` | later turns | notes |", "|---|---|---|---|"]
    for family in known_families():
        lines.append(
            f"| {family.name} | `{family.model_type}` | {later[family.cache_mode]} | "
            f"{family.notes} |".replace("|  |", "| |")
        )
    return "\n".join(lines) + "\n"
