"""Dialogues about a face over HTTP, as OpenAI's clients hold them."""

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from llava_forgery.infer.dialogue import PromptTooLong
from llava_forgery.infer.predictor import FaceInput
from llava_forgery.infer.verdict import P_YES_THRESHOLD
from llava_forgery.serve.admission import Reservation
from llava_forgery.serve.dialogues import Turn
from llava_forgery.serve.engine import Busy
from llava_forgery.serve.errors import ApiError, busy
from llava_forgery.serve.openai import ChatRequest, Completion, failed
from llava_forgery.serve.requests import read_json, unless_gone, upload_from_text, validated
from llava_forgery.serve.service import ServedModel, Service

logger = logging.getLogger(__name__)

_VERDICTS = 64


def add_chat(app: FastAPI, service: Service) -> None:
    """Add ``POST /v1/chat/completions``."""
    chat = _Chat(service)

    @app.post("/v1/chat/completions", openapi_extra=_schema())
    async def completions(request: Request) -> Response:
        """The answer to the last message, with the face's verdict beside it."""
        with ExitStack() as stack:
            stack.enter_context(service.admission.work())
            held = stack.enter_context(service.admission.memory())
            wanted = validated(ChatRequest, await read_json(request, service, held))
            if not wanted.stream:
                return JSONResponse(await unless_gone(request, chat.answer(wanted, held)))
            # What fails before the first word still gets a status.
            model, face, completion = await unless_gone(request, chat.prepare(wanted, held))
            stream = chat.stream(wanted, model, face, completion)
            return _Held(stream, stack.pop_all())


class _Stream:
    """An answer on its way: its pieces as server-sent events."""

    def __init__(self, completion: Completion, usage: bool, done: Callable[[Turn], None]) -> None:
        self._completion, self._usage, self._done = completion, usage, done
        self._loop, self._pieces = asyncio.get_running_loop(), asyncio.Queue()
        self.gone = threading.Event()
        self.future: Future[Turn] | None = None

    def put(self, piece: str | None) -> None:
        """Take a piece from another thread; None at the end."""
        self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    async def events(self) -> AsyncIterator[str]:
        """The verdict, the pieces, the end."""
        yield self._completion.first()
        while (piece := await self._pieces.get()) is not None:
            yield self._completion.piece(piece)
        try:
            turn = self.future.result()
        except Exception:
            logger.exception("an answer failed")
            yield failed(ApiError(500, "the server failed at this answer; its log says why"))
            return
        self._done(turn)
        yield self._completion.last(turn, self._usage)


class _Held(StreamingResponse):
    """A stream that gives back what its request holds, also where nobody ever reads it."""

    def __init__(self, stream: _Stream, held: ExitStack) -> None:
        super().__init__(stream.events(), media_type="text/event-stream")
        self._stream, self._held = stream, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            try:
                await super().__call__(scope, receive, send)
            finally:
                self._stream.gone.set()


def _schema() -> dict[str, Any]:
    schema = ChatRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


class _Chat:
    """What happens between a request and its completion."""

    def __init__(self, service: Service) -> None:
        self._service = service
        # By picture and face: a dialogue's later turns need not judge it again.
        self._verdicts: OrderedDict[str, tuple[FaceInput, dict[str, Any]]] = OrderedDict()

    async def prepare(
        self, wanted: ChatRequest, held: Reservation
    ) -> tuple[ServedModel, FaceInput, Completion]:
        """The face that is talked about, and its verdict.

        Raises:
            ApiError: As ``Service.find_faces``; 400 where there are fewer faces, or dialogue and
                answer are longer than the language model reads.
        """
        service = self._service
        model = service.model(wanted.model)
        if model.predictor.vlm is None:
            raise ApiError(
                400, f"{model.name} is a detector with no language model", "no_dialogue", "model"
            )
        options = wanted.options(service.settings, model.predictor.max_new_tokens)
        source, turns, question = wanted.dialogue(service.settings)
        upload = await upload_from_text(source, "picture", service, held)
        which = wanted.forgery
        key = f"{model.name} {upload.sha256} {which.face} {which.cropped}"
        if key not in self._verdicts:
            if upload.is_video:
                raise ApiError(400, "a dialogue is about a picture; send a frame", "media")
            with model.engine.expect():
                faces = await service.find_faces(model, upload, which.cropped)
                if which.face >= len(faces):
                    raise ApiError(
                        400, f"there are {len(faces)} faces; they count from 0", "invalid", "face"
                    )
                face = faces[which.face]
                try:
                    future = model.engine.predict_scores([face])
                except Busy as error:
                    raise busy(str(error), error.retry_after) from None
            ((score, p_yes),) = await asyncio.wrap_future(future)
            self._verdicts[key] = face, _verdict(model, face, score, p_yes)
            if len(self._verdicts) > _VERDICTS:
                self._verdicts.popitem(last=False)
        self._verdicts.move_to_end(key)
        face, verdict = self._verdicts[key]
        check, score = model.dialogues.check_length, verdict["score"]
        try:
            await service.read(check, face, score, turns, question, options)
        except PromptTooLong as error:
            raise ApiError(400, str(error), "context_length_exceeded", "messages") from None
        return model, face, Completion(model.name, verdict)

    async def answer(self, wanted: ChatRequest, held: Reservation) -> dict[str, Any]:
        """The completion in one piece."""
        model, face, completion = await self.prepare(wanted, held)
        gone = threading.Event()
        try:
            future = self._ask(wanted, model, face, lambda text: None, gone.is_set)
            turn = await asyncio.wrap_future(future)
        finally:
            gone.set()
        self._count(model, turn)
        return completion.whole(turn)

    def stream(
        self, wanted: ChatRequest, model: ServedModel, face: FaceInput, completion: Completion
    ) -> "_Stream":
        """The completion piece by piece; begun when this returns."""
        usage = wanted.stream_options is not None and wanted.stream_options.include_usage
        stream = _Stream(completion, usage, lambda turn: self._count(model, turn))
        stream.future = self._ask(wanted, model, face, stream.put, stream.gone.is_set)
        stream.future.add_done_callback(lambda _: stream.put(None))
        return stream

    def _ask(
        self,
        wanted: ChatRequest,
        model: ServedModel,
        face: FaceInput,
        on_text: Callable[[str], None],
        gone: Callable[[], bool],
    ) -> Future[Turn]:
        settings = self._service.settings
        _, turns, question = wanted.dialogue(settings)
        options = wanted.options(settings, model.predictor.max_new_tokens)
        try:
            return model.dialogues.ask(face, turns, question, options, on_text, gone)
        except Busy as error:
            raise busy(str(error), error.retry_after) from None

    def _count(self, model: ServedModel, turn: Turn) -> None:
        self._service.metrics.tokens.labels(model.name).inc(turn.completion_tokens)


def _verdict(model: ServedModel, face: FaceInput, score: float, p_yes: float) -> dict[str, Any]:
    thresholds = model.predictor.kfd.thresholds
    return {
        "box": [round(float(value), 1) for value in face.box],
        "score": score,
        "band": thresholds.band(score),
        "threshold": thresholds.fake,
        "p_yes": p_yes,
        "agree": (score >= thresholds.fake) == (p_yes >= P_YES_THRESHOLD),
    }
