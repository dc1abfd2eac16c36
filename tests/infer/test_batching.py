import pytest
import torch

from llava_forgery.infer.batching import BatchLimits, in_batches, run_each


class Doubling:
    """Doubles numbers; remembers its batches; cannot double 13, nor more than ``room`` at once."""

    def __init__(self, room=99):
        self.room, self.batches = room, []

    def __call__(self, items):
        if len(items) > self.room:
            raise torch.OutOfMemoryError("out of memory")
        if 13 in items:
            raise ValueError("13 brings bad luck")
        self.batches.append(list(items))
        return [2 * item for item in items]


def test_groups_share_batches_and_keep_their_order():
    run = Doubling()
    groups = [("a", [1]), ("b", []), ("c", [2, 3, 4]), ("d", [5])]
    assert list(in_batches(groups, run, BatchLimits(faces=2))) == [
        ("a", [2]), ("b", []), ("c", [4, 6, 8]), ("d", [10]),
    ]  # fmt: skip
    assert run.batches == [[1, 2], [3, 4], [5]]


def test_a_group_is_given_out_before_later_ones_are_drawn():
    drawn = []

    def groups():
        for i in range(5):
            drawn.append(i)
            yield i, [i]

    results = in_batches(groups(), Doubling(), BatchLimits(faces=2))
    assert next(results) == (0, [0])
    assert drawn == [0, 1]


def test_tokens_count_with_their_padding():
    run = Doubling()
    limits = BatchLimits(faces=8, tokens=12)
    groups = [(i, [i]) for i in (3, 4, 1, 6, 20, 1)]
    results = list(in_batches(groups, run, limits, tokens=lambda item: item))
    assert [key for key, _ in results] == [3, 4, 1, 6, 20, 1]
    assert run.batches == [[3, 4, 1], [6], [20], [1]]


def test_one_that_fails_does_not_fail_the_others():
    run = Doubling()
    results = run_each(run, [1, 2, 13, 4, 5])
    assert results[:2] + results[3:] == [2, 4, 8, 10]
    assert isinstance(results[2], ValueError)
    assert results[2].__traceback__ is None
    assert run_each(run, []) == []


def test_where_memory_runs_out_batches_are_halved():
    run = Doubling(room=2)
    assert run_each(run, [1, 2, 3, 4, 5]) == [2, 4, 6, 8, 10]
    assert run.batches == [[1, 2], [3], [4, 5]]


@pytest.mark.parametrize("limits", [{"faces": 0}, {"tokens": 0}])
def test_limits_below_one_are_refused(limits):
    with pytest.raises(ValueError, match="1 or more"):
        BatchLimits(**limits)
    with pytest.raises(ValueError, match="pass tokens="):
        next(in_batches([], Doubling(), BatchLimits(tokens=5)))
