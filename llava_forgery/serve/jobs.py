"""Videos that take longer than a client should wait: begun, asked for, kept for a limited time."""

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from llava_forgery.serve.errors import ApiError, busy
from llava_forgery.serve.settings import Settings

logger = logging.getLogger(__name__)

# Between two times at which a job that runs tells the others how far it is.
_TELL_SECONDS = 0.5


class Board(Protocol):
    """Where servers that share their clients tell each other of their jobs. Any thread may call."""

    def put(self, state: dict[str, Any]) -> bool:
        """Take the state of a job, as ``Job.to_dict`` gives it; whether it is still wanted."""

    def get(self, identity: str) -> dict[str, Any] | None:
        """The last state of a job, None where there is none."""

    def remove(self, identity: str) -> bool:
        """Forget a job and want it no more; whether there was one."""


class Cancelled(Exception):
    """Whoever asked for the work does not want it any more."""


@dataclass(eq=False)
class Job:
    """One piece of work."""

    id: str = field(default_factory=lambda: f"job-{secrets.token_urlsafe(18)}")
    """Not to be guessed: who knows it gets the result."""
    created: float = field(default_factory=time.time)
    total: int = 0
    """Steps, such as frames; 0 until it is known."""
    done: int = 0
    """Steps that are behind."""
    status: str = "queued"
    """queued, running, done, failed or cancelled."""
    result: Any = None
    error: ApiError | None = None
    collected: bool = False
    """Whether a client has seen how it ended."""
    finished: float | None = None
    board: Board | None = None
    """Where others see it; None where nobody else is asked for it."""
    _told: float = 0.0
    _cancel: threading.Event = field(default_factory=threading.Event)
    _ended: asyncio.Event = field(default_factory=asyncio.Event)

    def cancel(self) -> None:
        """Ask the work to end; it does at its next step."""
        self._cancel.set()

    def step(self, count: int = 1) -> None:
        """Called by the work after each step, and before what takes long.

        Raises:
            Cancelled: It is to end.
        """
        self.done += count
        if time.monotonic() - self._told > _TELL_SECONDS:
            self.tell()
        if self._cancel.is_set():
            raise Cancelled

    def tell(self) -> None:
        """Put the state on the board; a job that was removed there is to end."""
        if self.board is not None:
            self._told = time.monotonic()
            if not self.board.put(self.to_dict()):
                self.cancel()

    async def announce(self) -> None:
        """Return when the others know of it."""
        if self.board is not None:
            await asyncio.to_thread(self.tell)

    async def wait(self) -> Any:
        """The result.

        Raises:
            ApiError: What it failed with.
        """
        await self._ended.wait()
        self.collected = True
        if self.error is not None:
            raise self.error
        return self.result

    def to_dict(self) -> dict[str, Any]:
        """What a client is told."""
        return {
            "id": self.id,
            "object": "detect.job",
            "created": int(self.created),
            "status": self.status,
            "progress": round(min(1.0, self.done / self.total), 4) if self.total else 0.0,
            "result": self.result,
            "error": self.error.body()["error"] if self.error else None,
        }


class Jobs:
    """The jobs of a server. Used in the event loop's thread alone; the work runs in its own.

    Args:
        settings: With ``jobs``, how many may wait, run and be kept, and ``job_seconds``.
        board: Shared with other servers, any of which may be asked for a job of this one.
    """

    def __init__(self, settings: Settings, board: Board | None = None) -> None:
        self._settings, self._board = settings, board
        self._jobs: dict[str, Job] = {}
        self._tasks: set[asyncio.Task] = set()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="job")

    def start(self, work: Callable[[Job], Any], held: AbstractContextManager) -> Job:
        """Begin a job.

        Args:
            work: Called in another thread; calls ``job.step``.
            held: Left when the job has ended, whichever way.

        Raises:
            ApiError: 429 where there are too many.
        """
        self._forget()
        if len(self._jobs) >= self._settings.jobs:
            ended = [job for job in self._jobs.values() if job.collected]
            if not ended:
                held.__exit__(None, None, None)
                raise busy("too many videos are waiting or kept; try again in 10 s", 10)
            del self._jobs[ended[0].id]
        job = Job(board=self._board)
        self._jobs[job.id] = job
        task = asyncio.create_task(self._run(job, work, held))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return job

    async def _run(
        self, job: Job, work: Callable[[Job], Any], held: AbstractContextManager
    ) -> None:
        def begin() -> Any:
            job.step(0)
            job.status = "running"
            job.tell()
            return work(job)

        with held:
            try:
                job.result = await asyncio.get_running_loop().run_in_executor(self._pool, begin)
                job.status = "done"
            except Cancelled:
                job.status = "cancelled"
                job.error = ApiError(410, "the job was cancelled", "cancelled")
            except ApiError as error:
                job.status, job.error = "failed", error
            except Exception:
                logger.exception("a job failed")
                job.status = "failed"
                job.error = ApiError(500, "the server failed at this video; its log says why")
            job.finished = time.time()
            job._ended.set()
            await job.announce()

    async def state(self, identity: str) -> dict[str, Any]:
        """What a client is told of a job of this server, or of one that shares its board.

        Raises:
            ApiError: 404 where there is none, or none any more.
        """
        self._forget()
        job = self._jobs.get(identity)
        if self._board is None:
            state = job and job.to_dict()
        else:
            # Another server may have been told to forget one of ours.
            state = await asyncio.to_thread(self._board.get, identity)
        if state is None:
            self._jobs.pop(identity, None)
            raise _unknown()
        if job is not None:
            job.collected = job.collected or job.finished is not None
        return state

    async def remove(self, identity: str) -> None:
        """Cancel a job, and forget it; raises as :meth:`state`."""
        self._forget()
        job = self._jobs.pop(identity, None)
        if job is not None:
            job.cancel()
        known = self._board is not None and await asyncio.to_thread(self._board.remove, identity)
        if job is None and not known:
            raise _unknown()

    def count(self) -> dict[str, int]:
        """How many jobs there are in each state."""
        self._forget()
        states = dict.fromkeys(("queued", "running", "done", "failed", "cancelled"), 0)
        for job in self._jobs.values():
            states[job.status] += 1
        return states

    async def collected(self) -> None:
        """Return once every result was asked for."""
        while any(job.finished is None or not job.collected for job in self._jobs.values()):
            await asyncio.sleep(0.05)

    def close(self) -> None:
        """End the thread, and what runs in it at its next step."""
        for job in self._jobs.values():
            job.cancel()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _forget(self) -> None:
        """Of what has ended long ago."""
        oldest = time.time() - self._settings.job_seconds
        for job in list(self._jobs.values()):
            if job.finished is not None and job.finished < oldest:
                del self._jobs[job.id]


def _unknown() -> ApiError:
    return ApiError(404, "there is no such job, or its result was kept long enough", "job")
