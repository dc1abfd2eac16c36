"""Downloads: names given by the user may be downloaded, names in files may not.

An adapter's file names its host, a detector's its encoder. Otherwise the author of the file would
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
# Number of loads without the hub in all threads, and the switches before the first of them.
_count = 0
_before: tuple[bool, int] = (False, 0)


@contextmanager
def allow_downloads(allowed: bool = True) -> Iterator[None]:
    """Context in which models that files name may be downloaded; False has no effect."""
    token = _allowed.set(allowed or _allowed.get())
    try:
        yield
    finally:
        _allowed.reset(token)


@contextmanager
def named_by(file: str | PathLike, names: Mapping[str, str]) -> Iterator[None]:
    """Context to load what a file names, only from this machine unless downloads are allowed.

    Meanwhile other threads of the process do not reach the hub either, as the packages that load
    models share one switch.

    Args:
        file: File that contains the names.
        names: Names by kind, such as "host".

    Raises:
        FileNotFoundError: The model is not on this machine; the message has the names.
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
            "Models named in files are not downloaded by default: if you trust it, allow it "
            "(--allow-download, allow_download=True) or download it first"
        ) from error


def _is_missing(error: BaseException | None) -> bool:
    """Whether a file of the hub is missing in its cache."""
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
            # If other packages omit trust_remote_code, nobody is asked to run code.
            code.TIME_OUT_REMOTE_CODE = 0
        _count += 1
    try:
        yield
    finally:
        with _lock:
            _count -= 1
            if not _count:
                constants.HF_HUB_OFFLINE, code.TIME_OUT_REMOTE_CODE = _before
