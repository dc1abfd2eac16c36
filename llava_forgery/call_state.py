"""State of a single call of a model that threads and asyncio tasks share.

Hooks cannot receive arguments: what they need from the current call is in a context variable, which
is separate for every thread and task. One variable serves all owners; one for each would never be
freed, and could not be copied with its model.
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
    """Context in which :func:`of_call` returns a value, in this thread or task.

    Args:
        owner: A module or something attached to one; compared by identity.
        value: Value for this call; nested calls hide it while they run.
    """
    token = _values.set({**_values.get(), owner: value})
    try:
        yield
    finally:
        _values.reset(token)


def of_call(owner: Any) -> Any:
    """The owner's value for the current call; None outside of one."""
    return _values.get().get(owner)


def lock_of(owner: Any) -> AbstractContextManager[Any]:
    """The owner's own lock, for work that threads must do one at a time. Copies do not share it."""
    return _locks.setdefault(owner, RLock())
