"""In which order samples are drawn: anew in each epoch, the same again under the same seed."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """Orders that depend on seed and epoch alone, so that a resumed training goes on in them.

    Args:
        count: Samples.
        seed: Of the orders.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(self.draw(generator))

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer at the beginning of each epoch."""
        self.epoch = epoch

    def draw(self, generator: torch.Generator) -> list[int]:
        """One epoch's order of all indices."""
        return torch.randperm(self.count, generator=generator).tolist()


class AlternatingSampler(EpochSampler):
    """Shuffles samples of two kinds, each among themselves: where they alternate, they go on to.

    Args:
        kinds: Of each sample.
        seed: Of the orders.
    """

    def __init__(self, kinds: Sequence[bool], seed: int) -> None:
        super().__init__(len(kinds), seed)
        self.kinds = list(kinds)

    def draw(self, generator: torch.Generator) -> list[int]:
        order = super().draw(generator)
        queues = {kind: iter([i for i in order if self.kinds[i] == kind]) for kind in (True, False)}
        return [next(queues[kind]) for kind in self.kinds]


class ModalitySampler(EpochSampler):
    """LLaVA's ``--group_by_modality_length``: batches with images or without, of similar lengths.

    A round is what all processes take for one step. The samples of a round are of one modality and
    are shared out so that each process gets about as many words; what is left over of both
    modalities makes the last rounds.

    Args:
        lengths: Words of each sample, negative where there is no image.
        batch_size: Samples for each pass and process.
        parts: Passes of a round: processes times accumulated passes.
        seed: Of the orders.

    Source of the rule: haotian-liu/LLaVA at c121f04, ``llava/train/llava_trainer.py``.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, parts: int, seed: int) -> None:
        super().__init__(len(lengths), seed)
        if batch_size < 1 or parts < 1:
            raise ValueError(
                f"batch_size and parts must be at least 1, got {batch_size} and {parts}"
            )
        if not all(lengths):
            raise ValueError(f"sample {list(lengths).index(0)} has no words: its length is 0")
        self.lengths, self.batch_size, self.parts = list(lengths), batch_size, parts

    def draw(self, generator: torch.Generator) -> list[int]:
        order = super().draw(generator)
        size = self.batch_size * self.parts
        rounds, left = [], []
        for with_image in (True, False):
            kind = [i for i in order if (self.lengths[i] > 0) == with_image]
            whole = len(kind) - len(kind) % size
            rounds += [kind[start : start + size] for start in range(0, whole, size)]
            left += kind[whole:]
        shuffled = torch.randperm(len(rounds), generator=generator).tolist()
        rounds = [rounds[i] for i in shuffled]
        rounds += [left[start : start + size] for start in range(0, len(left), size)]
        return [i for members in rounds for i in self._share_out(members)]

    def _share_out(self, members: list[int]) -> list[int]:
        """The members of a round, part by part: the longest first, to the part with least words."""
        longest = sorted(members, key=lambda i: abs(self.lengths[i]), reverse=True)
        if len(members) < self.batch_size * self.parts:
            return longest
        parts: list[list[int]] = [[] for _ in range(self.parts)]
        words = [0] * self.parts
        for i in longest:
            open_parts = [p for p in range(self.parts) if len(parts[p]) < self.batch_size]
            least = min(open_parts, key=words.__getitem__)
            parts[least].append(i)
            words[least] += abs(self.lengths[i])
        return [i for part in parts for i in part]


class LengthSampler(EpochSampler):
    """Batches of similar lengths, so that little of a batch is padding.

    The shuffled samples are cut into windows of a few batches. Only inside of a window they are
    sorted: with larger ones a batch would hold one kind of conversation alone.

    Args:
        lengths: Of each sample, in any unit.
        batch_size: Samples of a batch.
        seed: Of the orders.
        window: Batches of a window.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, window: int = 4) -> None:
        super().__init__(len(lengths), seed)
        if batch_size < 1 or window < 1:
            raise ValueError(
                f"batch_size and window must be at least 1, got {batch_size} and {window}"
            )
        self.lengths, self.batch_size, self.window = list(lengths), batch_size, window

    def draw(self, generator: torch.Generator) -> list[int]:
        full, part = _batches(
            super().draw(generator), self.lengths, self.batch_size, self.window, generator
        )
        # A batch that is not full stays the last one: the Trainer cuts the order by number.
        return [i for batch in full + part for i in batch]


class KindSampler(EpochSampler):
    """Batches of one kind of samples each, of similar lengths, each kind's spread evenly.

    Two kinds of as many batches alternate. What does not fill a batch of its kind is left out of
    the epoch; a kind that never fills one repeats samples.

    Args:
        kinds: A number for each sample.
        lengths: Of each sample, in any unit.
        batch_size: Samples of a batch.
        seed: Of the orders.
        window: As for :class:`LengthSampler`.
    """

    def __init__(
        self,
        kinds: Sequence[int],
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        window: int = 4,
    ) -> None:
        self.members = {
            kind: [i for i, own in enumerate(kinds) if own == kind] for kind in sorted(set(kinds))
        }
        counts = {kind: max(1, len(m) // batch_size) for kind, m in self.members.items()}
        super().__init__(sum(counts.values()) * batch_size, seed)
        self.lengths, self.batch_size, self.window = list(lengths), batch_size, window
        places = (((i + 0.5) / count, kind) for kind, count in counts.items() for i in range(count))
        self.turns = [kind for _, kind in sorted(places)]

    def draw(self, generator: torch.Generator) -> list[int]:
        batches = {}
        for kind, members in self.members.items():
            drawn = [members[i] for i in torch.randperm(len(members), generator=generator)]
            while len(drawn) < self.batch_size:
                drawn += drawn
            whole = len(drawn) - len(drawn) % self.batch_size
            full, _ = _batches(drawn[:whole], self.lengths, self.batch_size, self.window, generator)
            batches[kind] = iter(full)
        return [i for kind in self.turns for i in next(batches[kind])]


def _batches(
    order: Sequence[int],
    lengths: Sequence[int],
    batch_size: int,
    window: int,
    generator: torch.Generator,
) -> tuple[list[list[int]], list[list[int]]]:
    """Full batches in a drawn order, and what is left over."""
    size = batch_size * window
    batches = []
    for start in range(0, len(order), size):
        members = sorted(order[start : start + size], key=lengths.__getitem__)
        batches += [members[i : i + batch_size] for i in range(0, len(members), batch_size)]
    full = [batch for batch in batches if len(batch) == batch_size]
    part = [batch for batch in batches if len(batch) < batch_size]
    shuffled = torch.randperm(len(full), generator=generator).tolist()
    return [full[i] for i in shuffled], part
