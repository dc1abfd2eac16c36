"""The application on a socket: uvicorn, which SIGTERM ends after what runs."""

import asyncio
import logging
import signal
from types import FrameType

import uvicorn
from fastapi import FastAPI

from llava_forgery.serve.app import create_app
from llava_forgery.serve.service import Service

logger = logging.getLogger(__name__)

_KEEP_ALIVE = 15
_BACKLOG = 256


class Server(uvicorn.Server):
    """A server that first stops taking new work, and answers until what it has begun is done.

    Until then ``/ready`` says 503, new work gets 503 and jobs can be asked for. A second signal
    ends it at once.

    Args:
        service: Models and limits; with the address.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.app: FastAPI = create_app(service)
        settings = service.settings
        config = uvicorn.Config(
            self.app,
            host=settings.host,
            port=settings.port,
            # Connections that send nothing are few and short-lived, whoever opens them.
            limit_concurrency=4 * settings.max_requests,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=settings.drain_seconds or None,
            backlog=_BACKLOG,
            h11_max_incomplete_event_size=2**14,
            server_header=False,
            ws="none",
            log_config=None,
            access_log=False,
        )
        super().__init__(config)
        self._draining: asyncio.Task | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list | None = None) -> None:
        """Listen; see uvicorn."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end, or end at once; called by the system's signals."""
        if self._loop is None or self.service.admission.draining:
            self.should_exit = True
            self.force_exit = True
            return
        logger.info("%s: finishing what runs", signal.Signals(sig).name)
        self.service.admission.draining = True
        self._loop.call_soon_threadsafe(self._begin_to_end)

    def _begin_to_end(self) -> None:
        self._draining = asyncio.ensure_future(self._end())

    async def _end(self) -> None:
        if not await self.service.drain():
            logger.warning("some work or results were left after the time for it")
        self.should_exit = True
