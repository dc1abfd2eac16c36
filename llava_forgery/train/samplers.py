"""Orders of samples, different in each epoch and reproducible by their seed."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """Orders that only depend on seed and epoch, so that a resumed training continues in them.

    Args:
        count: Number of samples.
        seed: Seed of the orders.
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
    """Shuffles samples of two kinds within each kind, so that alternating kinds keep alternating.

    Args:
        kinds: Kind of each sample.
        seed: Seed of the orders.
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

    A round is what all processes take for one step. The samples of a round have one modality and
    are distributed so that each process gets about as many words; the remainders of both modalities
    form the last rounds.

    Args:
        lengths: Number of words of each sample, negative without an image.
        batch_size: Number of samples per pass and process.
        parts: Number of passes per round: processes times accumulated passes.
        seed: Seed of the orders.

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
        """Distribute the members of a round to parts, the longest first to the shortest part."""
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

    The shuffled samples are divided into windows of a few batches and only sorted within a window:
    in larger ones a batch would hold only one kind of conversation.

    Args:
        lengths: Length of each sample, in any unit.
        batch_size: Number of samples in a batch.
        seed: Seed of the orders.
        window: Number of batches in a window.
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
        # An incomplete batch stays last, as the Trainer splits the order by number.
        return [i for batch in full + part for i in batch]


class KindSampler(EpochSampler):
    """Batches of one kind of samples and of similar lengths, those of each kind evenly spaced.

    Two kinds with equally many batches alternate. Samples that do not fill a batch of their kind
    are skipped for the epoch; a kind that never fills one repeats samples.

    Args:
        kinds: Kind of each sample as a number.
        lengths: Length of each sample, in any unit.
        batch_size: Number of samples in a batch.
        seed: Seed of the orders.
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
    """Full batches in a drawn order, and the remaining samples."""
    size = batch_size * window
    batches = []
    for start in range(0, len(order), size):
        members = sorted(order[start : start + size], key=lengths.__getitem__)
        batches += [members[i : i + batch_size] for i in range(0, len(members), batch_size)]
    full = [batch for batch in batches if len(batch) == batch_size]
    part = [batch for batch in batches if len(batch) < batch_size]
    shuffled = torch.randperm(len(full), generator=generator).tolist()
    return [full[i] for i in shuffled], part
