"""Prompts of programs that know nothing of the skill: where their images end, and what the detector
can see of them.

A processor writes an image as one run of image tokens, or, in tiles, as several with marks between.
What is known of each family stands in :mod:`llava_forgery.hosts.families`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from llava_forgery.hosts.families import HostFamily
from llava_forgery.hosts.pictures import picture_of
from llava_forgery.hosts.placeholder import count_placeholders
from llava_forgery.hosts.placement import Expansion, is_padded_left
from llava_forgery.hosts.transformers.processors import PLACEHOLDER_VALUES, TOKEN_PAD_VALUES


class ImageTokens:
    """Finds the images of a family's prompts.

    Args:
        family: Of the host.
        config: The host's, which names its image token.
        tokenizer: Its tokenizer.

    Raises:
        ValueError: The configuration names none.
    """

    def __init__(
        self, family: HostFamily, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        found = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
        image_id = next((value for value in found if value is not None), None)
        if image_id is None:
            raise ValueError(
                f"the configuration of this {family.name} host names neither image_token_id nor "
                "image_token_index, so that its images cannot be found in a prompt"
            )
        self.family, self.image_id = family, image_id
        closing = family.image_end.format(bos=tokenizer.bos_token or "")
        self._closing: list[int] = tokenizer(closing, add_special_tokens=False)["input_ids"]
        tile = family.last_tile
        self._last_tile = tokenizer.convert_tokens_to_ids(tile) if tile else None

    def ends(self, input_ids: torch.Tensor, images: int | None = None) -> torch.Tensor:
        """Where each image ends: at its last token, or at what closes it behind.

        Args:
            input_ids: (B, T), images expanded.
            images: How many the batch shows, where that is known.

        Returns:
            (B, T) bool.

        Raises:
            ValueError: Images stand side by side and cannot be told apart.
        """
        inside = input_ids == self.image_id
        last = inside & ~F.pad(inside[:, 1:], (0, 1))
        if self._last_tile is not None:
            # A run belongs to the tile whose mark stands before its first token.
            opened = F.pad(input_ids[:, :-1] == self._last_tile, (1, 0))
            first = inside & ~F.pad(inside[:, :-1], (1, 0))
            places = torch.arange(input_ids.shape[1], device=input_ids.device)
            start = torch.where(first, places, 0).cummax(dim=1).values
            last &= opened.gather(1, start)
        found = int(last.sum())
        if images is not None and found != images:
            last = self._split(inside, found, images)
        moving = last
        for token in self._closing:
            moving = moving & F.pad(input_ids[:, 1:] == token, (0, 1))
            behind = F.pad(moving[:, :-1], (1, 0))
            last, moving = (last & ~moving) | behind, behind
        return last

    def _split(self, inside: torch.Tensor, found: int, images: int) -> torch.Tensor:
        """Ends where images of equal numbers of tokens stand side by side."""
        total = int(inside.sum())
        size = total // images
        number = inside.long().cumsum(dim=1)
        ends = inside & (number % max(size, 1) == 0)
        alike = self.family.pixels == "squares" and size and total == size * images
        if not alike or bool((inside.sum(dim=1) % size).any()) or int(ends.sum()) != images:
            raise ValueError(
                f"the prompts hold {found} runs of image tokens and show {images} images: where "
                "one ends and the next begins cannot be told; put a line break between them, or "
                "write the placeholders into the prompt"
            )
        return ends


def ends_without_placeholders(
    input_ids: torch.Tensor, tokens: ImageTokens, placeholder: int, inputs: Mapping[str, Any]
) -> torch.Tensor | None:
    """(B, T): where images end in rows that hold no placeholder; None where there are none.

    Args:
        input_ids: (B, T).
        tokens: Of the host's images.
        placeholder: Its id.
        inputs: Of the call, beside the ids.

    Raises:
        ValueError: As :meth:`ImageTokens.ends`.
    """
    # One token alone is written after a prompt, on its cache.
    if input_ids.shape[1] == 1:
        return None
    plain = ~(input_ids == placeholder).any(dim=1, keepdim=True)
    if not bool(((input_ids == tokens.image_id) & plain).any()):
        return None
    return tokens.ends(input_ids, count_images(tokens.family, inputs)) & plain


class PlacedPrompts:
    """A call's prompts with placeholders behind those images that had none.

    Args:
        input_ids: (B, T), as given.
        ends: (B, T), from :func:`ends_without_placeholders`.
        inputs: Of the call, beside the ids.
        count: Placeholders behind each image.
        placeholder: Their id.
        pad: Fills rows that others outgrow.
        left: Whether prompts are padded in front where nothing else tells.

    Attributes:
        given: The ids as given.
        input_ids: (B, T').
        inputs: What has one value a token, moved with them.
        images_per_sample: Images of each row.

    Raises:
        ValueError: ``position_ids`` are given, or a mask that is not (B, T).
    """

    def __init__(
        self,
        input_ids: torch.Tensor,
        ends: torch.Tensor,
        inputs: Mapping[str, Any],
        count: int,
        placeholder: int,
        pad: int,
        left: bool,
    ) -> None:
        if inputs.get("position_ids") is not None:
            raise ValueError(
                "position_ids are given, but forgery embeddings are put behind the images, which "
                "moves the other tokens; leave them out, or write the placeholders into the prompt"
            )
        mask = inputs.get("attention_mask")
        moved = Expansion.behind(ends, count, is_padded_left(mask, left))
        self.given, self.input_ids = input_ids, moved.move(input_ids, pad, placeholder)
        self.inputs = {
            name: moved.move(value, TOKEN_PAD_VALUES[name], PLACEHOLDER_VALUES[name])
            if name in TOKEN_PAD_VALUES and name != "attention_mask" and value is not None
            else value
            for name, value in inputs.items()
        }
        if (mask := moved.mask(mask)) is not None:
            self.inputs["attention_mask"] = mask
        found = count_placeholders(self.input_ids, placeholder)
        self.images_per_sample = [number // count for number in found]


def begin_with(output: Any, input_ids: torch.Tensor, length: int) -> Any:
    """What ``generate`` gave, with the prompts as the caller knows them.

    Args:
        output: Sequences (k * B, T' + new), or transformers' output that holds them.
        input_ids: (B, T), as given.
        length: T', of the prompts that the host was given.
    """
    plain = isinstance(output, torch.Tensor)
    sequences = output if plain else output.sequences
    repeats = len(sequences) // len(input_ids)
    prompts = input_ids.repeat_interleave(repeats, 0).to(sequences.device)
    sequences = torch.cat([prompts, sequences[:, length:]], dim=1)
    if plain:
        return sequences
    output.sequences = sequences
    return output


def count_images(family: HostFamily, inputs: Mapping[str, Any]) -> int | None:
    """How many images a call shows; None where its tensors do not say."""
    if (grid := inputs.get("image_grid_thw")) is not None:
        return len(grid)
    pixels = inputs.get("pixel_values")
    known = family.pixels in ("squares", "first tile") and pixels is not None
    return len(pixels) if known else None


def pictures_of(
    inputs: Mapping[str, Any],
    input_ids: torch.Tensor,
    tokens: ImageTokens,
    image_processor: Any,
) -> list[np.ndarray]:
    """The pictures of a batch, as far as the host's tensors show them.

    It is second best: the processor has resized, and may have cropped or squeezed, the photographs.

    Args:
        inputs: What the processor made of the images: ``pixel_values`` and what goes with them.
        input_ids: (B, T), before placeholders were put in.
        tokens: Of the host's images.
        image_processor: The host's, for mean and deviation.

    Returns:
        (H, W, 3) uint8 RGB for each image, in order.

    Raises:
        ValueError: There are no pixels, or the family's are not understood.
    """
    family, pixels = tokens.family, inputs.get("pixel_values")
    if pixels is None:
        raise ValueError("the prompts show images, but no pixel_values are given")
    colours = (image_processor.image_mean, image_processor.image_std)
    if family.pixels == "patches":
        found = _from_patches(pixels, inputs["image_grid_thw"], image_processor)
    elif family.pixels == "first tile":
        sizes = inputs["image_sizes"].tolist()
        # OneVision squeezes the only image of a prompt, and pads each of several.
        together = inputs.get("batch_num_images", torch.ones(len(sizes)).int()).tolist()
        shapes = ["anyres" if n == 1 else "pad" for n in together for _ in range(n)]
        return [
            picture_of(tiles[0], *colours, shape, (width, height))
            for tiles, shape, (height, width) in zip(pixels, shapes, sizes, strict=True)
        ]
    elif family.pixels == "last tile":
        found = _last_tiles(pixels, inputs.get("pixel_attention_mask"), input_ids, tokens)
    else:
        found = list(pixels)
    if any(picture.ndim != 3 or len(picture) != 3 for picture in found):
        raise ValueError(
            f"pixel_values of {family.name} hosts, {tuple(pixels.shape)}, are not understood as "
            "pictures; give forgery_images"
        )
    return [picture_of(picture, *colours) for picture in found]


def _from_patches(
    patches: torch.Tensor, grids: torch.Tensor, image_processor: Any
) -> list[torch.Tensor]:
    """Qwen's patches (N, 3 * frames * side * side), windows of merged ones in a row."""
    side, merge = image_processor.patch_size, image_processor.merge_size
    frames = image_processor.temporal_patch_size
    counts = [int(t * h * w) for t, h, w in grids.tolist()]
    pictures = []
    for part, (_, high, wide) in zip(patches.split(counts), grids.tolist(), strict=True):
        whole = part[: high * wide].view(
            high // merge, wide // merge, merge, merge, 3, frames, side, side
        )[..., 0, :, :]
        pictures.append(whole.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, high * side, wide * side))
    return pictures


def _last_tiles(
    pixels: torch.Tensor,
    mask: torch.Tensor | None,
    input_ids: torch.Tensor,
    tokens: ImageTokens,
) -> list[torch.Tensor]:
    """Of each image the last tile, which shows the whole; its padding is cut off."""
    inside, ends = input_ids == tokens.image_id, tokens.ends(input_ids)
    seen = inside.long().cumsum(dim=1)
    if pixels.ndim == 4:
        # The tiles of all prompts in a row.
        each = int(inside.sum()) // len(pixels)
        before = seen[:, -1].cumsum(dim=0) - seen[:, -1]
        return [pixels[i] for i in ((seen + before[:, None])[ends] // each - 1).tolist()]
    # Each run of tokens is a tile.
    each = int(inside.sum()) // int((inside & ~F.pad(inside[:, 1:], (0, 1))).sum())
    pictures = []
    for row, tile in zip(
        ends.nonzero()[:, 0].tolist(), (seen[ends] // each - 1).tolist(), strict=True
    ):
        picture = pixels[row, tile]
        if mask is not None:
            shown = mask[row, tile].bool()
            picture = picture[:, shown.any(dim=1)][:, :, shown.any(dim=0)]
        pictures.append(picture)
    return pictures
