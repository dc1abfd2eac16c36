import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from llava_forgery.hosts.llava.hooks import NumberedHooks
from llava_forgery.hosts.placeholder import PlaceholderHooks, check_counts

TOKEN = 99


@pytest.fixture
def embedding():
    torch.manual_seed(0)
    return nn.Embedding(10, 4)


def _ids(*rows):
    return torch.tensor([[TOKEN if x == "*" else int(x) for x in row] for row in rows])


def test_rows_are_replaced_in_order_and_nothing_else(embedding):
    hooks = PlaceholderHooks(embedding, TOKEN)
    vectors = torch.arange(16.0).reshape(2, 2, 4)
    ids = _ids("1**2", "*3*4")
    with hooks.use(vectors):
        result = embedding(ids)
    torch.testing.assert_close(result[0, 1:3], vectors[0])
    torch.testing.assert_close(result[1, [0, 2]], vectors[1])
    torch.testing.assert_close(result[0, 0], embedding.weight[1])
    torch.testing.assert_close(result[1, 3], embedding.weight[4])


def test_gradient_reaches_the_vectors_and_not_row_zero(embedding):
    hooks = PlaceholderHooks(embedding, TOKEN)
    vectors = torch.randn(1, 2, 4, requires_grad=True)
    with hooks.use(vectors):
        embedding(_ids("5**")).sum().backward()
    torch.testing.assert_close(vectors.grad, torch.ones(1, 2, 4))
    assert float(embedding.weight.grad[0].abs().sum()) == 0
    assert float(embedding.weight.grad[5].sum()) == 4


def test_beams_repeat_each_samples_vectors(embedding):
    hooks = PlaceholderHooks(embedding, TOKEN)
    vectors = torch.arange(8.0).reshape(2, 1, 4)
    with hooks.use(vectors):
        result = embedding(_ids("*", "*", "*", "*"))
    torch.testing.assert_close(result[:, 0], vectors[[0, 0, 1, 1], 0])


def test_samples_may_have_unlike_numbers_of_vectors(embedding):
    hooks = PlaceholderHooks(embedding, TOKEN)
    vectors = [torch.full((1, 4), 1.0), torch.arange(8.0).reshape(2, 4)]
    with hooks.use(vectors):
        result = embedding(_ids("*12", "3**"))
        beams = embedding(_ids("*1", "*2", "**", "**"))
        # As many in all, but the second sample's would fall into the first.
        with pytest.raises(ValueError, match="sample 0 has 2 .* 1"):
            embedding(_ids("**1", "23*"))
    torch.testing.assert_close(result[0, :1], vectors[0])
    torch.testing.assert_close(result[1, 1:], vectors[1])
    torch.testing.assert_close(beams[:2, 0], vectors[0].expand(2, 4))
    torch.testing.assert_close(beams[2:], vectors[1].expand(2, 2, 4))


def test_steps_without_placeholders_pass(embedding):
    hooks = PlaceholderHooks(embedding, TOKEN)
    with hooks.use(torch.zeros(1, 2, 4)):
        torch.testing.assert_close(embedding(_ids("7"))[0, 0], embedding.weight[7])


def test_short_first_sample_is_named_with_both_numbers(embedding):
    hooks = PlaceholderHooks(embedding, TOKEN)
    with hooks.use(torch.zeros(2, 2, 4)), pytest.raises(ValueError, match="sample 0 has 1 .* 2"):
        embedding(_ids("1*2", "**3"))
    with pytest.raises(ValueError, match="sample 1 has 3 .* 2"):
        check_counts(_ids("**4", "***"), TOKEN, [2, 2])


def test_host_called_directly_with_placeholders_is_an_error(embedding):
    PlaceholderHooks(embedding, TOKEN)
    with pytest.raises(RuntimeError, match="attach_forgery"):
        embedding(_ids("1*"))


def test_removed_hooks_leave_the_embedding_as_it_was(embedding):
    hooks = PlaceholderHooks(embedding, TOKEN)
    hooks.remove()
    assert not embedding._forward_hooks
    assert not embedding._forward_pre_hooks


def both_inside(*calls):
    """The results of calls that each wait, once begun, until all have begun."""
    begun = threading.Barrier(len(calls))

    def run(call):
        with call[0]:
            begun.wait(10)
            return call[1]()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def test_threads_write_their_own_vectors(embedding):
    hooks = PlaceholderHooks(embedding, TOKEN)
    one, two = torch.full((1, 2, 4), 1.0), torch.full((1, 3, 4), 2.0)
    found = both_inside(
        (hooks.use(one), lambda: embedding(_ids("1**2"))),
        (hooks.use(two), lambda: embedding(_ids("***4"))),
        (nullcontext(), lambda: embedding(_ids("56"))),
    )
    torch.testing.assert_close(found[0][0, 1:3], one[0])
    torch.testing.assert_close(found[1][0, :3], two[0])
    torch.testing.assert_close(found[2][0], embedding.weight[[5, 6]])


def test_what_fails_in_one_thread_leaves_the_others_alone(embedding):
    hooks = PlaceholderHooks(embedding, TOKEN)
    vectors = torch.full((1, 2, 4), 1.0)

    def fails():
        with pytest.raises(IndexError):
            embedding(torch.tensor([[TOKEN, TOKEN, 50]]))
        torch.testing.assert_close(embedding(_ids("7"))[0, 0], embedding.weight[7])
        with pytest.raises(ValueError, match="sample 0 has 1"):
            embedding(_ids("1*"))

    found = both_inside(
        (hooks.use(vectors), fails), (hooks.use(vectors), lambda: embedding(_ids("**")))
    )
    torch.testing.assert_close(found[1][0], vectors[0])
    with pytest.raises(RuntimeError, match="attach_forgery"):
        embedding(_ids("**"))


def test_numbered_rows_are_those_of_the_threads_own_call(embedding):
    """Two calls' hooks stand on one embedding, as they do on a model of the llava package."""
    ids = _ids("1**2")
    calls = []
    for value in (1.0, 2.0):
        hooks = NumberedHooks(embedding, TOKEN)
        numbered = hooks.number(ids)
        rows = torch.full((2, 4), value)
        calls.append((hooks.use(rows, [2]), lambda numbered=numbered: embedding(numbered)))
    for value, found in zip((1.0, 2.0), both_inside(*calls), strict=True):
        torch.testing.assert_close(found[0, 1:3], torch.full((2, 4), value))
