import pytest
import torch

from llava_forgery.infer.batching import BatchLimits, complete, in_batches, read_ahead, run_each


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
    assert list(in_batches(groups, run, 2)) == [
        ("a", [2]), ("b", []), ("c", [4, 6, 8]), ("d", [10]),
    ]  # fmt: skip
    assert run.batches == [[1, 2], [3, 4], [5]]


def test_a_group_is_given_out_before_later_ones_are_drawn():
    drawn = []

    def groups():
        for i in range(5):
            drawn.append(i)
            yield i, [i]

    results = in_batches(groups(), Doubling(), 2)
    assert next(results) == (0, [0])
    assert drawn == [0, 1]


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


@pytest.mark.parametrize(
    ("limits", "tokens", "size"),
    [((8, 1000), 100, 8), ((8, 1000), 300, 3), ((8, 1000), 5000, 1), ((8, 1000), 0, 8)],
)
def test_a_batch_is_bounded_by_faces_and_tokens(limits, tokens, size):
    assert BatchLimits(*limits).size(tokens) == size


@pytest.mark.parametrize("limits", [{"faces": 0}, {"tokens": 0}])
def test_limits_below_one_are_refused(limits):
    with pytest.raises(ValueError, match="1 or more"):
        BatchLimits(**limits)


def test_what_is_read_ahead_is_bounded_and_in_order():
    drawn = []

    def sources():
        for i in range(100):
            drawn.append(i)
            yield i

    found = read_ahead(lambda i: 2 * i, sources(), threads=2)
    assert [next(found) for _ in range(3)] == [0, 2, 4]
    assert len(drawn) == 3 + 4
    assert list(found) == [2 * i for i in range(3, 100)]


def test_an_error_of_a_source_comes_in_its_turn():
    found = read_ahead(lambda i: 1 // i, [1, 1, 0, 1])
    assert [next(found), next(found)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(found)
    with pytest.raises(ValueError, match="13"):
        complete(run_each(Doubling(), [1, 13]))
