import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from llava_forgery.call_state import in_call, lock_of, of_call


class Owner:
    pass


def test_calls_inside_calls_hide_the_value_and_give_it_back():
    one, two = Owner(), Owner()
    with in_call(one, "a"), in_call(two, "b"):
        with in_call(one, "c"):
            assert (of_call(one), of_call(two)) == ("c", "b")
        assert (of_call(one), of_call(two)) == ("a", "b")
    assert of_call(one) is None


def test_an_error_leaves_nothing():
    owner = Owner()
    with pytest.raises(KeyError), in_call(owner, "a"):
        raise KeyError
    assert of_call(owner) is None


def test_threads_do_not_see_each_others_values():
    owner, inside = Owner(), threading.Barrier(8)

    def call(value):
        with in_call(owner, value):
            inside.wait(10)
            return of_call(owner)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(call, range(8))) == list(range(8))


def test_one_lock_for_each_owner_that_copies_do_not_share():
    owner = Owner()
    lock = lock_of(owner)
    assert lock_of(owner) is lock
    assert lock_of(copy.deepcopy(owner)) is not lock
    # A call inside a call does not wait for itself.
    with lock, lock:
        pass
