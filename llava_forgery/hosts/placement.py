"""Placement of E_forgery: at placeholders that the prompt holds, or always after each image.

With ``always`` the model itself adds placeholders after the last token of each image to prompts
that have none, so that programs unaware of the skill use it. With ``placeholders`` such a prompt is
left to the host, and the model warns once that the skill was not used. Older adapters do not have
the key, which means ``placeholders``.
"""

from dataclasses import dataclass

import torch

ALWAYS, PLACEHOLDERS = "always", "placeholders"
PLACEMENTS = (ALWAYS, PLACEHOLDERS)
# What the detector sees of a picture that a program gives without forgery_images.
FACE, WHOLE = "face", "none"
CROPS = (FACE, WHOLE)


def check_placement(placement: str) -> str:
    """Return the placement if it is valid.

    Raises:
        ValueError: It is not in ``PLACEMENTS``.
    """
    if placement not in PLACEMENTS:
        raise ValueError(f"placement must be {' or '.join(PLACEMENTS)}, got {placement!r}")
    return placement


def check_crop(crop: str) -> str:
    """Return the crop if it is valid.

    Raises:
        ValueError: It is not in ``CROPS``.
    """
    if crop not in CROPS:
        raise ValueError(f"crop must be {' or '.join(CROPS)}, got {crop!r}")
    return crop


@dataclass(frozen=True)
class Expansion:
    """Positions of the tokens of a batch (B, T) once placeholders are inserted after its images."""

    places: torch.Tensor
    """(B, T): new position of each token."""
    inserted: torch.Tensor
    """(B, T'): whether a placeholder was inserted there."""

    @classmethod
    def behind(cls, ends: torch.Tensor, count: int, left: bool) -> "Expansion":
        """Insert placeholders after tokens.

        Args:
            ends: (B, T): last tokens of images.
            count: Number of placeholders after each.
            left: Whether rows with fewer images than others are padded on the left.
        """
        marks = ends.long()
        more = count * marks.sum(dim=1)
        longest = int(more.max())
        # A token is moved by the placeholders before it, not by those after itself.
        places = torch.arange(ends.shape[1], device=ends.device) + count * (marks.cumsum(1) - marks)
        if left:
            places = places + (longest - more)[:, None]
        inserted = torch.zeros(
            len(ends), ends.shape[1] + longest, dtype=torch.bool, device=ends.device
        )
        rows, columns = ends.nonzero(as_tuple=True)
        first = places[rows, columns] + 1
        inserted[
            rows[:, None].expand(-1, count), first[:, None] + torch.arange(count).to(first)
        ] = True
        return cls(places, inserted)

    def move(self, tensor: torch.Tensor, padding: int, placeholder: int) -> torch.Tensor:
        """Values per token (B, T) as (B, T').

        Args:
            tensor: Values to move.
            padding: Value of positions that belong to no token.
            placeholder: Value of the placeholders.
        """
        moved = tensor.new_full(self.inserted.shape, padding)
        moved.scatter_(1, self.places.to(tensor.device), tensor)
        return moved.masked_fill(self.inserted.to(tensor.device), placeholder)

    def mask(self, known: torch.Tensor | None) -> torch.Tensor | None:
        """The attention mask (B, T'); None if there was none and no row is padded now.

        Args:
            known: (B, T), 0 at padding.

        Raises:
            ValueError: The shape differs, as for custom expanded masks.
        """
        if known is None:
            if self.inserted.shape[1] == self.places.shape[1] + int(self.inserted.sum(1).min()):
                return None
            known = torch.ones_like(self.places)
        if known.shape != self.places.shape:
            raise ValueError(
                f"attention_mask has the shape {tuple(known.shape)}, expected "
                f"{tuple(self.places.shape)}: forgery embeddings are inserted after the images, "
                "which moves the other tokens; write the placeholders into the prompt to use it"
            )
        return self.move(known, 0, 1)


def is_padded_left(mask: torch.Tensor | None, otherwise: bool) -> bool:
    """Whether a batch is padded on the left, by its attention mask (B, T).

    Args:
        mask: Attention mask, 0 at padding.
        otherwise: Return value for a batch without padding.
    """
    if mask is None or bool(mask.all()):
        return otherwise
    return not bool(mask[:, 0].all())
