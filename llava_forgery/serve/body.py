"""Reading a request's body within its limits, into memory alone: JSON, or a form with one file."""

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from llava_forgery.files import refuse_constant
from llava_forgery.serve.admission import Reservation
from llava_forgery.serve.errors import ApiError
from llava_forgery.serve.settings import Settings

_FIELDS = 32
_FIELD_BYTES = 64 * 2**10
_DEPTH = 32


@dataclass(frozen=True)
class Form:
    """A form's file and fields."""

    file: bytes
    name: str
    """What the client calls the file; "" where it does not."""
    fields: dict[str, str]


class _InMemory(MultiPartParser):
    # Starlette's own writes what is larger than a megabyte to the disk.
    spool_max_size = 2**62


async def read_body(request: Request, settings: Settings, held: Reservation) -> bytes:
    """The whole body.

    Raises:
        ApiError: 408 where it takes longer than ``upload_seconds``; 413 or 429 by its size, before
            it is read where the client says how long it is; 400 where the client goes away.
    """
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > settings.max_bytes:
        await _discard(request, settings)
        held.grow(int(announced))
    data = bytearray()
    try:
        async with asyncio.timeout(settings.upload_seconds):
            async for chunk in request.stream():
                held.grow(len(chunk))
                data += chunk
    except TimeoutError:
        raise ApiError(
            408,
            f"the request did not arrive within {settings.upload_seconds} s",
            "too_slow",
            headers={"Connection": "close"},
        ) from None
    except ClientDisconnect:
        raise ApiError(400, "the client went away", "disconnected") from None
    return bytes(data)


async def _discard(request: Request, settings: Settings) -> None:
    """Take a little of what is too large: a client that still sends may not read the answer."""
    taken = 0
    try:
        async with asyncio.timeout(2):
            async for chunk in request.stream():
                taken += len(chunk)
                if taken > 2 * settings.max_bytes:
                    return
    except (TimeoutError, ClientDisconnect):
        return


def parse_json_body(body: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ApiError: 400 for what is none, or is nested deeper than any request needs.
    """
    try:
        value = json.loads(body, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {_reason(error)}", "json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object", "json")
    if _depth(value) > _DEPTH:
        raise ApiError(400, f"the JSON is nested more than {_DEPTH} levels deep", "json")
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return str(error)


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level:
        deepest += 1
        children = []
        for item in level:
            if isinstance(item, dict):
                children += item.values()
            elif isinstance(item, list):
                children += item
        level = children
    return deepest


async def parse_form(request: Request, body: bytes) -> Form:
    """A form of type ``multipart/form-data`` with one file, in the field ``file``.

    Raises:
        ApiError: 400 for anything else.
    """

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = _InMemory(
        request.headers, stream(), max_files=1, max_fields=_FIELDS, max_part_size=_FIELD_BYTES
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ApiError(400, f"the form cannot be read: {error.message}", "form") from None
    file, fields = None, {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name != "file":
                raise ApiError(400, f"the file must be sent as 'file', not {name[:60]!r}", "form")
            file = value
        elif name in fields:
            raise ApiError(400, f"the field {name[:60]!r} is given twice", "form", name[:60])
        else:
            fields[name] = value
    if file is None:
        raise ApiError(400, "a file is missing: send it as the field 'file'", "form", "file")
    data = await file.read()
    await file.close()
    return Form(data, file.filename or "", fields)
