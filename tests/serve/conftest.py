"""A server of the tiny model on the loopback, in this process, and clients of it."""

import asyncio
import base64
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import numpy as np
import pytest

from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.images import png_bytes
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.serve.server import Server
from llava_forgery.serve.service import Service
from llava_forgery.serve.settings import Settings
from tests import tiny

SECONDS = 30


class Nobody:
    """Finds no face, so that pictures must be sent as crops."""

    def detect(self, image):
        return []


def silent_tokens(words) -> list[int]:
    """Ids without a letter: a model without training says one of them for ever, a line break."""
    every = range(len(words))
    return [i for i in every if not words.decode([i], skip_special_tokens=True).strip()]


@pytest.fixture(scope="session")
def predictor() -> ForgeryPredictor:
    host, processor = tiny.llava()
    host.generation_config.suppress_tokens = silent_tokens(processor.tokenizer)
    host.generation_config.no_repeat_ngram_size = 2
    vlm = attach_forgery(host, processor, tiny.kfd(), lora=LoraSettings(r=2, alpha=4))
    return ForgeryPredictor(vlm, Nobody(), max_new_tokens=5)


@contextmanager
def running(predictors, settings: Settings, **options) -> Iterator[tuple[Server, str]]:
    """A server and its address."""
    server = Server(Service(predictors, settings, **options))
    with socket.create_server((settings.host, 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(
            target=lambda: asyncio.run(server._serve([listener])), daemon=True
        )
        thread.start()
        for _ in range(1000):
            if server.started:
                break
            thread.join(0.01)
        assert server.started
        try:
            yield server, f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(SECONDS)
            assert not thread.is_alive()


@pytest.fixture(scope="session")
def started(predictor) -> Iterator[tuple[Server, str]]:
    with running({"tiny": predictor, "other": predictor}, Settings()) as both:
        yield both


@pytest.fixture
def client(started) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=started[1], timeout=SECONDS) as client:
        yield client


@pytest.fixture(scope="session")
def png() -> Callable[[int], bytes]:
    def make(seed: int) -> bytes:
        return png_bytes(tiny.picture(seed), "test")

    return make


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def decode_grey(text: str) -> np.ndarray:
    """(h, w) uint8 of a mask's PNG."""
    import io

    from PIL import Image

    return np.array(Image.open(io.BytesIO(base64.b64decode(text))))
