"""Where E_forgery stands: at placeholders that the prompt holds, or always behind each image.

With ``always`` a prompt that shows images and holds no placeholder gets them from the model itself,
behind the last token of each image, so that programs which know nothing of the skill use it. With
``placeholders`` such a prompt stays the host's own, and the model says once that the skill was not
used. Adapters without the key are of before it, and mean ``placeholders``.
"""

from dataclasses import dataclass

import torch

ALWAYS, PLACEHOLDERS = "always", "placeholders"
PLACEMENTS = (ALWAYS, PLACEHOLDERS)
# What the detector is shown of a picture that a program gives without forgery_images.
FACE, WHOLE = "face", "none"
CROPS = (FACE, WHOLE)


def check_placement(placement: str) -> str:
    """The placement as given.

    Raises:
        ValueError: It is none of ``PLACEMENTS``.
    """
    if placement not in PLACEMENTS:
        raise ValueError(f"placement must be {' or '.join(PLACEMENTS)}, got {placement!r}")
    return placement


def check_crop(crop: str) -> str:
    """The crop as given.

    Raises:
        ValueError: It is none of ``CROPS``.
    """
    if crop not in CROPS:
        raise ValueError(f"crop must be {' or '.join(CROPS)}, got {crop!r}")
    return crop


@dataclass(frozen=True)
class Expansion:
    """Where the tokens of a batch (B, T) lie once placeholders stand behind its images."""

    places: torch.Tensor
    """(B, T): of each token."""
    inserted: torch.Tensor
    """(B, T'): whether a placeholder was put there."""

    @classmethod
    def behind(cls, ends: torch.Tensor, count: int, left: bool) -> "Expansion":
        """Put placeholders behind tokens.

        Args:
            ends: (B, T): last tokens of images.
            count: Placeholders behind each.
            left: Whether rows with fewer images than others are padded in front, else behind.
        """
        marks = ends.long()
        more = count * marks.sum(dim=1)
        longest = int(more.max())
        # What stands before a token moves it, the placeholders behind itself do not.
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
        """What has one value a token, (B, T), as (B, T').

        Args:
            tensor: The values.
            padding: Of the places that belong to no token.
            placeholder: Of the placeholders.
        """
        moved = tensor.new_full(self.inserted.shape, padding)
        moved.scatter_(1, self.places.to(tensor.device), tensor)
        return moved.masked_fill(self.inserted.to(tensor.device), placeholder)

    def mask(self, known: torch.Tensor | None) -> torch.Tensor | None:
        """The attention mask (B, T'); None where none was known and no row is padded now.

        Args:
            known: (B, T), 0 at padding.

        Raises:
            ValueError: It has another shape, as masks that were drawn out by hand have.
        """
        if known is None:
            if self.inserted.shape[1] == self.places.shape[1] + int(self.inserted.sum(1).min()):
                return None
            known = torch.ones_like(self.places)
        if known.shape != self.places.shape:
            raise ValueError(
                f"attention_mask has the shape {tuple(known.shape)}, expected "
                f"{tuple(self.places.shape)}: forgery embeddings are put behind the images, which "
                "moves the other tokens; write the placeholders into the prompt to give another"
            )
        return self.move(known, 0, 1)


def is_padded_left(mask: torch.Tensor | None, otherwise: bool) -> bool:
    """Whether a batch is padded in front, by its attention mask (B, T).

    Args:
        mask: 0 at padding.
        otherwise: What is said of one without padding.
    """
    if mask is None or bool(mask.all()):
        return otherwise
    return not bool(mask[:, 0].all())
