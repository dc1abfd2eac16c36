"""Scans on Ray itself: whatever dies, every file has one record, that of an undisturbed run."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from llava_forgery.infer.predictor import FaceFinder
from llava_forgery.scan.reader import Reader, ReadSettings
from llava_forgery.scan.registry import Registry
from llava_forgery.scan.sources import list_entries
from llava_forgery.scan.stages import judge_here
from llava_forgery.scan.units import Unit
from tests.faces.media import RedSquare
from tests.scan.driver import DEATHS, settings
from tests.scan.making import archive, save_model

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow

# Ray would end processes by what all others take of the machine's memory.
UNGUARDED = {"RAY_memory_monitor_refresh_ms": "0"}
# Longer than anything takes where the machine has other work: what hangs ends, nothing else.
PATIENCE = 3600


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A model and an archive of 70 files."""
    folder = tmp_path_factory.mktemp("scene")
    archive(folder / "archive", photographs=60, videos=5)
    model = save_model(folder)
    return folder, model


@pytest.fixture(scope="module")
def undisturbed(scene):
    """Its records by file, made in this process."""
    folder, model = scene
    run = judge_here(settings(model.model, model.base_model))
    units = [Unit(entry) for entry in list_entries([str(folder / "archive")])]
    judged = {result.path: result for result in run(units)}
    found = {result.sha256: result.record for result in judged.values() if result.record}
    return {path: found[result.sha256] for path, result in judged.items()}


def start(address, scene, out, kills, workers=1):
    folder, model = scene
    arguments = [address, folder / "archive", out, model.model, model.base_model, kills, workers]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **UNGUARDED}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.scan.driver", *map(str, arguments)],
        env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def shards(out):
    return len(list((out / "records").glob("*.parquet")))


def family(driver):
    return psutil.Process(driver.pid).children(recursive=True)


def title(process):
    """As Ray names it; of a process that has just died nothing."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def wait_for(driver, condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < end, "nothing came for a long time"
        time.sleep(0.05)


def assert_complete(out, undisturbed):
    rows = pq.read_table(out / "records").to_pylist()
    files = [row["file"] for row in rows]
    assert sorted(files) == sorted(undisturbed)
    for row in rows:
        want = undisturbed[row["file"]]
        same = ("sha256", "kind", "flagged", "answers", "weights")
        assert [row[name] for name in same] == [want[name] for name in same]
        assert (row["error"] is None) == (want["error"] is None)
        assert len(row["faces"]) == len(want["faces"])
        for face, wanted in zip(row["faces"], want["faces"], strict=True):
            assert face["box"] == wanted["box"]
            assert face["score"] == pytest.approx(wanted["score"], abs=1e-5)
            frames = [frame["frame"] for frame in face["frames"] or []]
            assert frames == [frame["frame"] for frame in wanted["frames"] or []]


def test_workers_and_the_driver_are_killed(scene, undisturbed, tmp_path):
    """Ten workers die, each after a finished block, and the driver twice, with its cluster."""
    out, kills = tmp_path / "out", tmp_path / "kills"
    kills.mkdir()
    for _ in range(2):
        driver, before = start("local", scene, out, kills), shards(out)
        wait_for(driver, lambda before=before: shards(out) >= before + 3)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    driver = start("local", scene, out, kills)
    said = driver.communicate(timeout=PATIENCE)[0]
    assert driver.returncode == 0, said
    assert len(list(kills.iterdir())) == DEATHS
    assert_complete(out, undisturbed)
    again = start("local", scene, out, kills)
    assert f"{len(undisturbed)} unchanged and skipped" in again.communicate(timeout=PATIENCE)[0]


def test_a_lost_registry_ends_no_scan_and_sigterm_ends_it_as_ctrl_c(scene, tmp_path):
    """Ray's own handler would end it without a word of what is left."""
    out, kills = tmp_path / "out", tmp_path / "kills"
    kills.mkdir()
    driver = start("local", scene, out, kills)
    wait_for(driver, lambda: shards(out))
    (registry,) = (p for p in family(driver) if title(p).startswith("ray::Registry"))
    registry.kill()
    before = shards(out)
    wait_for(driver, lambda: shards(out) >= before + 3)
    driver.send_signal(signal.SIGTERM)
    said = driver.communicate(timeout=PATIENCE)[0]
    assert driver.returncode == 130, said
    assert "the same command resumes" in said
    files = pq.read_table(out / "records", columns=["file"])["file"].to_pylist()
    assert 0 < len(files) == len(set(files))


def test_one_of_two_nodes_is_killed(scene, undisturbed, tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    for name, value in UNGUARDED.items():
        monkeypatch.setenv(name, value)
    out, kills = tmp_path / "out", tmp_path / "kills"
    kills.mkdir()
    for death in range(DEATHS):
        (kills / str(death)).touch()
    memory = {"object_store_memory": 150_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **memory})
    try:
        node = cluster.add_node(num_cpus=1, **memory)
        cluster.wait_for_nodes()
        driver = start(cluster.address, scene, out, kills, workers=2)
        wait_for(driver, lambda: shards(out) >= 3)
        cluster.remove_node(node, allow_graceful=False)
        said = driver.communicate(timeout=PATIENCE)[0]
        assert driver.returncode == 0, said
    finally:
        cluster.shutdown()
    assert_complete(out, undisturbed)


def test_files_of_a_local_s3_server(tmp_path, monkeypatch):
    import fsspec
    from moto.server import ThreadedMotoServer

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        folder = archive(tmp_path / "archive", photographs=3, videos=1)
        fs = fsspec.filesystem("s3", skip_instance_cache=True)
        fs.mkdir("bucket")
        fs.put(str(folder), "bucket/archive", recursive=True)
        entries = list(list_entries(["s3://bucket/archive"]))
        local = list(list_entries([str(folder)]))
        assert sorted(entry.size for entry in entries) == sorted(entry.size for entry in local)
        assert all(entry.modified > 1e18 for entry in entries)

        finder = FaceFinder(32, RedSquare())
        reader = Reader(finder, ReadSettings(cropped=True), Registry())
        items = reader([Unit(entry) for entry in entries])
        errors = [item.error for item in items if item.error]
        assert len(errors) == 3
        assert all("s3://bucket/archive/" in error for error in errors)
        assert sum(item.is_duplicate for item in items) == 2
        assert sum(len(item.faces) for item in items) == 3 + 6
    finally:
        server.stop()
