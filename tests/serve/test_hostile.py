"""Sixty requests that mean no good: each refused as it should be; the server lives on."""

import io
import os
import socket
import struct
import tempfile
import time
import zlib

import httpx
import numpy as np
import pytest
from PIL import Image

from llava_forgery.images import png_bytes
from llava_forgery.serve import fetch as fetching
from llava_forgery.serve.errors import ApiError
from llava_forgery.serve.settings import Settings
from tests import tiny
from tests.faces.media import video as write_video
from tests.serve.conftest import data_url, running

TOKEN = "a secret of some length"
LIMIT = 200_000
PNG = png_bytes(tiny.picture(1), "test")
GOOD = {"model": "tiny", "max_tokens": 2, "forgery": {"cropped": True}}


def picture(kind, **options):
    out = io.BytesIO()
    Image.fromarray(tiny.picture(1)).save(out, kind, **options)
    return out.getvalue()


def png_header(width, height):
    """A PNG that says it is so large, and holds next to nothing."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def broken_video(tmp):
    write_video(tmp / "v.mp4", [tiny.picture(i) for i in range(4)])
    return (tmp / "v.mp4").read_bytes()


def upload(data, name="a.png", **fields):
    return {"files": {"file": (name, data)}, "data": {"cropped": "true", **fields}}


def asking(content, **more):
    return {"json": {**GOOD, "messages": [{"role": "user", "content": content}], **more}}


def shown(url, text="Is it fake?"):
    return [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]


DETECT, CHAT = "/v1/detect", "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
PLAYLIST = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
SVG = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"

# Name: path, what is sent, and the statuses that are right.
CASES = {
    # Too large
    "a body over the limit": (DETECT, upload(PNG + bytes(LIMIT)), 413),
    "a body over the limit in pieces": (
        DETECT, {"content": iter([bytes(LIMIT), b"x"]), "headers": JSON}, 413),
    "JSON over the limit": (CHAT, asking("x" * LIMIT), 413),
    "a question over the limit": (CHAT, asking(shown(data_url(PNG), "x" * 5000)), 400),
    "more tokens than are written": (CHAT, asking(shown(data_url(PNG)), max_tokens=10**6), 400),
    "a field over the limit": (DETECT, upload(PNG, pool="m" * 70_000), 400),
    "too many fields": (DETECT, upload(PNG, **{f"f{i}": "1" for i in range(40)}), 400),
    "two files": (DETECT, {"files": [("file", ("a", PNG)), ("file", ("b", PNG))]}, 400),
    # Decompression bombs
    "a PNG of 900 megapixels": (DETECT, upload(png_header(30_000, 30_000)), 400),
    "a PNG of 2^62 pixels": (DETECT, upload(png_header(2**31 - 1, 2**31 - 1)), 400),
    "a BMP that says it is large": (
        DETECT, upload(picture("BMP")[:18] + struct.pack("<ii", 2**30, 2**30) + bytes(40)), 400),
    "a GIF that says it is large": (DETECT, upload(b"GIF89a\xff\xff\xff\xff\x80\x00\x00"), 400),
    "a bomb in a dialogue": (CHAT, asking(shown(data_url(png_header(30_000, 30_000)))), 400),
    "a gzip body": (DETECT, {"content": b"\x1f\x8b" + bytes(99),
                             "headers": {"Content-Encoding": "gzip", **JSON}}, 400),
    # Broken
    "an empty file": (DETECT, upload(b""), 400),
    "a cut PNG": (DETECT, upload(PNG[: len(PNG) // 2]), 400),
    "a cut JPEG": (DETECT, upload(picture("JPEG")[:300]), 400),
    "a PNG with a wrong checksum": (DETECT, upload(PNG[:40] + b"\xff\xff" + PNG[42:]), 400),
    "noise": (DETECT, upload(np.random.default_rng(0).bytes(5000)), 400),
    "a header alone": (DETECT, upload(PNG[:8]), 400),
    "a cut video": (DETECT, lambda tmp: upload(broken_video(tmp)[:900], "a.mp4"), 400),
    "a video's header alone": (DETECT, upload(b"\x00\x00\x00\x18ftypisom" + bytes(12), "a.mp4"),
                               400),
    "a Matroska of noise": (DETECT, upload(b"\x1a\x45\xdf\xa3" + bytes(500), "a.mkv"), 400),
    # Not what they seem
    "a text named .png": (DETECT, upload(b"hello"), 400),
    "a page named .png": (DETECT, upload(b"<script>alert(1)</script>"), 400),
    "an SVG": (DETECT, upload(SVG, "a.svg"), 400),
    "a PostScript file": (DETECT, upload(b"%!PS-Adobe-3.0 EPSF-3.0\n"), 400),
    "a PDF": (DETECT, upload(b"%PDF-1.4\n"), 400),
    "a ZIP": (DETECT, upload(b"PK\x03\x04" + bytes(100)), 400),
    "a pickle": (DETECT, upload(b"\x80\x04cos\nsystem\n(S'true'\ntR."), 400),
    "a playlist named .mp4": (DETECT, upload(PLAYLIST, "a.mp4"), 400),
    "a concat script named .mp4": (
        DETECT, upload(b"ffconcat version 1.0\nfile /etc/passwd", "a.mp4"), 400),
    "a JPEG that is a ZIP too": (DETECT, upload(picture("JPEG") + b"PK\x05\x06" + bytes(18)), 200),
    "a GIF that is a script too": (DETECT, upload(b"GIF89a=1;alert(1);//"), 400),
    # Names
    "a path as a name": (DETECT, upload(PNG, "../../etc/passwd"), 200),
    "a Windows path as a name": (DETECT, upload(PNG, "C:\\Windows\\system.ini"), 200),
    "a script as a name": (DETECT, upload(PNG, "<img src=x onerror=alert(1)>.png"), 200),
    # python-multipart's limit on headers, which older releases do not have.
    "a name of 5000 letters": (DETECT, upload(PNG, "x" * 5000), (200, 400)),
    "a name that turns around": (DETECT, upload(PNG, "gpj.\u202eexe.png"), 200),
    # Wrong types
    "text for a number": (DETECT, upload(PNG, frames="many"), 400),
    "a negative number": (DETECT, upload(PNG, frames="-1"), 400),
    "an unknown option": (DETECT, upload(PNG, shell="rm"), 400),
    "an unknown model": (DETECT, upload(PNG, model="../other"), 404),
    "a list for the file": (DETECT, {"json": {"file": [1]}}, 400),
    "base64 that is none": (DETECT, {"json": {"file": "@@@"}}, 400),
    "a form without a boundary": (
        DETECT, {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400),
    "another content type": (
        DETECT, {"content": PNG, "headers": {"Content-Type": "image/png"}}, 415),
    "a number for the messages": (CHAT, {"json": {**GOOD, "messages": 7}}, 400),
    "a placeholder in the question": (CHAT, asking(shown(data_url(PNG), "<image><image>")), 400),
    # JSON
    "JSON 100,000 levels deep": (CHAT, {"content": b"[" * 100_000, "headers": JSON}, 400),
    "an object 500 levels deep": (
        CHAT, {"content": b'{"a":' * 500 + b"1" + b"}" * 500, "headers": JSON}, 400),
    "NaN": (CHAT, {"content": b'{"temperature": NaN}', "headers": JSON}, 400),
    "JSON that is not UTF-8": (CHAT, {"content": b'{"a": "\xff"}', "headers": JSON}, 400),
    "a number of 5000 digits": (CHAT, {"content": b'{"a": ' + b"9" * 5000 + b"}", "headers": JSON},
                                400),
    # Who asks
    "no token": (DETECT, {**upload(PNG), "auth": False}, 401),
    "a wrong token": (DETECT, {**upload(PNG), "headers": {"Authorization": "Bearer guess"}}, 401),
    "a token of another kind": (DETECT, {**upload(PNG), "headers": {"Authorization": TOKEN}}, 401),
    "another site's page": (DETECT, {**upload(PNG), "headers": {"Origin": "https://evil.example"}},
                            403),
    "a name bound to this machine": (DETECT, {**upload(PNG), "headers": {"Host": "evil.example"}},
                                     403),
    # Addresses, which are not fetched here
    "a private address": (CHAT, asking(shown("http://192.168.0.1/a.png")), 400),
    "a file of the server": (CHAT, asking(shown("file:///etc/passwd")), 400),
    # Paths
    "a path out of the page": ("/page/../../settings.py", {"method": "GET"}, 404),
    "another path out of the page": ("/page/%2e%2e/app.py", {"method": "GET"}, 404),
    "a job that is guessed": ("/v1/jobs/../../etc/passwd", {"method": "GET"}, 404),
    "a method that is not offered": (DETECT, {"method": "PUT"}, 405),
}  # fmt: skip


@pytest.fixture(scope="module")
def hostile(predictor, tmp_path_factory):
    """Client of a server with a token and low limits, whose temporary files go into one folder."""
    folder = tmp_path_factory.mktemp("temporary")
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    settings = Settings(token=TOKEN, max_bytes=LIMIT, upload_seconds=1)
    try:
        with (
            running({"tiny": predictor}, settings) as (server, url),
            httpx.Client(base_url=url, timeout=30) as client,
        ):
            yield server, client, folder
    finally:
        tempfile.tempdir = before


@pytest.mark.parametrize("case", CASES)
def test_refused(hostile, case, tmp_path):
    server, client, folder = hostile
    path, sent, wanted = CASES[case]
    sent = dict(sent(tmp_path) if callable(sent) else sent)
    headers = {"Authorization": f"Bearer {TOKEN}"} if sent.pop("auth", True) else {}
    headers |= sent.pop("headers", {})
    answer = client.request(sent.pop("method", "POST"), path, headers=headers, **sent)
    assert answer.status_code in (wanted if isinstance(wanted, tuple) else (wanted,)), answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert len(error["message"]) < 2000
    for secret in ("Traceback", "/proc/", "site-packages", str(folder), os.getcwd(), TOKEN):
        assert secret not in answer.text
    assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in answer.headers
    # It lives, has nothing of it on the disk, and holds nothing in memory.
    assert client.get("/health").status_code == 200
    assert list(folder.iterdir()) == []
    for _ in range(100):
        if server.service.admission.bytes == 0:
            break
        time.sleep(0.01)
    assert server.service.admission.bytes == 0


def test_there_are_sixty():
    assert len(CASES) >= 60


def test_names_are_shown_without_folders_and_tricks(hostile):
    _, client, _ = hostile
    headers = {"Authorization": f"Bearer {TOKEN}"}
    for sent, shown_name in (
        ("../../etc/passwd", "passwd"),
        ("C:\\a\\b.png", "b.png"),
        ("a\u202eb.png", "ab.png"),
        ("x" * 500, "x" * 120),
    ):
        answer = client.post(DETECT, headers=headers, **upload(PNG, sent))
        assert answer.json()["file"] == shown_name


def test_a_slow_upload_is_given_up(hostile):
    _, client, _ = hostile
    with socket.create_connection((client.base_url.host, client.base_url.port)) as slow:
        head = f"POST {DETECT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
        head += "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
        slow.sendall(head.encode())
        slow.settimeout(20)
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0",
     "100.64.0.1", "224.0.0.1", "::1", "fe80::1", "fc00::1", "::ffff:127.0.0.1", "::",
     "64:ff9b::7f00:1", "2002:7f00:1::"],
)  # fmt: skip
def test_addresses_that_are_never_fetched(address):
    assert not fetching.is_public(address)


def test_addresses_of_the_open_internet():
    assert fetching.is_public("93.184.216.34")
    assert fetching.is_public("2606:2800:220:1:248:1893:25c8:1946")


def fetch(url, allowed=fetching.is_public, most=LIMIT):
    return fetching._fetch(url, most, allowed)


@pytest.fixture
def elsewhere():
    """A server of files on the loopback, which stands for one of the open Internet."""
    import http.server
    import threading

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/away":
                self.send_response(302)
                self.send_header("Location", "http://169.254.169.254/latest/meta-data")
            elif self.path == "/round":
                self.send_response(302)
                self.send_header("Location", "/round")
            else:
                self.send_response(200)
            self.end_headers()
            if self.path == "/endless":
                self.wfile.write(bytes(2 * LIMIT))
            elif self.path == "/a.png":
                self.wfile.write(PNG)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_what_is_fetched(elsewhere):
    def here(address):
        return address == "127.0.0.1"

    assert fetch(f"{elsewhere}/a.png", here) == PNG
    for path, why in (
        ("/away", "none of the open Internet"),
        ("/round", "more than 3 times"),
        ("/endless", "larger than"),
    ):
        with pytest.raises(ApiError, match=why):
            fetch(elsewhere + path, here)
    for url in (f"{elsewhere}/a.png", "http://localhost/"):
        with pytest.raises(ApiError, match="none of the open Internet"):
            fetch(url)
    for url in ("ftp://example.org/a", "http://user:word@example.org/", "gopher://x", "http://"):
        with pytest.raises(ApiError, match="only http and https"):
            fetch(url)
