"""What belongs to one call of a model that threads and asyncio tasks share.

A hook cannot be handed arguments: what it needs of the call that runs lies in a context variable,
of which every thread and every task has its own. One variable serves all owners; one for each would
never be freed, and could not be copied with its model.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from threading import RLock
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

_values: ContextVar[Mapping[Any, Any]] = ContextVar(
    "llava_forgery_calls", default=MappingProxyType({})
)
_locks: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


@contextmanager
def in_call(owner: Any, value: Any) -> Iterator[None]:
    """Let :func:`of_call` give a value inside, in this thread or task.

    Args:
        owner: A module, or what hangs on one; compared by identity.
        value: Of this call; calls inside calls hide it while they run.
    """
    token = _values.set({**_values.get(), owner: value})
    try:
        yield
    finally:
        _values.reset(token)


def of_call(owner: Any) -> Any:
    """The owner's value of the call that runs, None outside one."""
    return _values.get().get(owner)


def lock_of(owner: Any) -> AbstractContextManager[Any]:
    """The owner's own lock, for what threads must do one after the other. No copy shares it."""
    return _locks.setdefault(owner, RLock())
