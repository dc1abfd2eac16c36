"""Replicas on a local Ray cluster: any of them answers, and any tells of a job of another."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from llava_forgery.hosts.transformers.loading import load_host
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.images import png_bytes
from llava_forgery.serve.replicas import JobBoard, Replicas
from llava_forgery.serve.settings import Settings
from tests import tiny
from tests.faces.media import video as write_video

SECONDS = 120


def test_a_board_keeps_states_and_knows_what_nobody_wants():
    board = JobBoard(60)
    assert board.get("job-1") is None
    assert board.put({"id": "job-1", "status": "running"})
    assert board.get("job-1") == {"id": "job-1", "status": "running"}
    assert board.remove("job-1")
    assert board.get("job-1") is None
    assert not board.put({"id": "job-1", "status": "running"})
    assert not board.remove("job-2")
    gone = JobBoard(-1)
    gone.put({"id": "job-3"})
    assert gone.get("job-3") is None


def test_numbers_of_replicas():
    with pytest.raises(ValueError, match="got 0 and None"):
        Replicas(0)
    with pytest.raises(ValueError, match="got 3 and 2"):
        Replicas(3, 2)
    assert Replicas(2).options(Settings())["num_replicas"] == 2
    scaled = Replicas(1, 4).options(Settings())["autoscaling_config"]
    assert (scaled["min_replicas"], scaled["max_replicas"]) == (1, 4)


@pytest.fixture
def adapter(tmp_path):
    host, processor = tiny.llava()
    host.save_pretrained(tmp_path / "host")
    processor.save_pretrained(tmp_path / "host")
    model, processor = load_host(tmp_path, str(tmp_path / "host"))
    attach_forgery(model, processor, tiny.kfd()).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.slow
def test_two_replicas_share_clients_and_jobs(adapter, tmp_path):
    pytest.importorskip("ray.serve", reason="the extra ray is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llava_forgery.cli", "serve", "--ray", "--replicas", "2"]
    command += ["--model", f"tiny={adapter}", "--port", str(port)]
    video = tmp_path / "v.mp4"
    write_video(video, [tiny.picture(i % 5, 128) for i in range(24)])
    # Ray ends processes where the machine's memory is short, whoever it is that uses it.
    environment = {**os.environ, "RAY_memory_monitor_refresh_ms": "0"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        try:
            for line in server.stderr:
                if re.search(rf"^http://127.0.0.1:{port}$", line):
                    break
            else:
                raise AssertionError(f"the command ended with status {server.wait()}")
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as client:
                _check(client, video)
            server.send_signal(signal.SIGTERM)
            assert server.wait(SECONDS) == 0
        finally:
            server.kill()


def _check(client, video):
    picture, fields = {"file": png_bytes(tiny.picture(1, 128), "test")}, {"cropped": "true"}
    records = [client.post("/v1/detect", files=picture, data=fields) for _ in range(8)]
    assert {response.status_code for response in records} == {200}
    assert len({response.text for response in records}) == 1
    jobs = []
    for _ in range(4):
        with video.open("rb") as file:
            response = client.post("/v1/detect", files={"file": file}, data=fields)
        assert response.status_code == 202
        jobs.append(response.json()["url"])
    # Requests for one job meet both replicas; each of them must know it.
    ended = set()
    until = time.monotonic() + SECONDS
    while len(ended) < len(jobs) and time.monotonic() < until:
        for url in jobs:
            time.sleep(0.05)
            state = client.get(url)
            assert state.status_code == 200
            if state.json()["status"] == "done":
                ended.add(url)
                assert len(state.json()["result"]["faces"]) == 1
    assert len(ended) == len(jobs)
    assert client.delete(jobs[0]).status_code == 204
    assert {client.get(jobs[0]).status_code for _ in range(6)} == {404}
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert client.get("/").status_code == 200
