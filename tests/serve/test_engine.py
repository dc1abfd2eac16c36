"""Scheduling without HTTP: what runs is scripted, so that no test depends on timing."""

import threading

import pytest
import torch

from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.serve.engine import Busy, Engine

SECONDS = 20


class Gated:
    """A predictor of numbers whose batches start when the test says so."""

    def __init__(self):
        self.batches = []
        self.entered, self.gate = threading.Semaphore(0), threading.Semaphore(0)

    def predict_faces(self, items):
        return self._run("faces", items)

    def predict_scores(self, items):
        self._run("scores", items)
        return [item / 10 for item in items], [item / 100 for item in items]

    def _run(self, kind, items):
        self.batches.append((kind, list(items)))
        self.entered.release()
        assert self.gate.acquire(timeout=SECONDS)
        if 13 in items:
            raise ValueError("13 brings bad luck")
        if len(items) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return [2 * item for item in items]

    def started(self):
        assert self.entered.acquire(timeout=SECONDS)

    def let(self, batches=99):
        self.gate.release(batches)


@pytest.fixture
def gated():
    return Gated()


@pytest.fixture
def engine(gated):
    engine = Engine(gated, 3, wait=0, queue=6)
    yield engine
    gated.let()
    engine.close()


def result(future):
    return future.result(timeout=SECONDS)


def test_clients_share_batches_of_a_kind(engine, gated):
    first = engine.predict_faces([1])
    gated.started()
    others = [engine.predict_faces([2]), engine.predict_scores([3]), engine.predict_faces([4])]
    gated.let()
    assert [result(future) for future in [first, *others]] == [[2], [4], [(0.3, 0.03)], [8]]
    assert gated.batches == [("faces", [1]), ("faces", [2, 4]), ("scores", [3])]
    assert result(engine.predict_faces([])) == []


def test_many_faces_do_not_hold_up_the_others(engine, gated):
    many = engine.predict_faces([1, 2, 3, 4, 5])
    gated.started()
    one = engine.predict_faces([6])
    gated.let()
    assert result(one) == [12]
    assert result(many) == [2, 4, 6, 8, 10]
    assert [items for _, items in gated.batches] == [[1, 2, 3], [6, 4, 5]]


def test_a_full_queue_refuses_with_a_time(engine, gated):
    engine.predict_faces([1])
    gated.started()
    engine.predict_faces([2, 3, 4])
    assert engine.waiting == 4
    with pytest.raises(Busy, match="4 faces wait already") as error:
        engine.predict_faces([5, 6, 7])
    assert error.value.retry_after >= 1


def test_who_brings_more_than_the_queue_holds_is_served_alone(engine, gated):
    gated.let()
    assert result(engine.predict_faces(list(range(12)))) == [2 * i for i in range(12)]


def test_a_cancelled_client_frees_its_place(engine, gated):
    engine.predict_faces([1])
    gated.started()
    gone = engine.predict_faces([2, 3, 4, 5])
    assert gone.cancel()
    assert engine.waiting == 1
    last = engine.predict_faces([6, 7, 8])
    gated.let()
    assert result(last) == [12, 14, 16]
    assert [items for _, items in gated.batches] == [[1], [6, 7, 8]]


def test_a_client_that_goes_amid_its_batches_frees_the_rest(engine, gated):
    many = engine.predict_faces([1, 2, 3, 4, 5])
    gated.started()
    assert many.cancel()
    last = engine.predict_faces([6])
    gated.let()
    assert result(last) == [12]
    assert [items for _, items in gated.batches] == [[1, 2, 3], [6]]


def test_one_bad_face_fails_its_own_client(engine, gated):
    first = engine.predict_faces([1])
    gated.started()
    good, bad = engine.predict_faces([2]), engine.predict_faces([13, 4])
    gated.let()
    assert result(first) == [2]
    assert result(good) == [4]
    with pytest.raises(ValueError, match="bad luck"):
        result(bad)
    assert engine.alive


def test_where_memory_runs_out_batches_are_halved(gated):
    engine = Engine(gated, 8, wait=0)
    gated.let()
    assert result(engine.predict_faces([1, 2, 3, 4, 5])) == [2, 4, 6, 8, 10]
    assert [items for _, items in gated.batches] == [[1, 2, 3, 4, 5], [1, 2, 3], [4, 5]]
    engine.close()


def test_a_batch_waits_for_those_who_said_that_they_come(gated):
    engine = Engine(gated, 3, wait=SECONDS)
    gated.let()
    with engine.expect():
        futures = [engine.predict_faces([1]), engine.predict_faces([2]), engine.predict_faces([3])]
        assert [result(future) for future in futures] == [[2], [4], [6]]
        last = engine.predict_faces([4])
    # Nobody else comes: it does not wait.
    assert result(last) == [8]
    assert [items for _, items in gated.batches] == [[1, 2, 3], [4]]
    engine.close()


def test_calls_have_their_turn(engine, gated):
    gated.let()
    assert result(engine.call(lambda: "done")) == "done"
    with pytest.raises(ZeroDivisionError):
        result(engine.call(lambda: 1 / 0))


def test_closing_finishes_what_is_queued(gated):
    seen = []
    engine = Engine(gated, 2, observe=lambda *batch: seen.append(batch[:2]))
    futures = [engine.predict_faces([i]) for i in range(4)]
    gated.let()
    engine.close()
    assert [result(future) for future in futures] == [[0], [2], [4], [6]]
    assert sum(faces for _, faces in seen) == 4
    assert not engine.alive
    with pytest.raises(RuntimeError, match="closed"):
        engine.predict_faces([1])


def test_what_is_scripted_here_is_what_a_predictor_has():
    for name in ("predict_faces", "predict_scores"):
        assert callable(getattr(ForgeryPredictor, name))
