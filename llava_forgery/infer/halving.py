"""Batches that do not fit into memory are halved until they do."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of a GPU or of the machine."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # The allocators of CPUs and some libraries say it in words only.
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "not enough memory" in text
    )


def in_halves(run: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item]) -> list[Result]:
    """The results of ``run(items)``; where memory runs out, those of the two halves.

    Args:
        run: Gives one result for each item, in order.
        items: Any number of them.

    Raises:
        Exception: What ``run`` raises; that memory ran out only where one item was too many.
    """
    try:
        return run(items)
    except (RuntimeError, MemoryError) as error:
        if len(items) < 2 or not is_out_of_memory(error):
            raise
    # Not inside the except: its traceback holds the tensors of the batch that was too large.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = (len(items) + 1) // 2
    logger.warning("%d images at once are too many for the memory: %d", len(items), half)
    return in_halves(run, items[:half]) + in_halves(run, items[half:])
