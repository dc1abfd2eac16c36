"""The parts of scripts/gpu_check.py that run commands from end to end: detect, serve, train."""

import base64
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpu_parts import ROOT, SAMPLES, Setting

CLI = (sys.executable, "-m", "llava_forgery.cli")
QUESTION = "Is this a deepfake image?"
# The server of loopback alone, whatever proxy the machine has for the rest.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def detect(setting: Setting) -> None:
    """``detect`` of the samples, end to end, with the shipped model."""
    photographs = sorted(SAMPLES.glob("*.jpg"))[: 2 if setting.tiny else 80]
    for answers in ("none", "all"):
        command = [
            *CLI, "detect", *map(str, photographs),
            "--answers", answers, "--device", setting.device, "--jsonl",
        ]  # fmt: skip
        start = time.perf_counter()
        result = subprocess.run(command, capture_output=True, text=True)
        taken = time.perf_counter() - start
        if result.returncode:
            print(result.stderr, flush=True)
            raise RuntimeError(f"detect --answers {answers} failed")
        setting.report(
            f"detect, {len(photographs)} photographs, answers {answers}, with its start", taken, "s"
        )


def serve(setting: Setting) -> None:
    """The server with the shipped model: its start, verdicts for many clients, a dialogue."""
    few = 2 if setting.tiny else 64
    files = [base64.b64encode(path.read_bytes()).decode()
             for path in sorted(SAMPLES.glob("*.jpg"))[:few]]  # fmt: skip
    bodies = [{"file": file, "name": "photo.jpg"} for file in files]
    start = time.perf_counter()
    with _server(setting) as address:
        setting.report("serve: from the command to ready", time.perf_counter() - start, "s")
        # The first request pays for what is loaded when it is needed, such as the finder of faces.
        _post(address, "detect", bodies[0])
        for clients in (1, 2) if setting.tiny else (1, 4, 16):
            start = time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                answers = list(pool.map(lambda body: _post(address, "detect", body), bodies))
            rate = len(answers) / (time.perf_counter() - start)
            judged = all(face["answer"] for answer in answers for face in answer["faces"])
            setting.report(
                f"serve: photographs with their answers, {clients} clients", rate, "/s",
                "every face is answered", judged,
            )  # fmt: skip
        picture = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{files[0]}"}}
        content = [{"type": "text", "text": QUESTION}, picture]
        body = {"model": "default", "messages": [{"role": "user", "content": content}]}
        taken = []
        for _ in range(2 if setting.tiny else 5):
            start = time.perf_counter()
            _post(address, "chat/completions", body)
            taken.append(time.perf_counter() - start)
        setting.report("serve: an answer in a dialogue", statistics.median(taken), "s")


@contextmanager
def _server(setting: Setting) -> Iterator[str]:
    """A server of its own process, once it is ready; its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*CLI, "serve", "--port", str(port), "--device", setting.device]
    process = subprocess.Popen(command)
    address = f"http://127.0.0.1:{port}"
    try:
        while not _ready(address):
            if process.poll() is not None:
                raise RuntimeError(f"serve ended with status {process.returncode} before it began")
            time.sleep(0.1)
        yield address
    finally:
        # Nothing is being answered that anyone waits for.
        process.kill()
        process.wait()


def _ready(address: str) -> bool:
    try:
        with OPENER.open(f"{address}/ready"):
            return True
    except (urllib.error.URLError, ConnectionError):
        return False


def _post(address: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{address}/v1/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with OPENER.open(request) as answer:
        return json.load(answer)


def train(setting: Setting) -> None:
    """The shipped detector's recipe for so many minutes, measured on real and forged video."""
    options = [
        "--faces", str(setting.faces), "--recipe", str(ROOT / "scripts/default_recipe.json"),
        "--workers", str(os.cpu_count() or 1),
    ]  # fmt: skip

    def run(steps: int, folder: Path) -> float:
        start = time.perf_counter()
        command = [
            *CLI, "train", "detector", *options, "--out", str(folder), "--steps", str(steps),
        ]  # fmt: skip
        subprocess.run(command, check=True)
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory() as scratch:
        few, more = (2, 4) if setting.tiny else (20, 60)
        short = run(few, Path(scratch) / "short")
        step = (run(more, Path(scratch) / "longer") - short) / (more - few)
        steps = max(few, int(60 * setting.minutes / max(step, 1e-3)))
    setting.report("training step", 1000 * step, "ms")
    setting.report("steps", steps)
    run(steps, setting.out / "kfd")
    measured = setting.out / "eval-real"
    subprocess.run(
        [
            *CLI, "eval", "real", "--model", str(setting.out / "kfd"),
            "--data", str(setting.real), "--out", str(measured),
        ],
        check=True,
    )  # fmt: skip
