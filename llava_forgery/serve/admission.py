"""How much is taken on at once: requests, bytes; and nothing new once the server is to stop."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from llava_forgery.serve.errors import ApiError, busy
from llava_forgery.serve.settings import Settings


class Admission:
    """Counts what is worked on. Used in the event loop's thread alone.

    Args:
        settings: With ``max_requests`` and ``max_bytes_at_once``.

    Attributes:
        draining: Whether new work is refused.
        requests: Work that was begun and not finished.
        bytes: Of the bodies that are held.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.draining = False
        self.requests = 0
        self.bytes = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def work(self) -> Iterator[None]:
        """Take on a request, or a job behind one.

        Raises:
            ApiError: 503 once the server is to stop, 429 where too many are worked on.
        """
        if self.draining:
            raise ApiError(
                503,
                "the server is about to stop and takes nothing new; ask another one",
                "draining",
                headers={"Retry-After": "5", "Connection": "close"},
            )
        if self.requests >= self._settings.max_requests:
            raise busy(f"{self.requests} requests are worked on already; try again in 1 s", 1)
        self.requests += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.requests -= 1
            if not self.requests:
                self._idle.set()

    @contextmanager
    def memory(self) -> Iterator["Reservation"]:
        """Account for the bytes of one body, which are given back at the end."""
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            self.bytes -= reservation.bytes

    async def drain(self, seconds: float) -> bool:
        """Refuse new work, and wait for what runs; whether all of it ended in time."""
        self.draining = True
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


class Reservation:
    """Bytes that one request holds."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.bytes = 0

    def grow(self, count: int) -> None:
        """Hold so many more.

        Raises:
            ApiError: 413 for more than one request may hold, 429 for more than all may.
        """
        settings = self._admission._settings
        if self.bytes + count > settings.max_bytes:
            raise ApiError(
                413, f"the limit is {settings.max_bytes} bytes for one request", "too_large"
            )
        if self._admission.bytes + count > settings.max_bytes_at_once:
            raise busy("too many bytes are being received; try again in 2 s", 2)
        self.bytes += count
        self._admission.bytes += count
