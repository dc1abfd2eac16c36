"""What the server makes of load: 1, 8 and 50 clients, against ``detect`` without a server.

    python scripts/bench_serve.py [--model ADAPTER] [--rounds 3] [--each 24] [--json OUT]

The server is a process of its own on the loopback, as is the `detect` that it is compared with; the
two take turns, round by round, so that slow moments of the machine hit both. All judge the same
photographs: those of ``samples/``, encoded again so that no two are alike.

- one client: p50 of a request against `detect`'s seconds for a photograph by itself;
- eight clients: photographs a second against `detect`'s in batches of eight;
- fifty clients: how many answers of each status (429 is the only failure there may be), p50 and
  p99, and the server's memory after each round;
- a client that leaves amid a stream; SIGTERM amid requests: what was begun must be answered, and
  the server must end with status 0.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

from llava_forgery.cli.app import load_predictor
from llava_forgery.files import write_json
from llava_forgery.infer.batch import judge_files

SAMPLES = Path(__file__).parents[1] / "samples"
PATIENCE = 600
# Faces of a batch, as `serve` has them by default.
_BATCH = 8


def main() -> None:
    arguments = _arguments()
    if arguments.child is not None:
        answer_parent(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        photographs = make_photographs(Path(folder), arguments.each)
        found = bench(arguments, photographs)
    print(report(found))
    if arguments.json is not None:
        write_json(arguments.json, found)


def bench(arguments: argparse.Namespace, photographs: list[Path]) -> dict[str, Any]:
    """All figures."""
    bodies = [path.read_bytes() for path in photographs]
    loads: dict[int, list[dict[str, Any]]] = {n: [] for n in arguments.clients}
    alone, batched, memory = [], [], []
    with detect_child(arguments, photographs) as detect, served(arguments) as (server, url):
        for number in range(1 + arguments.rounds):
            single, together = detect("single"), detect("batches")
            found = {n: asyncio.run(load(url, bodies, n, arguments)) for n in loads}
            if number == 0:
                # Caches and allocators fill.
                continue
            alone.append(single / len(bodies))
            batched.append(len(bodies) / together)
            memory.append(psutil.Process(server.pid).memory_info().rss / 2**20)
            for n, figures in found.items():
                loads[n].append(figures)
        gone = asyncio.run(leave_amid_stream(url, bodies[0]))
        ended = asyncio.run(end_amid_requests(url, bodies, server))
    return {
        "detect": {"seconds": statistics.median(alone), "rate": statistics.median(batched)},
        "clients": {str(n): summary(rounds) for n, rounds in loads.items()},
        "memory_mib": memory,
        "left_amid_stream": gone,
        "sigterm": ended,
    }


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Rates are medians over rounds, percentiles those of all answers."""
    seconds = np.concatenate([found["seconds"] for found in rounds])
    statuses = sum((Counter(found["statuses"]) for found in rounds), Counter())
    return {
        "rate": statistics.median(found["rate"] for found in rounds),
        "p50": float(np.percentile(seconds, 50)),
        "p99": float(np.percentile(seconds, 99)),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
    }


def report(found: dict[str, Any]) -> str:
    """The figures as a Markdown table, and a line for each event."""
    detect = found["detect"]
    rows = [
        "|  | photographs/s | p50, s | p99, s | against detect | statuses |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| detect, one by one | {1 / detect['seconds']:.2f} | {detect['seconds']:.2f} |  |  |  |",
        f"| detect, batches of 8 | {detect['rate']:.2f} |  |  |  |  |",
    ]
    ratios = {
        "1": lambda load: f"p50 {load['p50'] / detect['seconds']:.2f}",
        "8": lambda load: f"rate {load['rate'] / detect['rate']:.2f}",
    }
    for clients, load_ in found["clients"].items():
        ratio = ratios.get(clients, lambda _: "")(load_)
        statuses = ", ".join(f"{count} x {status}" for status, count in load_["statuses"].items())
        rows.append(
            f"| {clients} client{'s' * (clients != '1')} | {load_['rate']:.2f} | "
            f"{load_['p50']:.2f} | {load_['p99']:.2f} | {ratio} | {statuses} |"
        )
    memory = ", ".join(f"{value:.0f}" for value in found["memory_mib"])
    return "\n".join(
        [
            *rows,
            "",
            f"memory after each round, MiB: {memory}",
            f"a client that left amid a stream: {found['left_amid_stream']}",
            f"SIGTERM amid requests: {found['sigterm']}",
        ]
    )


async def load(
    url: str, bodies: list[bytes], clients: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Each client sends its next photograph when the last one is answered."""
    due = iter(islice(cycle(bodies), max(len(bodies), 2 * clients)))
    seconds: list[float] = []
    statuses: Counter[int] = Counter()

    async def client() -> None:
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits) as session:
            for body in due:
                started = time.perf_counter()
                response = await session.post("/v1/detect", files={"file": body})
                statuses[response.status_code] += 1
                if response.status_code == 200:
                    seconds.append(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    rate = len(seconds) / (time.perf_counter() - started)
    return {"rate": rate, "seconds": seconds, "statuses": dict(statuses)}


async def leave_amid_stream(url: str, body: bytes) -> str:
    """Whether the place of a client that leaves is free soon after."""
    picture = f"data:image/jpeg;base64,{base64.b64encode(body).decode()}"
    content = [
        {"type": "text", "text": "Describe the picture at length."},
        {"type": "image_url", "image_url": {"url": picture}},
    ]
    request = {
        "messages": [{"role": "user", "content": content}],
        "stream": True,
        "max_tokens": 400,
    }
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as session:
        models = (await session.get("/v1/models")).json()["data"]
        request["model"] = models[0]["id"]
        async with session.stream("POST", "/v1/chat/completions", json=request) as response:
            async for _ in response.aiter_lines():
                break
        started = time.perf_counter()
        while time.perf_counter() - started < PATIENCE:
            if await active(session) == 0:
                return f"its place was free {time.perf_counter() - started:.2f} s later"
            await asyncio.sleep(0.05)
    return "its place was not freed"


async def active(session: httpx.AsyncClient) -> float:
    """Requests that are worked on, of those that the server counts."""
    metrics = (await session.get("/metrics")).text
    return float(re.search(r"^\w+_active_requests (\S+)$", metrics, re.MULTILINE)[1])


async def end_amid_requests(url: str, bodies: list[bytes], server: subprocess.Popen) -> str:
    """How many of eight requests that had begun are answered, and how the server ends."""
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as session:
        sent = [
            asyncio.create_task(session.post("/v1/detect", files={"file": body}))
            for body in islice(cycle(bodies), 8)
        ]
        # Until all are inside: what comes later would rightly be refused.
        while await active(session) + sum(task.done() for task in sent) < len(sent):
            await asyncio.sleep(0.01)
        server.send_signal(signal.SIGTERM)
        statuses = Counter(response.status_code for response in await asyncio.gather(*sent))
    status = await asyncio.to_thread(server.wait, PATIENCE)
    answers = ", ".join(f"{count} x {code}" for code, count in statuses.items())
    return f"{len(sent)} begun, {answers}; exit status {status}"


@contextmanager
def served(arguments: argparse.Namespace) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server that is ready, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llava_forgery.cli", "serve", "--port", str(port)]
    if arguments.model is not None:
        command += ["--model", arguments.model]
    if arguments.batch_wait is not None:
        command += ["--batch-wait", arguments.batch_wait]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command) as server:
        try:
            while True:
                if server.poll() is not None:
                    raise SystemExit(f"the server ended with status {server.returncode}")
                try:
                    if httpx.get(f"{url}/ready", timeout=PATIENCE).status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.2)
            yield server, url
        finally:
            if server.poll() is None:
                server.kill()


@contextmanager
def detect_child(arguments: argparse.Namespace, photographs: list[Path]) -> Iterator[Any]:
    """`detect` in a process of its own: a function that gives its seconds for all photographs."""
    command = [sys.executable, __file__, "--child", *map(str, photographs)]
    if arguments.model is not None:
        command += ["--model", arguments.model]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:

        def ask(what: str) -> float:
            process.stdin.write(f"{what}\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"detect ended with status {process.wait()}")
            return json.loads(line)

        try:
            yield ask
        finally:
            process.stdin.close()


def answer_parent(arguments: argparse.Namespace) -> None:
    """Judge as asked on standard input, and print the seconds."""
    predictor = load_predictor(None if arguments.model is None else Path(arguments.model))
    predictor.limits = replace(predictor.limits, faces=_BATCH)
    for line in sys.stdin:
        started = time.perf_counter()
        if line.strip() == "single":
            for path in arguments.child:
                next(iter(judge_files(predictor, [path])))
        else:
            deque(judge_files(predictor, arguments.child), maxlen=0)
        print(json.dumps(time.perf_counter() - started), flush=True)


def make_photographs(folder: Path, count: int) -> list[Path]:
    """Photographs whose bytes all differ."""
    sources = [Image.open(path).convert("RGB") for path in sorted(SAMPLES.glob("*.jpg"))]
    paths = []
    for number in range(count):
        buffer = io.BytesIO()
        quality = 70 + number // len(sources) % 25
        sources[number % len(sources)].save(buffer, "JPEG", quality=quality)
        # What follows the picture's end is not read, and makes the bytes differ.
        paths.append(folder / f"{number:04}.jpg")
        paths[-1].write_bytes(buffer.getvalue() + number.to_bytes(4, "big"))
    return paths


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Load on the server, against detect.")
    parser.add_argument("--model", help="folder of an adapter; default: the shipped model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--each", type=int, default=24, help="photographs of a round")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 50])
    parser.add_argument("--batch-wait", help="of the server; default: its own")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--child", nargs="*", default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    main()
