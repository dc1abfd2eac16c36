"""Fetching from public addresses alone: nothing that only this machine or its network reaches."""

import asyncio
import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from urllib.parse import urljoin, urlsplit

from llava_forgery.serve.errors import ApiError
from llava_forgery.serve.settings import Settings

_REDIRECTS = 3
_SECONDS = 10
_CHUNK = 2**16
_PORTS = {"http": 80, "https": 443}


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open Internet."""
    ip = ipaddress.ip_address(address)
    inner = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None)
    if inner is None and ip.version == 6 and ip in ipaddress.ip_network("64:ff9b::/96"):
        inner = ipaddress.ip_address(int(ip) & 0xFFFFFFFF)
    if inner is not None:
        return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


async def fetch(url: str, settings: Settings, allowed: Callable[[str], bool] = is_public) -> bytes:
    """What lies at an address.

    The name is resolved once, every address that it has must be allowed, and the connection goes
    to the address that was checked. Redirects are checked in the same way. No proxy, cookie or
    credential is used.

    Args:
        url: With http or https.
        settings: With ``max_bytes``.
        allowed: Tells which IP addresses may be asked.

    Raises:
        ApiError: 400 for an address that is not allowed, cannot be reached in time, answers with
            an error, or with more than ``max_bytes``.
    """
    return await asyncio.to_thread(_fetch, url, settings.max_bytes, allowed)


def _fetch(url: str, max_bytes: int, allowed: Callable[[str], bool]) -> bytes:
    deadline = time.monotonic() + _SECONDS
    for _ in range(_REDIRECTS + 1):
        try:
            status, headers, data = _get(url, max_bytes, allowed, deadline)
        except (OSError, http.client.HTTPException, ValueError):
            raise _refused("it cannot be fetched") from None
        if status in (301, 302, 303, 307, 308) and headers.get("location"):
            url = urljoin(url, headers["location"])
            continue
        if status != 200:
            raise _refused(f"it answers with status {status}")
        return data
    raise _refused(f"it redirects more than {_REDIRECTS} times")


def _get(
    url: str, max_bytes: int, allowed: Callable[[str], bool], deadline: float
) -> tuple[int, dict[str, str], bytes]:
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname or parts.username or parts.password:
        raise _refused("only http and https addresses without credentials are fetched")
    port = parts.port or _PORTS[parts.scheme]
    found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    addresses = [entry[4][0] for entry in found]
    if not addresses or not all(allowed(address) for address in addresses):
        raise _refused("it is none of the open Internet")
    connection = http.client.HTTPConnection(parts.hostname, port)
    connection.sock = socket.create_connection((addresses[0], port), _left(deadline))
    try:
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connection.sock = context.wrap_socket(connection.sock, server_hostname=parts.hostname)
        target = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
        connection.request("GET", target, headers={"Accept": "image/*,video/*", "User-Agent":
                                                   "llava-forgery"})  # fmt: skip
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        if response.status != 200:
            return response.status, headers, b""
        data = bytearray()
        while True:
            if connection.sock is not None:
                connection.sock.settimeout(_left(deadline))
            chunk = response.read1(_CHUNK)
            if not chunk:
                return response.status, headers, bytes(data)
            data += chunk
            if len(data) > max_bytes:
                raise _refused(f"it is larger than {max_bytes} bytes, the limit")
    finally:
        connection.close()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _refused(why: str) -> ApiError:
    return ApiError(400, f"the address was not fetched: {why}", "url")
