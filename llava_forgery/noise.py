"""Messages of other packages that are suppressed, as no user can act on them.

Only those listed here are suppressed, and only while our code runs: real problems are reported, and
a program's configuration of logging and warnings is restored. Commands suppress reports of their
own progress if ``--quiet`` is given.
"""

import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

# Logger and the beginning of its message.
LINES = {
    # It has another kernel for the same purpose.
    "bitsandbytes.backends.cpu.ops": r"Failed to load CPU gemm_4bit_forward",
    "numexpr.utils": r"NumExpr defaulting to|Note: ",
    # If a GPU cannot be used, torch says why.
    "DeepSpeed": r"Setting accelerator to CPU",
    # A host's sampling settings; answers here are not sampled.
    "transformers.generation.configuration_utils": r"The following generation flags are not valid",
    # Names used by other packages.
    "transformers.configuration_utils": r"`torch_dtype` is deprecated",
    # The same; and a table of tensors that a model does not use, if it lists no other problem.
    "transformers.modeling_utils": r"`torch_dtype` is deprecated"
    r"|(?s:(?!.*(MISSING|MISMATCH|CONVERSION)).*LOAD REPORT)",
}
# Category, the beginning of its message, and the module that it is attributed to.
WARNINGS = ((FutureWarning, r"`(is_)?gradient_checkpointing` is deprecated", r"transformers\."),)
# transformers' progress bars of reading and writing files on this disk.
BARS = ("Loading weights", "Writing model shards")
# If it is not set, tokenizers warns in every process that is forked after its first use.
FORKS = "TOKENIZERS_PARALLELISM"
# tqdm's own variable, so that bars of other packages and child processes respect it as well.
NO_BARS = "TQDM_DISABLE"

_lock = threading.Lock()
_entered = 0
_undo = ExitStack()


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress these messages; in any number of threads, and also as a decorator."""
    global _entered
    with _lock:
        _entered += 1
        if _entered == 1:
            _begin()
        _hide_bars()
    try:
        yield
    finally:
        with _lock:
            _entered -= 1
            if not _entered:
                _undo.close()
            else:
                # What was imported inside draws bars from now on.
                _hide_bars()


@contextmanager
def without_notices() -> Iterator[None]:
    """Suppress progress bars and our own notices; warnings and errors are shown."""
    ours, before = logging.getLogger("llava_forgery"), os.environ.get(NO_BARS)
    level = ours.level
    ours.setLevel(logging.WARNING)
    os.environ[NO_BARS] = "1"
    try:
        yield
    finally:
        ours.setLevel(level)
        if before is None:
            del os.environ[NO_BARS]
        else:
            os.environ[NO_BARS] = before


def notices_wanted() -> bool:
    """Whether to show progress bars and notices."""
    return os.environ.get(NO_BARS, "") in ("", "0")


def _begin() -> None:
    for name, pattern in LINES.items():
        logger, added = logging.getLogger(name), _Filter(pattern)
        logger.addFilter(added)
        _undo.callback(logger.removeFilter, added)
    for category, message, module in WARNINGS:
        before = list(warnings.filters)
        warnings.filterwarnings("ignore", message, category, module)
        if (added := warnings.filters[0]) not in before:
            _undo.callback(_remove, added)
    if FORKS not in os.environ:
        os.environ[FORKS] = "false"
        _undo.callback(os.environ.pop, FORKS, None)


def _hide_bars() -> None:
    # Packages not imported yet have no bars; commands import them after their start.
    transformers = sys.modules.get("transformers.utils.logging")
    if transformers is None:
        return
    hook = transformers.set_tqdm_hook(None)
    if isinstance(hook, _Bars):
        transformers.set_tqdm_hook(hook)
        return
    transformers.set_tqdm_hook(_Bars(hook))
    _undo.callback(transformers.set_tqdm_hook, hook)


class _Filter(logging.Filter):
    def __init__(self, pattern: str) -> None:
        super().__init__()
        self.pattern = re.compile(pattern)

    def filter(self, record: logging.LogRecord) -> bool:
        return self.pattern.match(record.getMessage()) is None


def _remove(added: Any) -> None:
    if added in warnings.filters:
        warnings.filters.remove(added)


class _Bars:
    """Makes progress bars for transformers through the previous hook."""

    def __init__(self, hook: Callable[..., Any] | None) -> None:
        self.hook = hook

    def __call__(self, factory: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        if kwargs.get("desc") in BARS:
            kwargs = {**kwargs, "disable": True}
        return factory(*args, **kwargs) if self.hook is None else self.hook(factory, args, kwargs)
