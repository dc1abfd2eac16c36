"""Placeholder tokens and the hooks that put vectors in their places.

The prompt holds placeholder tokens for each sample; hooks on the host's input embedding replace
their rows by the given vectors. Nothing of the host is replaced, renamed or saved.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


def count_placeholders(input_ids: torch.Tensor, token_id: int) -> list[int]:
    """Number of placeholder tokens in each row of (B, T) ids."""
    return (input_ids == token_id).sum(dim=1).tolist()


class EmbeddingHooks(ABC):
    """Hooks on one embedding module that write other rows wherever a token's id stands.

    The id may lie outside the host's vocabulary: it never reaches the embedding.

    Args:
        embedding: An input embedding.
        token_id: The token's id.
    """

    def __init__(self, embedding: nn.Module, token_id: int) -> None:
        self.token_id = token_id
        self._places: torch.Tensor | None = None
        self._handles = [
            embedding.register_forward_pre_hook(self._before),
            embedding.register_forward_hook(self._after),
        ]

    def remove(self) -> None:
        """Take the hooks off; the embedding is then as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _find(self, ids: torch.Tensor) -> torch.Tensor:
        """Where the token stands among the ids."""
        return ids == self.token_id

    @abstractmethod
    def _check(self, ids: torch.Tensor) -> None:
        """Refuse ids (B, T) that hold the token and have no rows to write."""

    @abstractmethod
    def _write(self, output: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """The embedding's output (B, T, C) with the rows at the places (B, T) replaced."""

    def _before(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple | None:
        ids = inputs[0]
        places = self._find(ids)
        self._places = places if bool(places.any()) else None
        if self._places is None:
            return None
        self._check(ids)
        # Any id inside the vocabulary will do: the row is replaced afterwards.
        return (ids.masked_fill(places, 0), *inputs[1:])

    def _after(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor | None:
        if self._places is None:
            return None
        places, self._places = self._places, None
        return self._write(output, places.to(output.device))


class PlaceholderHooks(EmbeddingHooks):
    """Each sample's own vectors at its placeholders; :meth:`use` sets them for the calls inside."""

    _vectors: tuple[torch.Tensor, ...] | None = None

    @contextmanager
    def use(self, vectors: torch.Tensor | Sequence[torch.Tensor]) -> Iterator[None]:
        """Set the vectors.

        Args:
            vectors: For each sample of the batch its (n, C) vectors, in the order of its
                placeholders; n may differ between samples. Calls with k * B rows (beams, several
                answers for each prompt) repeat each sample's vectors k times.
        """
        self._vectors = tuple(vectors)
        try:
            yield
        finally:
            self._vectors = self._places = None

    def _check(self, ids: torch.Tensor) -> None:
        if self._vectors is None:
            raise RuntimeError(
                "the prompt holds forgery placeholders, but the host was called directly; call "
                "the model that attach_forgery returned, with forgery_images"
            )
        rows, samples = len(ids), len(self._vectors)
        if rows % samples:
            raise ValueError(f"{rows} prompts cannot be shared out among {samples} samples")
        repeats = rows // samples
        expected = [len(sample) for sample in self._vectors for _ in range(repeats)]
        check_counts(ids, self.token_id, expected)

    def _write(self, output: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        repeats = len(places) // len(self._vectors)
        # Counts were compared row by row, so the flat order of the scatter cannot run over from
        # one sample into the next.
        rows = [sample for sample in self._vectors for _ in range(repeats)]
        vectors = torch.cat(rows).to(output.device, output.dtype)
        return output.masked_scatter(places[..., None], vectors)


def check_counts(input_ids: torch.Tensor, token_id: int, expected: list[int]) -> None:
    """Compare placeholders and vectors for each sample.

    Raises:
        ValueError: They differ; the message names the sample and both numbers.
    """
    found = count_placeholders(input_ids, token_id)
    for sample, (have, want) in enumerate(zip(found, expected, strict=True)):
        if have != want:
            raise ValueError(
                f"sample {sample} has {have} forgery placeholders in its prompt, but {want} "
                "forgery embeddings; render the prompt with "
                "llava_forgery.hosts.transformers.prompts, and do not cut it"
            )
