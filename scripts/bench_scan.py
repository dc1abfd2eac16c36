"""What a scan costs beside ``detect``, with more workers, with more files, and under kills.

    python scripts/bench_scan.py overhead --files 500
    python scripts/bench_scan.py scaling --files 3000 --videos 60 --answers none flagged
    python scripts/bench_scan.py memory --files 1000 20000
    python scripts/bench_scan.py kills --files 300
    python scripts/bench_scan.py stages --files 500
    python scripts/bench_scan.py report --rows 100000

The shipped model judges, or --model ADAPTER. The archive is made of the photographs of
``samples/``, encoded again as often as needed so that no two files are the same, and of short clips
that move over them. Each scan is a process of its own, with a Ray cluster of its own on this
machine. Rates are taken between the first and the last result, so that the start of processes and
models is not in them; ``detect``'s between its first and its last photograph. CPU is that of the
driver and the stages in the same time, which other work on the machine leaves nearly as it is;
Ray's own processes stand beside it: what they take goes with the time that a scan lasts, not with
its files. Workers run without Ray's niceness, so that neither side waits for the other.

overhead pins both to one processor, one worker each. scaling compares two workers with two scans of
half the archive each, one worker each, at the same time. memory replaces the detector by a constant
and sees small pictures, as 20,000 photographs would take an hour otherwise.
kills ends worker processes (ten times, each after further records) and the driver (twice, with its
cluster), and compares every record with that of an undisturbed scan. stages takes turns, sixteen
photographs each, between detect and all stages of a scan in one process: what is left of overhead
without Ray. report repeats the records of some photographs.
"""

import argparse
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch
from PIL import Image

from llava_forgery.faces.video import FrameChoice
from llava_forgery.infer.batch import judge_files
from llava_forgery.infer.verdict import Verdict
from llava_forgery.optional import require
from llava_forgery.scan import engine
from llava_forgery.scan.collector import Collector
from llava_forgery.scan.engine import Cluster, connected, run_scan
from llava_forgery.scan.folder import RECORDS, open_folder
from llava_forgery.scan.models import ModelSettings
from llava_forgery.scan.plan import Plan
from llava_forgery.scan.reader import ReadSettings
from llava_forgery.scan.report import write_report
from llava_forgery.scan.schema import to_table
from llava_forgery.scan.sources import list_entries
from llava_forgery.scan.stages import DetectStage, ScanSettings, judge_here, list_stages
from llava_forgery.scan.units import Unit

SAMPLES = Path(__file__).parents[1] / "samples"
_WORKER_DEATHS, _DRIVER_DEATHS = 10, 2


class ConstantDetect(DetectStage):
    """The detector's stage without a detector: every face scores 0.25."""

    def __init__(self, settings, asks, provenance):
        super().__init__(settings, asks, provenance)
        self._judge.predictor = self

    def predict_faces(self, faces):
        mask = np.zeros((8, 8), np.float32)
        return [Verdict(0.25, None, None, (), None, mask, face.box) for face in faces]


def make_archive(folder: Path, photographs: int, videos: int, side: int | None = None) -> Path:
    """Pictures and clips whose bytes all differ.

    Args:
        folder: To write.
        photographs: How many.
        videos: How many clips of 50 frames.
        side: Longer side in pixels; None leaves the photographs as they are.
    """
    sources = [Image.open(path).convert("RGB") for path in sorted(SAMPLES.glob("*.jpg"))]
    pictures = sources if side is None else [source.resize((side, side)) for source in sources]
    encode = cache(lambda which, quality: _jpeg(pictures[which], quality))
    for number in range(photographs):
        path = folder / f"{number // 500:03}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        again, which = divmod(number, len(pictures))
        # What follows the picture's end is not read, and makes the bytes differ.
        path.write_bytes(encode(which, 70 + again % 25) + number.to_bytes(4, "big"))
    for number in range(videos):
        _make_clip(folder / "clips" / f"{number:03}.mp4", sources[number % len(sources)], number)
    return folder


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _make_clip(path: Path, picture: Image.Image, number: int) -> None:
    av = require("av", extra="video", feature="making clips")
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = (side // 2 * 2 for side in picture.size)
    pixels = np.asarray(picture.resize((width, height)))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(50):
            moved = np.roll(pixels, (i * (1 + number % 3)) % 24, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        container.mux(stream.encode())


def run_child(spec: dict[str, Any], wait: bool = True, pin: int | None = None) -> Any:
    """A scan in a process of its own: its figures, or the process."""
    command = [sys.executable, __file__, "child", json.dumps(spec)]
    if pin is not None:
        command = ["taskset", "-c", str(pin), *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    return read_child(process) if wait else process


def read_child(process: subprocess.Popen) -> dict[str, Any]:
    """What a child printed last."""
    printed = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"a scan ended with status {process.returncode}")
    return json.loads(printed.splitlines()[-1])


def child(spec: dict[str, Any]) -> None:
    """Judge, and print figures as JSON."""
    if spec.get("detect"):
        print(json.dumps(time_detect(spec)))
        return
    settings = settings_of(spec)
    if spec.get("constant"):
        engine.list_stages = lambda *given: [
            (ConstantDetect if kind is DetectStage else kind, arguments)
            for kind, arguments in list_stages(*given)
        ]
    cluster = Cluster(workers=spec["workers"], block=spec.get("block", 16))
    points: list[tuple[float, int, float, float]] = []
    peak = 0

    def progress(files: int) -> None:
        nonlocal peak
        before = points[-1][1] if points else 0
        points.append((time.monotonic(), before + files, *cpu_seconds()))
        peak = max(peak, *(worker.memory_info().rss for worker in workers()), 0)

    with open_folder(Path(spec["out"]), settings.decisive()) as folder:
        plan = Plan(folder, list_entries([spec["archive"]]))
        due = spec.get("shard_seconds", 20)
        with connected(cluster) as ray, Collector(folder, seconds=due) as collector:
            # All of its processes are there when the first file is given out.
            ray.data.DataContext.get_current().wait_for_min_actors_s = 600
            run_scan(ray, cluster, settings, plan, collector, progress)
    (begun, first, busy, ray_busy), (ended, files, busy_end, ray_end) = points[0], points[-1]
    print(
        json.dumps(
            {
                "files": files,
                "rate": (files - first) / (ended - begun),
                "cpu": (busy_end - busy) / (files - first),
                # A share of one processor.
                "ray": (ray_end - ray_busy) / (ended - begun),
                "driver": own_peak(),
                "worker": peak / 2**20,
            }
        )
    )


def settings_of(spec: dict[str, Any]) -> ScanSettings:
    """Of a scan, from what the parent says."""
    read = ReadSettings(FrameChoice(spec.get("frames", 8)), spec.get("cropped", False))
    model = ModelSettings(spec["model"], spec.get("host"), "cpu")
    return ScanSettings(model, spec["answers"], read)


def time_detect(spec: dict[str, Any]) -> dict[str, float]:
    """``detect --jsonl`` of the same files, from its first to its last record."""
    settings = settings_of(spec)
    model = settings.model
    predictor = model.predictor("all" if spec["answers"] == "all" else "none")
    points = []
    for _ in judge_files(predictor, [spec["archive"]], cropped=spec.get("cropped", False)):
        points.append((time.monotonic(), time.process_time()))
    (begun, busy), (ended, busy_end) = points[0], points[-1]
    files = len(points) - 1
    return {"rate": files / (ended - begun), "cpu": (busy_end - busy) / files}


def workers() -> list[psutil.Process]:
    """Processes of the stages of this process's cluster."""
    return [process for process in psutil.Process().children(recursive=True) if is_worker(process)]


def is_worker(process: psutil.Process) -> bool:
    """Whether a process is one of a stage."""
    try:
        return "MapWorker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def cpu_seconds() -> tuple[float, float]:
    """Of this process and its workers, and of Ray's own processes."""
    work, own = sum(psutil.Process().cpu_times()[:2]), 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            seconds = sum(process.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
        if is_worker(process):
            work += seconds
        else:
            own += seconds
    return work, own


def own_peak() -> float:
    """Peak resident size of this process in MiB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def bench_overhead(arguments: argparse.Namespace, folder: Path) -> None:
    archive = make_archive(folder / "archive", arguments.files[0], 0)
    spec = spec_of(arguments, archive, folder / "out", answers="none", workers=1)
    rows = []
    for name, more in (("detect", {"detect": True}), ("scan, 1 worker", {})):
        found = run_child({**spec, **more}, pin=0)
        rows.append((name, found["rate"], 1000 * found["cpu"], found.get("ray", 0.0)))
    print("| one processor | files/s | CPU ms a file | Ray, CPUs |\n|---|---|---|---|")
    for name, rate, cpu, own in rows:
        print(f"| {name} | {rate:.2f} | {cpu:.1f} | {own:.3f} |")
    print(
        f"overhead: {rows[0][1] / rows[1][1] - 1:+.1%} time, {rows[1][2] / rows[0][2] - 1:+.1%} CPU"
    )


def bench_scaling(arguments: argparse.Namespace, folder: Path) -> None:
    print("| answers | | files | files/s | CPU ms a file |\n|---|---|---|---|---|")
    for answers in arguments.answers:
        whole = make_archive(folder / answers, arguments.files[0], arguments.videos)
        both = run_child(spec_of(arguments, whole, folder / f"{answers}-2", answers, workers=2))
        alone = []
        for i in range(2):
            part = folder / f"{answers}-part{i}"
            for path in sorted(whole.rglob("*.*"))[i::2]:
                place = part / path.relative_to(whole)
                place.parent.mkdir(parents=True, exist_ok=True)
                os.link(path, place)
            spec = spec_of(arguments, part, folder / f"{answers}-out{i}", answers, workers=1)
            alone.append(run_child(spec, wait=False))
        found = [read_child(process) for process in alone]
        rate = sum(one["rate"] for one in found)
        cpu = sum(one["cpu"] for one in found) / 2
        files = sum(one["files"] for one in found)
        for name, judged, speed, busy in (
            ("two scans of half, 1 worker each", files, rate, cpu),
            ("2 workers", both["files"], both["rate"], both["cpu"]),
        ):
            print(f"| {answers} | {name} | {judged} | {speed:.2f} | {1000 * busy:.1f} |")
        print(f"ratio for {answers}: {both['rate'] / rate:.2f}, by CPU {cpu / both['cpu']:.2f}")


def bench_memory(arguments: argparse.Namespace, folder: Path) -> None:
    print("| files | driver, peak MiB | largest worker, MiB | files/s |\n|---|---|---|---|")
    for files in arguments.files:
        archive = make_archive(folder / str(files), files, 0, side=100)
        spec = spec_of(arguments, archive, folder / f"out-{files}", "none", workers=1)
        found = run_child({**spec, "constant": True, "cropped": True})
        print(
            f"| {found['files']} | {found['driver']:.0f} | {found['worker']:.0f} "
            f"| {found['rate']:.0f} |"
        )


def bench_kills(arguments: argparse.Namespace, folder: Path) -> None:
    archive = make_archive(folder / "archive", arguments.files[0], arguments.videos)
    base = spec_of(arguments, archive, folder / "calm", "none", workers=2)
    base |= {"shard_seconds": 0, "block": 4}
    run_child(base)
    spec = {**base, "out": str(folder / "killed")}
    killed = {"worker": 0, "driver": 0}
    process, shards = run_child(spec, wait=False), 0
    while process.poll() is None or killed["driver"] < _DRIVER_DEATHS:
        time.sleep(0.05)
        now = len(list((folder / "killed" / RECORDS).glob("part-*")))
        if process.poll() is not None:
            break
        if now <= shards:
            continue
        shards = now
        found = [p for p in psutil.Process(process.pid).children(recursive=True) if is_worker(p)]
        if killed["worker"] * (_DRIVER_DEATHS + 1) >= _WORKER_DEATHS * (killed["driver"] + 1) and (
            killed["driver"] < _DRIVER_DEATHS
        ):
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed["driver"] += 1
            process = run_child(spec, wait=False)
        elif found and killed["worker"] < _WORKER_DEATHS:
            found[killed["worker"] % len(found)].kill()
            killed["worker"] += 1
    process.wait()
    calm, other = (read_records(folder / name) for name in ("calm", "killed"))
    different = sum(not same(calm[name], other[name]) for name in calm.keys() & other.keys())
    print("| killed workers | killed drivers | files | missing | twice | different |")
    print("|---|---|---|---|---|---|")
    twice = other.pop("twice") if "twice" in other else 0
    print(
        f"| {killed['worker']} | {killed['driver']} | {len(calm)} | "
        f"{len(calm.keys() - other.keys())} | {twice} | {different} |"
    )


def read_records(out: Path) -> dict[str, Any]:
    """Records by file; under ``twice`` how many files have more than one."""
    rows = pq.read_table(out / RECORDS).to_pylist()
    found = {row["file"]: row for row in rows}
    return found | ({"twice": len(rows) - len(found)} if len(rows) > len(found) else {})


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two records are equal; scores to 1e-5, as batches of other sizes round otherwise."""
    names = ("sha256", "size", "modified", "kind", "error", "flagged", "weights")
    if [one[name] for name in names] != [other[name] for name in names]:
        return False
    faces = list(zip(one["faces"], other["faces"], strict=False))
    return len(one["faces"]) == len(other["faces"]) and all(
        a["box"] == b["box"] and abs(a["score"] - b["score"]) < 1e-5 for a, b in faces
    )


def bench_stages(arguments: argparse.Namespace, folder: Path) -> None:
    torch.set_num_threads(1)
    archive = make_archive(folder / "archive", arguments.files[0], 0)
    settings = settings_of(spec_of(arguments, archive, folder, answers="none", workers=1))
    run, predictor = judge_here(settings), settings.model.predictor("none")
    entries = list(list_entries([str(archive)]))
    blocks = [entries[start : start + 16] for start in range(0, len(entries), 16)]
    turns = {
        "detect": lambda block: list(judge_files(predictor, [entry.path for entry in block])),
        "all stages": lambda block: run([Unit(entry) for entry in block]),
    }
    busy = dict.fromkeys(turns, 0.0)
    for number, block in enumerate(blocks):
        for name in sorted(turns, reverse=number % 2 == 0):
            begun = time.process_time()
            turns[name](block)
            # The first block also pays for what is loaded when it is first needed.
            busy[name] += time.process_time() - begun if number else 0.0
    files = len(entries) - len(blocks[0])
    print("| in one process | CPU ms a file |\n|---|---|")
    for name, seconds in busy.items():
        print(f"| {name} | {1000 * seconds / files:.1f} |")
    print(f"overhead: {busy['all stages'] / busy['detect'] - 1:+.1%} CPU")


def bench_report(arguments: argparse.Namespace, folder: Path) -> None:
    archive = make_archive(folder / "archive", arguments.files[0], 0)
    settings = settings_of(spec_of(arguments, archive, folder, answers="none", workers=1))
    units = [Unit(entry) for entry in list_entries([str(archive)])]
    rows = [result.record for result in judge_here(settings)(units)]
    shard = folder / RECORDS / "part-000000.parquet"
    shard.parent.mkdir()
    number, size = 0, 5000
    while number * size < arguments.rows:
        some = [
            {**rows[i % len(rows)], "file": f"/f{i % 997}/{number}-{i}.jpg"} for i in range(size)
        ]
        pq.write_table(to_table(some), shard.with_name(f"part-{number:06}.parquet"))
        number += 1
    begun, busy = time.monotonic(), time.process_time()
    page = write_report(folder, folder / "report.html")
    took, cpu = time.monotonic() - begun, time.process_time() - busy
    print("| rows | seconds | CPU seconds | page, MB |\n|---|---|---|---|")
    print(f"| {number * size} | {took:.1f} | {cpu:.1f} | {page.stat().st_size / 1e6:.2f} |")


def spec_of(
    arguments: argparse.Namespace, archive: Path, out: Path, answers: str, workers: int
) -> dict[str, Any]:
    """What a child is told."""
    return {
        "archive": str(archive), "out": str(out), "answers": answers, "workers": workers,
        "model": arguments.model and str(arguments.model.resolve()), "host": arguments.base_model,
    }  # fmt: skip


BENCHES = {
    "overhead": bench_overhead, "scaling": bench_scaling, "memory": bench_memory,
    "kills": bench_kills, "stages": bench_stages, "report": bench_report,
}  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        child(json.loads(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bench", choices=BENCHES)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--base-model")
    parser.add_argument("--files", type=int, nargs="+", default=[500])
    parser.add_argument("--videos", type=int, default=0)
    parser.add_argument("--answers", nargs="+", default=["none"])
    parser.add_argument("--rows", type=int, default=100_000)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-scan-"))
    try:
        BENCHES[arguments.bench](arguments, folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
