"""Placeholder tokens and the hooks that replace them by vectors.

The prompt holds placeholder tokens for each sample; hooks on the host's input embedding replace
their rows by the given vectors. No part of the host is replaced, renamed or saved.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from threading import get_ident
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from llava_forgery.call_state import in_call, lock_of, of_call

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def input_embedding(host: PreTrainedModel) -> nn.Embedding:
    """The language model's input embedding, where the hooks hang."""
    return cast(nn.Embedding, host.get_input_embeddings())


def count_placeholders(input_ids: torch.Tensor, token_id: int) -> list[int]:
    """Number of placeholder tokens in each row of (B, T) ids."""
    return (input_ids == token_id).sum(dim=1).tolist()


class EmbeddingHooks(ABC):
    """Hooks on one embedding module that replace the rows of a token.

    Its id may be outside the host's vocabulary, as it never reaches the embedding.

    Args:
        embedding: Input embedding.
        token_id: Id of the token.
    """

    def __init__(self, embedding: nn.Module, token_id: int) -> None:
        self.token_id = token_id
        self._embedding = embedding
        # By thread, from an embedding's first hook to its second.
        self._places: dict[int, torch.Tensor] = {}
        # torch numbers hooks without a lock: those of two threads could get the same number.
        with lock_of(embedding):
            self._handles = [
                embedding.register_forward_pre_hook(self._before),
                embedding.register_forward_hook(self._after),
            ]

    def remove(self) -> None:
        """Remove the hooks, which restores the embedding."""
        with lock_of(self._embedding):
            for handle in self._handles:
                handle.remove()
        self._handles = []

    def _find(self, ids: torch.Tensor) -> torch.Tensor:
        """Positions of the token among the ids."""
        return ids == self.token_id

    @abstractmethod
    def _check(self, ids: torch.Tensor) -> None:
        """Refuse ids (B, T) that hold the token but have no rows to write."""

    @abstractmethod
    def _write(self, output: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """The embedding's output (B, T, C) with the rows at the places (B, T) replaced."""

    def _before(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple | None:
        ids = inputs[0]
        places = self._find(ids)
        # Left by an embedding that failed.
        self._places.pop(get_ident(), None)
        if not bool(places.any()):
            return None
        self._check(ids)
        self._places[get_ident()] = places
        # Any id inside the vocabulary works, as the row is replaced afterwards.
        return (ids.masked_fill(places, 0), *inputs[1:])

    def _after(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor | None:
        places = self._places.pop(get_ident(), None)
        return None if places is None else self._write(output, places.to(output.device))


class PlaceholderHooks(EmbeddingHooks):
    """Each sample's own vectors at its placeholders; :meth:`use` sets them for the calls inside."""

    def use(self, vectors: torch.Tensor | Sequence[torch.Tensor]) -> AbstractContextManager[None]:
        """Context that sets the vectors for calls of this thread or task.

        Args:
            vectors: Vectors (n, C) of each sample of the batch, in the order of its placeholders; n
                may differ between samples. Calls with k * B rows (beams, several answers for each
                prompt) repeat each sample's vectors k times.
        """
        return in_call(self, tuple(vectors))

    def _check(self, ids: torch.Tensor) -> None:
        vectors = of_call(self)
        if vectors is None:
            raise RuntimeError(
                "the prompt holds forgery placeholders, but the host was called directly; call "
                "the model that attach_forgery returned, with forgery_images"
            )
        rows, samples = len(ids), len(vectors)
        if rows % samples:
            raise ValueError(f"{rows} prompts cannot be distributed over {samples} samples")
        repeats = rows // samples
        expected = [len(sample) for sample in vectors for _ in range(repeats)]
        check_counts(ids, self.token_id, expected)

    def _write(self, output: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        samples = of_call(self)
        repeats = len(places) // len(samples)
        # Counts were compared row by row, so the flat scatter cannot run over from one sample into
        # the next.
        rows = [sample for sample in samples for _ in range(repeats)]
        vectors = torch.cat(rows).to(output.device, output.dtype)
        return output.masked_scatter(places[..., None], vectors)


def check_counts(input_ids: torch.Tensor, token_id: int, expected: list[int]) -> None:
    """Compare the numbers of placeholders and vectors of each sample.

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


def images_of_samples(
    input_ids: torch.Tensor,
    token_id: int,
    n_forgery: int,
    images: int,
    images_per_sample: Sequence[int] | torch.Tensor | None = None,
) -> list[int]:
    """How many images each sample shows, compared with the images and the placeholders.

    Args:
        input_ids: (B, T).
        token_id: Of the placeholder.
        n_forgery: n_f, placeholders for each image.
        images: How many the B samples show in all.
        images_per_sample: Of each; by default as many as its placeholders say.

    Raises:
        ValueError: They do not fit; the message has the numbers.
    """
    samples = len(input_ids)
    if images_per_sample is None:
        found = count_placeholders(input_ids, token_id)
        # What is no multiple is told below.
        counts = [n // n_forgery if n and not n % n_forgery else 1 for n in found]
    else:
        counts = [int(n) for n in images_per_sample]
    if len(counts) != samples or any(n < 0 for n in counts):
        raise ValueError(
            f"images_per_sample must hold a number of at least 0 for each of the {samples} "
            f"prompts, got {counts}"
        )
    left = images
    for sample, count in enumerate(counts):
        if left < count:
            raise ValueError(
                f"sample {sample} has {count} images by images_per_sample (else by its "
                f"placeholders), but only {left} of the {images} forgery images are left for it"
            )
        left -= count
    if left:
        raise ValueError(
            f"{samples} prompts have {sum(counts)} images by images_per_sample (else by their "
            f"placeholders), but there are {images} forgery images"
        )
    check_counts(input_ids, token_id, [n_forgery * count for count in counts])
    return counts


class PromptView:
    """A streamer of transformers that is shown the prompt as its caller knows it.

    ``generate`` gives a streamer the prompt first, and then the tokens as they are written.

    Args:
        streamer: The caller's.
        prompt: (B, T) ids of the prompt that it gets.
    """

    def __init__(self, streamer: Any, prompt: torch.Tensor) -> None:
        self._streamer = streamer
        self._prompt: torch.Tensor | None = prompt

    def put(self, value: torch.Tensor) -> None:
        """Hand the prompt, then tokens on."""
        shown, self._prompt = self._prompt, None
        self._streamer.put(value if shown is None else shown.cpu())

    def end(self) -> None:
        """The last token was written."""
        self._streamer.end()


def without_placeholders(input_ids: torch.Tensor, token_id: int) -> torch.Tensor:
    """A prompt (1, T) without its placeholders; several (B, T) come back as they are."""
    return input_ids[:, input_ids[0] != token_id] if len(input_ids) == 1 else input_ids
