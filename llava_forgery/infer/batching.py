"""Faces of several pictures share batches, bounded by faces and tokens; each gets back its own."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from llava_forgery.infer.halving import in_halves

logger = logging.getLogger(__name__)

Key = TypeVar("Key")
Item = TypeVar("Item")
Result = TypeVar("Result")
Run = Callable[[Sequence[Item]], list[Result]]


@dataclass(frozen=True)
class BatchLimits:
    """How much is computed at once.

    Raises:
        ValueError: A limit below 1.
    """

    faces: int = 8
    """Most items of a batch."""
    tokens: int | None = None
    """Most tokens of a batch, padding included: items times the longest of them; None for any."""

    def __post_init__(self) -> None:
        if self.faces < 1 or (self.tokens is not None and self.tokens < 1):
            raise ValueError(
                f"expected limits of 1 or more, got faces={self.faces}, tokens={self.tokens}"
            )

    def allow(self, faces: int, longest: int = 0) -> bool:
        """Whether so many items may share a batch; a single one always may.

        Args:
            faces: How many.
            longest: Tokens of the longest of them.
        """
        if faces <= 1:
            return True
        return faces <= self.faces and (self.tokens is None or faces * longest <= self.tokens)


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
    groups: Iterable[tuple[Key, Sequence[Item]]],
    run: Run,
    limits: BatchLimits = BatchLimits(),
    tokens: Callable[[Item], int] | None = None,
) -> Iterator[tuple[Key, list[Result | Exception]]]:
    """Run groups of items, such as the faces of pictures, in batches that they share.

    Groups are drawn when a batch has room, so any number of them runs in bounded memory.

    Args:
        groups: A key, such as a file's name, and its items; there may be none.
        run: Gives one result for each item, in order.
        limits: How much is computed at once.
        tokens: An item's length, for ``limits.tokens``.

    Yields:
        Each group's key and its results as :func:`run_each` gives them, in the groups' order, as
        soon as they are complete.

    Raises:
        ValueError: The limits bound tokens, and ``tokens`` is not given.
    """
    if limits.tokens is not None and tokens is None:
        raise ValueError("limits.tokens needs the length of an item: pass tokens=")
    waiting: deque[_Group[Key]] = deque()
    batch: list[tuple[_Group[Key], Item]] = []
    longest = 0

    def flush() -> None:
        nonlocal longest
        results = run_each(run, [item for _, item in batch])
        for (group, _), result in zip(batch, results, strict=True):
            group.results.append(result)
        batch.clear()
        longest = 0

    for key, items in groups:
        group = _Group(key, len(items))
        waiting.append(group)
        for item in items:
            length = tokens(item) if tokens else 0
            if not limits.allow(len(batch) + 1, max(longest, length)):
                flush()
            batch.append((group, item))
            longest = max(longest, length)
        if len(batch) >= limits.faces:
            flush()
        while waiting and len(waiting[0].results) == waiting[0].size:
            done = waiting.popleft()
            yield done.key, done.results
    flush()
    for group in waiting:
        yield group.key, group.results
