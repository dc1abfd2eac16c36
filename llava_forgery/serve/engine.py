"""Scheduling: faces of many clients share the batches of one predictor, on a thread of its own."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from llava_forgery.infer.batching import run_each
from llava_forgery.infer.predictor import FaceInput, ForgeryPredictor
from llava_forgery.infer.verdict import Verdict

logger = logging.getLogger(__name__)

CALL = "call"
_LEAST_WAIT = 0.1
Observe = Callable[[str, int, float], None]


class Busy(RuntimeError):
    """The queue is full.

    Attributes:
        retry_after: Seconds after which it is likely to have room, 1 or more.
    """

    def __init__(self, what: str, retry_after: float) -> None:
        self.retry_after = max(1, math.ceil(retry_after))
        super().__init__(f"{what}; try again in {self.retry_after} s")


@dataclass(eq=False)
class _Task:
    """What one caller waits for: faces in batches of one kind, or a call of its own."""

    kind: str
    run: Callable[[Sequence[Any]], list[Any]]
    items: Sequence[Any]
    future: Future = field(default_factory=Future)
    results: list[Any] = field(default_factory=list)

    @property
    def left(self) -> Sequence[Any]:
        return self.items[len(self.results) :]

    @property
    def failure(self) -> Exception | None:
        return next((result for result in self.results if isinstance(result, Exception)), None)


class Engine:
    """One predictor behind a queue.

    Callers get futures. One that is cancelled frees its place, also between two batches of its
    faces; a face that fails fails its own caller only; where memory runs out, batches are halved.

    Args:
        predictor: Used by the engine's thread alone for what goes through the queue.
        batch_size: Most faces of a batch.
        wait: Seconds for which a batch with room waits for callers that have said, by
            :meth:`expect`, that they bring faces; by default as long as a face takes, which is
            about what a batch of their own would cost on top, at least 0.1. Nobody waits for
            callers that have not.
        queue: Most faces that wait; what would exceed it is refused.
        observe: Receives the kind, the number of faces and the seconds of each batch.
    """

    def __init__(
        self,
        predictor: ForgeryPredictor,
        batch_size: int = 8,
        wait: float | None = None,
        queue: int = 256,
        observe: Observe | None = None,
    ) -> None:
        self.predictor, self.batch_size = predictor, batch_size
        self.wait, self.queue = wait, queue
        self._observe = observe or (lambda kind, faces, seconds: None)
        self._changed = threading.Condition()
        self._tasks: deque[_Task] = deque()
        self._expected = 0
        self._closing = False
        # Of a face, a running mean that starts at what a CPU takes.
        self._seconds = 1.0
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs; only a fault of the engine's own ends it before ``close``."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Faces in the queue."""
        with self._changed:
            return self._count()

    def retry_after(self) -> float:
        """Seconds until the queue is likely to be empty."""
        return self.waiting * self._seconds

    @contextmanager
    def expect(self) -> Iterator[None]:
        """Say that faces are about to come, so that a batch waits for them; see ``wait``."""
        with self._changed:
            self._expected += 1
        try:
            yield
        finally:
            with self._changed:
                self._expected -= 1
                self._changed.notify_all()

    def predict_faces(
        self, faces: Sequence[FaceInput], patient: bool = False
    ) -> Future[list[Verdict]]:
        """The verdicts of faces, as ``predictor.predict_faces`` gives them.

        Args:
            faces: Of one caller.
            patient: Wait for room in the queue.

        Raises:
            Busy: The queue is full.
            RuntimeError: The engine is closed.
        """
        return self._put(_Task("faces", self.predictor.predict_faces, faces), patient)

    def predict_scores(
        self, faces: Sequence[FaceInput], patient: bool = False
    ) -> Future[list[tuple[float, float]]]:
        """Score and P(yes) of each face, without answers; as :meth:`predict_faces`."""
        return self._put(_Task("scores", self._scores, faces), patient)

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Run anything else of the predictor's in turn; raises as :meth:`predict_faces`."""
        return self._put(_Task(CALL, lambda _: [function()], [None]))

    def close(self) -> None:
        """Finish what is queued, and end. Later calls raise."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _scores(self, faces: Sequence[FaceInput]) -> list[tuple[float, float]]:
        return list(zip(*self.predictor.predict_scores(faces), strict=True))

    def _count(self) -> int:
        return sum(len(task.left) for task in self._tasks if not task.future.cancelled())

    def _put(self, task: _Task, patient: bool = False) -> Future:
        with self._changed:
            if not task.items:
                task.future.set_result([])
                return task.future
            # A caller with more faces than the queue holds is served when nobody else waits.
            while (waiting := self._count()) and waiting + len(task.items) > self.queue:
                if patient and not self._closing:
                    self._changed.wait()
                    continue
                raise Busy(f"{waiting} faces wait already", waiting * self._seconds)
            if self._closing:
                raise RuntimeError("the engine is closed")
            self._tasks.append(task)
            self._changed.notify_all()
        return task.future

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            kind, run = batch[0][0].kind, batch[0][0].run
            started = time.monotonic()
            results = run_each(run, [item for _, item in batch])
            seconds = time.monotonic() - started
            if kind != CALL:
                self._seconds += 0.2 * (seconds / len(batch) - self._seconds)
            self._give(batch, results)
            self._observe(kind, len(batch), seconds)

    def _next_batch(self) -> list[tuple[_Task, Any]] | None:
        """The items that run next, of one kind; None at the end."""
        deadline = None
        with self._changed:
            while True:
                self._tasks = deque(t for t in self._tasks if not t.future.cancelled())
                batch = self._gather()
                if not batch:
                    if self._closing:
                        return None
                    deadline = None
                    self._changed.wait()
                    continue
                deadline = deadline or time.monotonic() + self._patience()
                rest = deadline - time.monotonic()
                full = len(batch) >= self.batch_size or batch[0][0].kind == CALL
                if full or not self._expected or rest <= 0:
                    return batch
                self._changed.wait(rest)

    def _patience(self) -> float:
        """Seconds for which a batch with room waits."""
        return max(_LEAST_WAIT, self._seconds) if self.wait is None else self.wait

    def _gather(self) -> list[tuple[_Task, Any]]:
        """What may share a batch with the first task, in the order in which it came."""
        if not self._tasks:
            return []
        first = self._tasks[0]
        alike = [first] if first.kind == CALL else [t for t in self._tasks if t.kind == first.kind]
        items = [(task, item) for task in alike for item in task.left]
        return items[: self.batch_size]

    def _give(self, batch: list[tuple[_Task, Any]], results: list[Any]) -> None:
        """Hand out results; who waits for more goes to the queue's end, so that all get on."""
        for (task, _), result in zip(batch, results, strict=True):
            task.results.append(result)
        done = []
        with self._changed:
            for task in dict.fromkeys(task for task, _ in batch):
                self._tasks.remove(task)
                if task.left and not task.failure:
                    self._tasks.append(task)
                else:
                    done.append(task)
            self._changed.notify_all()
        # Callbacks of futures run here: not under the lock.
        for task in done:
            if not task.future.set_running_or_notify_cancel():
                continue
            if task.failure:
                task.future.set_exception(task.failure)
            else:
                task.future.set_result(task.results[0] if task.kind == CALL else task.results)
