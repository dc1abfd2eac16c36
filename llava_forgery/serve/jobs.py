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
from typing import Any

from llava_forgery.serve.errors import ApiError, busy
from llava_forgery.serve.settings import Settings

logger = logging.getLogger(__name__)


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
        if self._cancel.is_set():
            raise Cancelled

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
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
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
        job = Job()
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

    def get(self, identity: str) -> Job:
        """A job by its id.

        Raises:
            ApiError: 404 where there is none, or none any more.
        """
        self._forget()
        if identity not in self._jobs:
            raise ApiError(404, "there is no such job, or its result was kept long enough", "job")
        job = self._jobs[identity]
        job.collected = job.collected or job.finished is not None
        return job

    def remove(self, identity: str) -> None:
        """Cancel a job, and forget it; raises as :meth:`get`."""
        self.get(identity).cancel()
        del self._jobs[identity]

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
        oldest = time.time() - self._settings.job_seconds
        for job in list(self._jobs.values()):
            if job.finished is not None and job.finished < oldest:
                del self._jobs[job.id]
