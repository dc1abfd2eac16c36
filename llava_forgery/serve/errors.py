"""Errors as OpenAI's API words them: a status, and ``{"error": {message, type, param, code}}``."""

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class ApiError(Exception):
    """What a client is told.

    Args:
        status: HTTP status, 400 or more.
        message: A sentence; it holds nothing that only the server knows, such as a path.
        code: What programs tell errors apart by, such as ``"no_face"``.
        param: Name of the parameter at fault, if it is one.
        headers: Of the answer, such as ``Retry-After``.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, dict[str, str | None]]:
        """The answer's JSON."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body(), self.status, self.headers)


def busy(message: str, retry_after: int) -> ApiError:
    """429 with the seconds after which to try again."""
    return ApiError(429, message, "busy", headers={"Retry-After": str(retry_after)})


def add_error_handlers(app: FastAPI) -> None:
    """Let what routing refuses leave as an :class:`ApiError` does."""

    @app.exception_handler(ApiError)
    async def known(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> JSONResponse:
        what = f"{request.method} {request.url.path[:200]}"
        message = {404: f"there is no {what}", 405: f"{what} is not offered"}
        text = message.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, text, headers=error.headers).response()
