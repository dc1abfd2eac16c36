"""What every request passes before anything of it is read: host, origin, token; and headers."""

import hmac
import logging
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_forgery.serve.errors import ApiError
from llava_forgery.serve.settings import LOOPBACK_NAMES, Settings

logger = logging.getLogger(__name__)

GUARDED = ("/v1/", "/metrics")
"""What needs the token. The page and its parts hold nothing of anybody; ``/health`` and ``/ready``
are asked by load balancers, which have none."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; media-src blob:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Guard:
    """Middleware that refuses requests which must not reach the application.

    On the loopback a request must name this machine as its host, so that no page of a foreign name
    that was rebound to 127.0.0.1 gets an answer. A request that a browser sends for a page of
    another origin is refused everywhere. What the application fails at without having foreseen it
    leaves as 500, without details.

    Args:
        app: What is guarded.
        settings: With the token.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        error = self._error(scope["path"], Headers(scope=scope))
        try:
            await (error.response() if error else self.app)(scope, receive, send_with_headers)
        except Exception:
            # Its traceback is for the log alone.
            logger.exception("%s %s failed", scope["method"], scope["path"][:200])
            if started:
                raise
            failure = ApiError(500, "the server failed at this request; its log says why")
            await failure.response()(scope, receive, send_with_headers)

    def _error(self, path: str, headers: Headers) -> ApiError | None:
        host = headers.get("host", "")
        if self.settings.is_loopback and _name(host) not in (*LOOPBACK_NAMES, self.settings.host):
            return ApiError(403, "this server answers to localhost only", "host")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return ApiError(403, "requests from pages of another origin are refused", "origin")
        foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if foreign and path.startswith(GUARDED):
            return ApiError(403, "requests from other sites are refused", "origin")
        if self.settings.token and path.startswith(GUARDED):
            given = headers.get("authorization", "")
            if not given:
                return ApiError(
                    401,
                    "a token is missing: send Authorization: Bearer TOKEN",
                    "missing_token",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            wanted = f"Bearer {self.settings.token}"
            if not hmac.compare_digest(given.encode("latin-1"), wanted.encode()):
                return ApiError(
                    401,
                    "the token is wrong",
                    "invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        return None


def _name(host: str) -> str:
    """Of a ``Host`` header, without the port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
