"""Ray clusters: join a running one, or start one on this machine and stop it after use."""

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from llava_forgery.optional import require


def require_ray(library: str, feature: str) -> ModuleType:
    """Ray with one of its libraries, such as ``data``, or an ImportError that names the extra."""
    require(f"ray.{library}", extra="ray", feature=feature)
    return require("ray", extra="ray", feature=feature)


# Ray gives its processes 30 seconds, which is little where the machine has other work.
_STARTS = 5


@contextmanager
def connected(
    ray: ModuleType,
    address: str | None = None,
    cpus: int | None = None,
    runtime_env: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """Connect to a cluster, or start one that is stopped on exit.

    Args:
        ray: The package.
        address: Address of a running cluster, such as ``auto``; None starts one.
        cpus: Number of processors of a started cluster; None for all.
        runtime_env: Runtime environment of the workers; see Ray's documentation.

    Raises:
        OSError: Ray does not start or answer, or a worker fails for reasons other than a file.
    """
    # Ray's own messages are about its tasks, not about files; its logs keep them.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"include_dashboard": False, "num_cpus": cpus}
        options["runtime_env"] = dict(runtime_env or {})
    else:
        # Of the packages installed there, only this one may be another version.
        package = str(Path(__file__).parent)
        options["runtime_env"] = {"py_modules": [package], **(runtime_env or {})}
        options["address"] = address
    _begin(ray, options, 1 if address else _STARTS)
    try:
        for name in ("ray.data", "ray.serve", "ray"):
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    except ray.exceptions.RayError as error:
        raise OSError(f"a worker failed, see Ray's logs: {last_line(error)}") from error
    finally:
        ray.shutdown()


def _begin(ray: ModuleType, options: Mapping[str, Any], times: int) -> None:
    for left in reversed(range(times)):
        try:
            with _no_native_lines(), _own_signals():
                ray.init(**options)
            return
        except Exception as error:
            # Ray raises bare exceptions if its processes do not answer in time.
            ray.shutdown()
            if not left:
                reason = last_line(error)
                raise OSError(f"Ray could not be started or joined: {reason}") from error


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the caller's handler of SIGTERM, if any, which Ray would replace by its own."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _no_native_lines() -> Iterator[None]:
    """Hide the message of Ray's C++ on stderr about its log level."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def last_line(error: Exception) -> str:
    """Last line of a message that contains the traceback of another process."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
