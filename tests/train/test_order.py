"""Orders of samples."""

import pytest
import torch

from llava_forgery.train.order import LengthSampler


def test_batches_of_similar_lengths_hold_every_sample_once():
    lengths = torch.randint(10, 200, (50,), generator=torch.Generator().manual_seed(0)).tolist()
    order = list(LengthSampler(lengths, batch_size=4, seed=1, window=4))
    assert sorted(order) == list(range(50))

    def padding(indices):
        batches = [indices[i : i + 4] for i in range(0, 48, 4)]
        return sum(4 * max(lengths[i] for i in b) - sum(lengths[i] for i in b) for b in batches)

    shuffled = list(LengthSampler(lengths, batch_size=4, seed=1, window=1))
    assert padding(order) < padding(shuffled) / 2
    # Long and short batches come mixed, not from short to long.
    longest = [max(lengths[i] for i in order[start : start + 4]) for start in range(0, 48, 4)]
    assert longest != sorted(longest)


def test_order_of_lengths_follows_seed_and_epoch():
    def order(seed, epoch):
        sampler = LengthSampler(list(range(30)), batch_size=4, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="batch_size and window must be at least 1, got 0 and 4"):
        LengthSampler([1, 2], batch_size=0, seed=0)
