"""Downloads: a name that the user gives may lead to one, a name that stands in a file may not.

An adapter's file names its host, a detector's its encoder. Whoever wrote the file would otherwise
choose what is downloaded and loaded.
"""

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from os import PathLike

from llava_forgery.optional import lazy

huggingface_hub = lazy("huggingface_hub")
transformers = lazy("transformers")

logger = logging.getLogger(__name__)

_allowed: ContextVar[bool] = ContextVar("allow_download", default=False)
_lock = threading.Lock()
# Loads that go on without the hub, in all threads, and the switches as they were before the first.
_count = 0
_before: tuple[bool, int] = (False, 0)


@contextmanager
def allow_downloads(allowed: bool = True) -> Iterator[None]:
    """Let what files name be downloaded inside; False leaves what holds around it."""
    token = _allowed.set(allowed or _allowed.get())
    try:
        yield
    finally:
        _allowed.reset(token)


@contextmanager
def named_by(file: str | PathLike, names: Mapping[str, str]) -> Iterator[None]:
    """Load inside what a file names, from this machine alone unless downloads are allowed.

    As long as it lasts, other threads of the process do not reach the hub either: the packages
    that load models share one switch.

    Args:
        file: Where the names stand.
        names: What each name is of, such as "host", and the name.

    Raises:
        FileNotFoundError: It is not on this machine; the message has the names.
    """
    told = " and ".join(f"the {kind} {name!r}" for kind, name in names.items())
    if _allowed.get():
        logger.info("%s names %s", file, told)
        yield
        return
    try:
        with _without_hub():
            yield
    except (OSError, RuntimeError) as error:
        if not _is_missing(error):
            raise
        raise FileNotFoundError(
            f"{file} names {told}, which is not on this machine ({str(error).splitlines()[0]}). "
            "What a file names is not downloaded unasked: if you trust it, allow it "
            "(--allow-download, allow_download=True) or fetch it first"
        ) from error


def _is_missing(error: BaseException | None) -> bool:
    """Whether a file of the hub was looked for and is not in its cache."""
    errors = huggingface_hub.errors
    while error is not None:
        if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _without_hub() -> Iterator[None]:
    global _count, _before
    constants, code = huggingface_hub.constants, transformers.dynamic_module_utils
    with _lock:
        if not _count:
            _before = (constants.HF_HUB_OFFLINE, code.TIME_OUT_REMOTE_CODE)
            constants.HF_HUB_OFFLINE = True
            # Where others' packages leave trust_remote_code out, nobody is asked to run code.
            code.TIME_OUT_REMOTE_CODE = 0
        _count += 1
    try:
        yield
    finally:
        with _lock:
            _count -= 1
            if not _count:
                constants.HF_HUB_OFFLINE, code.TIME_OUT_REMOTE_CODE = _before
