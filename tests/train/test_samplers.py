"""Orders of samples: every sample once, the same under a seed, another one in each epoch."""

import pytest
import torch

from llava_forgery.train.samplers import (
    AlternatingSampler,
    EpochSampler,
    KindSampler,
    LengthSampler,
    ModalitySampler,
)

LENGTHS = [*range(1, 12), *range(-1, -8, -1)]


def _samplers(seed):
    return (
        EpochSampler(7, seed),
        AlternatingSampler([True, False] * 4 + [True], seed),
        ModalitySampler(LENGTHS, 2, 2, seed),
    )


@pytest.mark.parametrize("which", range(3))
def test_every_sample_once_and_the_same_again(which):
    sampler, again, other = (_samplers(seed)[which] for seed in (3, 3, 4))
    first = list(sampler)
    assert sorted(first) == list(range(len(sampler)))
    assert first == list(sampler) == list(again) != list(other)
    sampler.set_epoch(1)
    assert sorted(sampler) == sorted(first)
    assert list(sampler) != first


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for sampler in _samplers(0):
        list(sampler)
    assert torch.equal(before, torch.get_rng_state())


def test_kinds_stay_in_their_places():
    kinds = [True, False, True, False, False, True]
    sampler = AlternatingSampler(kinds, 0)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert [kinds[i] for i in sampler] == kinds


def test_rounds_are_of_one_modality_and_shared_out_evenly():
    order = list(ModalitySampler(LENGTHS, batch_size=2, parts=2, seed=0))
    rounds = [order[start : start + 4] for start in range(0, len(order), 4)]
    # 11 samples with image and 7 without: two and one whole rounds, and what is left.
    for members in rounds[:3]:
        assert len({LENGTHS[i] > 0 for i in members}) == 1
        words = [sum(abs(LENGTHS[i]) for i in members[k : k + 2]) for k in (0, 2)]
        longest = max(abs(LENGTHS[i]) for i in members)
        assert abs(words[0] - words[1]) <= longest
    assert sum(LENGTHS[i] > 0 for members in rounds[3:] for i in members) == 3


def test_a_sample_without_words_is_refused():
    with pytest.raises(ValueError, match="sample 1 has no words"):
        ModalitySampler([1, 0, -1], 1, 1, 0)


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


def test_batches_are_of_one_kind_and_alternate():
    kinds, lengths = [0, 1] * 6 + [0] * 5, list(range(17))
    sampler = KindSampler(kinds, lengths, 3, seed=0)
    order = list(sampler)
    assert len(order) == len(sampler) == 15
    batches = [order[i : i + 3] for i in range(0, 15, 3)]
    assert [{kinds[i] for i in batch} for batch in batches] == [{0}, {1}] * 2 + [{0}]
    assert len(set(order)) == 15
    assert list(sampler) == order
    sampler.set_epoch(1)
    assert list(sampler) != order


def test_a_kind_of_fewer_samples_than_a_batch_repeats_them():
    sampler = KindSampler([0] * 8 + [1], [1] * 9, 4, seed=0)
    order = list(sampler)
    assert sorted(order) == [*range(8), 8, 8, 8, 8]
    assert len({order.index(8) // 4, (11 - order[::-1].index(8)) // 4}) == 1
