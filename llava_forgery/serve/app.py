"""The application: routes over the service."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import llava_forgery
from llava_forgery.serve.chat import add_chat
from llava_forgery.serve.errors import add_error_handlers
from llava_forgery.serve.guard import Guard
from llava_forgery.serve.metrics import Metrics
from llava_forgery.serve.requests import read_upload, unless_gone
from llava_forgery.serve.service import DetectOptions, Service
from llava_forgery.serve.site import add_page


def create_app(service: Service) -> FastAPI:
    """The ASGI application of a service, which ends with it.

    Args:
        service: Models and limits.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    # The pages that FastAPI would add load their scripts from elsewhere.
    app = FastAPI(
        title="llava-forgery",
        version=llava_forgery.__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    add_error_handlers(app)
    _add_state(app, service)
    _add_detection(app, service)
    add_chat(app, service)
    add_page(app, service)
    # The last one added is the first to see a request.
    app.add_middleware(_Measured, metrics=service.metrics)
    app.add_middleware(Guard, settings=service.settings)
    return app


def _add_state(app: FastAPI, service: Service) -> None:
    started = int(time.time())

    @app.get("/health")
    async def health() -> Response:
        """Whether the process works."""
        status = 200 if service.alive else 500
        return JSONResponse({"status": "ok" if service.alive else "a thread ended"}, status)

    @app.get("/ready")
    async def ready() -> Response:
        """Whether new work is taken."""
        able = service.alive and not service.admission.draining
        return JSONResponse({"status": "ready" if able else "draining"}, 200 if able else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """In Prometheus's text format."""
        for status, count in service.jobs.count().items():
            service.metrics.jobs.labels(status).set(count)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict:
        """The models, as OpenAI lists them."""
        return {"object": "list", "data": [_model(name) for name in service.models]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict:
        """One of them."""
        return _model(service.model(name).name)

    def _model(name: str) -> dict:
        return {"id": name, "object": "model", "created": started, "owned_by": "llava-forgery"}


def _add_detection(app: FastAPI, service: Service) -> None:
    @app.post("/v1/detect", openapi_extra=_detect_schema())
    async def detect(request: Request) -> Response:
        """The record of a picture or of a short video; of other videos a job (202)."""
        with ExitStack() as stack:
            stack.enter_context(service.admission.work())
            held = stack.enter_context(service.admission.memory())
            upload, options = await read_upload(request, service, held)
            service.model(options.model)
            if not upload.is_video:
                work = service.judge_picture(upload, options)
                return JSONResponse(await unless_gone(request, work))
            frames = await service.read(service.count_frames, upload, options)
            work = partial(service.judge_video, upload, options)
            job = service.jobs.start(work, stack.pop_all())
        if frames > service.settings.inline_frames:
            await job.announce()
            location = f"/v1/jobs/{job.id}"
            return JSONResponse(
                {**job.to_dict(), "url": location}, 202, {"Location": location, "Retry-After": "1"}
            )
        try:
            return JSONResponse(await unless_gone(request, job.wait()))
        finally:
            await service.jobs.remove(job.id)

    @app.get("/v1/jobs/{identity}")
    async def job(identity: str) -> dict:
        """The state of a job, and its result."""
        return await service.jobs.state(identity)

    @app.delete("/v1/jobs/{identity}", status_code=204)
    async def cancel(identity: str) -> None:
        """Cancel a job, or forget its result."""
        await service.jobs.remove(identity)


def _detect_schema() -> dict:
    options = DetectOptions.model_json_schema()["properties"]
    form = {"file": {"type": "string", "format": "binary"}, **options}
    values = {"file": {"type": "string"}, "name": {"type": "string"}, **options}
    content = {
        kind: {"schema": {"type": "object", "required": ["file"], "properties": properties}}
        for kind, properties in (("multipart/form-data", form), ("application/json", values))
    }
    return {"requestBody": {"required": True, "content": content}}


class _Measured:
    """Middleware that counts requests by route and status, and their seconds."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            # Not the path itself: whoever asks for many would make as many counters.
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(time.monotonic() - started)
