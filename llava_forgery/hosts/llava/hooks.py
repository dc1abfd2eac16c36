"""E_forgery in the prompts of the ``llava`` package's models.

Their text is embedded in pieces around the images, sample by sample, so neither the shape nor the
order of the embedding's inputs says which sample they belong to. Each placeholder therefore gets a
unique number before the model is called, and the hooks write the row of that number, whatever piece
it is in.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from llava_forgery.call_state import in_call, of_call
from llava_forgery.hosts.placeholder import EmbeddingHooks

# As in llava.constants.
IMAGE_TOKEN_INDEX = -200
# Outside the vocabulary, like LLaVA's own, so that tokenizer and embedding are unchanged and
# decoding cannot emit it.
FORGERY_TOKEN_INDEX = -201
# Placeholder j is FIRST - j while the model runs.
FIRST = -1000


class NumberedHooks(EmbeddingHooks):
    """Hooks with a separate row for each placeholder, for one call; :meth:`use` sets the rows.

    Other threads may call the model meanwhile, with their own hooks on the same embedding.
    """

    def number(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Ids (B, T) with the placeholders numbered, row by row."""
        places = input_ids == self.token_id
        numbers = torch.arange(int(places.sum()), device=input_ids.device)
        return input_ids.masked_scatter(places, (FIRST - numbers).to(input_ids.dtype))

    def samples(self) -> tuple[torch.Tensor, ...]:
        """The rows of each sample, (n, C) each."""
        return self._rows.split(self._counts)

    @contextmanager
    def use(self, rows: torch.Tensor, counts: Sequence[int]) -> Iterator[None]:
        """Context that sets the rows of all placeholders of a batch.

        Args:
            rows: (N, C), in the order of :meth:`number`.
            counts: Number of placeholders of each sample; they sum to N.

        Raises:
            ValueError: On exit, if some did not reach the embedding.
        """
        self._rows, self._counts = rows, list(counts)
        self._seen = torch.zeros(len(rows), dtype=torch.bool)
        with in_call(self, True):
            yield
        if not bool(self._seen.all()):
            raise ValueError(
                f"{int(self._seen.sum())} of {len(rows)} forgery placeholders reached the "
                "language model; the others were masked by attention_mask or cut off"
            )

    def _before(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple | None:
        return super()._before(module, inputs) if of_call(self) else None

    def _find(self, ids: torch.Tensor) -> torch.Tensor:
        return (ids <= FIRST) | (ids == self.token_id)

    def _check(self, ids: torch.Tensor) -> None:
        self._index = FIRST - ids[self._find(ids)].cpu()

    def _write(self, output: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        self._seen[self._index] = True
        rows = self._rows[self._index.to(self._rows.device)].to(output.device, output.dtype)
        return output.masked_scatter(places[..., None], rows)
