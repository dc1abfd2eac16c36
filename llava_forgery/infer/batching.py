"""Faces of several pictures share batches, within limits; each picture gets back its own."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from llava_forgery.infer.halving import in_halves

logger = logging.getLogger(__name__)

Key = TypeVar("Key")
Item = TypeVar("Item")
Result = TypeVar("Result")
Source = TypeVar("Source")
Run = Callable[[Sequence[Item]], list[Result]]


@dataclass(frozen=True)
class BatchLimits:
    """How much is computed at once.

    Raises:
        ValueError: A limit below 1.
    """

    faces: int = 24
    """Most items of a batch. More are hardly faster: the weights that each token of an answer reads
    are by then read for many."""
    tokens: int = 32_768
    """Most tokens of the prompts of a batch, padding included."""

    def __post_init__(self) -> None:
        if self.faces < 1 or self.tokens < 1:
            raise ValueError(
                f"expected limits of 1 or more, got faces={self.faces}, tokens={self.tokens}"
            )

    def size(self, tokens: int = 0) -> int:
        """Most items of a batch, 1 or more.

        Args:
            tokens: Of the longest item.
        """
        return max(1, min(self.faces, self.tokens // max(tokens, 1)))


def run_each(run: Run, items: Sequence[Item]) -> list[Result | Exception]:
    """The results of ``run(items)``, with an error in the place of each item that causes one.

    Where memory runs out the batch is halved, see :func:`in_halves`; where anything else fails it
    is halved as well, until the items that fail are alone.

    Args:
        run: Gives one result for each item, in order.
        items: Any number of them.
    """
    if not items:
        return []
    try:
        return list(in_halves(run, items))
    except Exception as error:
        if len(items) == 1:
            logger.debug("where it happened", exc_info=True)
            # The traceback holds the tensors of what failed.
            return [error.with_traceback(None)]
        logger.debug("a batch of %d failed and is halved", len(items), exc_info=True)
    half = (len(items) + 1) // 2
    return run_each(run, items[:half]) + run_each(run, items[half:])


@dataclass
class _Group(Generic[Key]):
    key: Key
    size: int
    results: list = field(default_factory=list)


def in_batches(
    groups: Iterable[tuple[Key, Sequence[Item]]], run: Run, size: int
) -> Iterator[tuple[Key, list[Result | Exception]]]:
    """Run groups of items, such as the faces of pictures, in batches that they share.

    Groups are drawn when a batch has room, so any number of them runs in bounded memory.

    Args:
        groups: A key, such as a file's name, and its items; there may be none.
        run: Gives one result for each item, in order.
        size: Most items of a batch.

    Yields:
        Each group's key and its results as :func:`run_each` gives them, in the groups' order, as
        soon as they are complete.
    """
    waiting: deque[_Group[Key]] = deque()
    batch: list[tuple[_Group[Key], Item]] = []

    def flush() -> None:
        results = run_each(run, [item for _, item in batch])
        for (group, _), result in zip(batch, results, strict=True):
            group.results.append(result)
        batch.clear()

    for key, items in groups:
        group = _Group(key, len(items))
        waiting.append(group)
        for item in items:
            batch.append((group, item))
            if len(batch) >= size:
                flush()
        while waiting and len(waiting[0].results) == waiting[0].size:
            done = waiting.popleft()
            yield done.key, done.results
    flush()
    for group in waiting:
        yield group.key, group.results


def complete(results: Iterable[Result | Exception]) -> list[Result]:
    """A group's results.

    Raises:
        Exception: The first error among them.
    """
    results = list(results)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def read_ahead(
    read: Callable[[Source], Result], sources: Iterable[Source], threads: int = 2
) -> Iterator[Result]:
    """What ``read`` gives for each source, in order, while threads read the next ones.

    Args:
        read: Called in a thread.
        sources: Drawn as there is room: at most two of each thread wait to be given out.
        threads: How many.

    Raises:
        Exception: What ``read`` raises, in its source's turn.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read-ahead")
    pending: deque[Future[Result]] = deque()
    try:
        for source in sources:
            pending.append(pool.submit(read, source))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
