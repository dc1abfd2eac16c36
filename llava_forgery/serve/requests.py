"""From HTTP requests to what the service takes; and answers that nobody waits for any more."""

import asyncio
import base64
import binascii
from collections.abc import Coroutine
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

from fastapi import Request
from pydantic import BaseModel, ValidationError

from llava_forgery.serve.admission import Reservation
from llava_forgery.serve.body import parse_form, parse_json_body, read_body
from llava_forgery.serve.errors import ApiError
from llava_forgery.serve.fetch import fetch
from llava_forgery.serve.media import Upload
from llava_forgery.serve.service import DetectOptions, Service

Options = TypeVar("Options", bound=BaseModel)
Result = TypeVar("Result")


async def read_json(request: Request, service: Service, held: Reservation) -> dict[str, Any]:
    """The request's JSON object; raises as :func:`read_body` and :func:`parse_json_body`."""
    return parse_json_body(await read_body(request, service.settings, held))


async def read_upload(
    request: Request, service: Service, held: Reservation
) -> tuple[Upload, DetectOptions]:
    """A file and the options beside it, from a form or from JSON.

    Raises:
        ApiError: 415 for another content type; 400 for anything that is not as documented.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        form = await parse_form(request, await read_body(request, service.settings, held))
        return Upload.of(form.file, form.name), validated(DetectOptions, form.fields)
    if kind == "application/json":
        values = await read_json(request, service, held)
        source, name = values.pop("file", None), values.pop("name", "")
        if not isinstance(source, str) or not isinstance(name, str):
            raise ApiError(
                400, "'file' must be base64 text or a data URL, and 'name' text", "invalid", "file"
            )
        options = validated(DetectOptions, values)
        return await upload_from_text(source, name, service, held), options
    raise ApiError(
        415, "expected multipart/form-data with a file, or application/json", "content_type"
    )


async def upload_from_text(source: str, name: str, service: Service, held: Reservation) -> Upload:
    """A file from base64, a data URL, or the address of one where that is allowed.

    Raises:
        ApiError: 400 for anything else; as :func:`fetch`.
    """
    if source[:5].lower() == "data:":
        return Upload.of(_data_url(source), name)
    if "://" in source[:12]:
        if not service.settings.allow_urls:
            raise ApiError(
                400,
                "this server fetches no addresses (--allow-urls); send the file as a data URL",
                "url_not_allowed",
            )
        data = await fetch(source, service.settings)
        held.grow(len(data))
        return Upload.of(data, name or source.partition("?")[0])
    return Upload.of(_base64(source), name)


def _data_url(source: str) -> bytes:
    head, comma, data = source.partition(",")
    if not comma:
        raise ApiError(400, "the data URL has no comma", "media")
    return _base64(data) if head.lower().endswith(";base64") else unquote_to_bytes(data)


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "the file is not valid base64", "media") from None


def validated(kind: type[Options], values: dict[str, Any]) -> Options:
    """Options from what a client sent.

    Raises:
        ApiError: 400; it names the first parameter at fault.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part)[:60] for part in first["loc"])[:200]
        raise ApiError(400, f"{where}: {first['msg']}", "invalid", where) from None


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of work, which is cancelled when its client goes away.

    Args:
        request: Whose body was read.
        work: What its answer takes.

    Raises:
        ApiError: What the work raises; or that nobody waits for it any more.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(400, "the client went away", "disconnected")
        return task.result()
    finally:
        for future in (task, watcher):
            future.cancel()
