"""SIGTERM: what was begun is answered, new work is refused."""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx

from llava_forgery.serve.settings import Settings
from tests.serve.conftest import SECONDS, running


def test_what_was_begun_is_answered(predictor, png):
    with (
        running({"tiny": predictor}, Settings()) as (server, url),
        httpx.Client(base_url=url, timeout=SECONDS) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        engine = server.service.models["tiny"].engine
        begun, gate = threading.Event(), threading.Event()
        engine.call(lambda: (begun.set(), gate.wait(SECONDS)))
        assert begun.wait(SECONDS)

        def detect():
            files, fields = {"file": png(1)}, {"cropped": "true"}
            return httpx.post(f"{url}/v1/detect", files=files, data=fields, timeout=SECONDS)

        answer = pool.submit(detect)
        for _ in range(1000):
            if engine.waiting > 1:
                break
            begun.clear()
            begun.wait(0.01)
        assert engine.waiting > 1
        server.handle_exit(signal.SIGTERM, None)
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200
        refused = client.post("/v1/detect", files={"file": png(2)})
        assert refused.status_code == 503
        assert refused.headers["Retry-After"]
        assert refused.json()["error"]["code"] == "draining"
        gate.set()
        assert answer.result(SECONDS).status_code == 200
