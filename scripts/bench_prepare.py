"""What preparing faces costs: memory against the number of files, time against workers.

    python scripts/bench_prepare.py memory --files 100 10000
    python scripts/bench_prepare.py speed --files 60

Both copy the photographs (of samples/, or --photos) as often as needed; for the memory their
middles are first made small (100 pixels), so that ten thousand take minutes. Every preparation is a
process of its own. Memory is its peak resident size as Linux tells it (VmHWM); the time is that of
the call, without the imports. The speed is also told in CPU seconds, which other work on the
machine leaves nearly as they are: on an idle machine a preparation takes about those of the first
process and an equal share of the workers', whose start (imports, models) is in it. As many
independent preparations, each of its share of the files and all at once, say what the machine can
do at best: their imports are not counted, those of the workers are. --detector middle takes the
middle of every picture for a face, whatever is in it: all but the detector is then as in
``llava-forgery data prepare``.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from llava_forgery.images import SUFFIXES

SAMPLES = Path(__file__).parents[1] / "samples"
_SMALL = 100
_CHILD = """
import json, re, resource, sys, time
from pathlib import Path
import numpy as np
from llava_forgery.faces.detected import DetectedFace
from llava_forgery.faces.prepare import prepare
class Middle:
    def detect(self, image):
        x, y = image.shape[1] / 4, image.shape[0] / 4
        points = np.linspace((x, y), (3 * x, 3 * y), 68, dtype=np.float32)
        return [DetectedFace((x, y, 3 * x, 3 * y), points, 1.0)]
if __name__ == "__main__":
    src, out, size, workers, detector = sys.argv[1:]
    detector = Middle() if detector == "middle" else detector
    start, busy = time.perf_counter(), time.process_time()
    report = prepare(src, out, size=int(size), workers=int(workers), detector=detector)
    seconds = time.perf_counter() - start
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    busy = time.process_time() - busy
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps({"faces": report.faces, "seconds": seconds, "peak_mib": peak,
                      "own_cpu": busy, "workers_cpu": ended.ru_utime + ended.ru_stime}))
"""


def prepared(src: Path, out: Path, size: int, workers: int, detector: str) -> dict[str, float]:
    """Run one preparation in a process of its own."""
    # From a file: processes that are spawned import the main module anew.
    script = out.with_suffix(".py")
    script.write_text(_CHILD)
    result = subprocess.run(
        [sys.executable, str(script), str(src), str(out), str(size), str(workers), detector],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    shutil.rmtree(out)
    return json.loads(result.stdout.splitlines()[-1])


def independent(sources: list[Path], detector: str) -> float:
    """Seconds until the last of so many preparations is done, begun at the same time."""
    with ThreadPoolExecutor(len(sources)) as pool:
        runs = [
            pool.submit(prepared, src, src.with_name(f"{src.name}-out"), 320, 1, detector)
            for src in sources
        ]
        return max(run.result()["seconds"] for run in runs)


def copies(photos: list[Path], folder: Path, count: int, side: int | None) -> Path:
    """Fill a folder with so many pictures, made small if a side is given."""
    folder.mkdir()
    models = []
    for photo in photos[:count]:
        data = folder.parent / f"model-{len(models)}.png"
        if side is None:
            data = photo
        else:
            with Image.open(photo) as image:
                width, height = image.size
                middle = (0.2 * width, 0.2 * height, 0.8 * width, 0.8 * height)
                small = image.convert("RGB").resize((side, side), Image.Resampling.BOX, middle)
            small.save(data)
        models.append(data)
    for i in range(count):
        model = models[i % len(models)]
        shutil.copyfile(model, folder / f"{i:06d}{model.suffix}")
    return folder


def main() -> None:
    """Print one line a preparation, then the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("memory", "speed"))
    parser.add_argument("--photos", type=Path, default=SAMPLES, help="of square photographs")
    parser.add_argument("--files", type=int, nargs="+", default=None)
    parser.add_argument("--detector", default="dlib", help="dlib, mediapipe or middle")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=1, help="of the speed; the best counts")
    options = parser.parse_args()
    photos = sorted(p for p in options.photos.iterdir() if p.suffix.lower() in SUFFIXES)[:20]
    if not photos:
        parser.error(f"{options.photos} holds no photographs")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.what == "memory":
            peaks = []
            for count in options.files or [100, 10000]:
                src = copies(photos, folder / f"src-{count}", count, _SMALL)
                found = prepared(src, folder / f"out-{count}", 64, 1, options.detector)
                peaks.append(found["peak_mib"])
                print(f"{count:6d} files {found['faces']:6d} faces {found['seconds']:8.1f} s "
                      f"peak {found['peak_mib']:7.1f} MiB", flush=True)  # fmt: skip
            print(f"largest to smallest peak: {max(peaks) / min(peaks):.3f}")
        else:
            count = (options.files or [60])[0]
            src = copies(photos, folder / "src", count, None)
            best: dict[int, tuple[float, float]] = {}
            shares = {
                workers: [
                    copies(photos, folder / f"src-{workers}-{i}", count // workers, None)
                    for i in range(workers)
                ]
                for workers in options.workers
                if workers > 1
            }
            apart: dict[int, float] = {}
            # In turns, so that what else the machine does meets all of them.
            for _ in range(options.repeats):
                for workers in options.workers:
                    found = prepared(src, folder / f"out-{workers}", 320, workers, options.detector)
                    idle = found["own_cpu"] + found["workers_cpu"] / workers
                    print(f"{workers} workers {found['faces']} faces {found['seconds']:.1f} s, "
                          f"CPU {found['own_cpu']:.1f} + {found['workers_cpu']:.1f} s",
                          flush=True)  # fmt: skip
                    before = best.get(workers, (float("inf"), float("inf")))
                    best[workers] = (min(before[0], found["seconds"]), min(before[1], idle))
                for workers, sources in shares.items():
                    seconds = independent(sources, options.detector)
                    print(f"{workers} independent preparations {seconds:.1f} s", flush=True)
                    apart[workers] = min(apart.get(workers, seconds), seconds)
            base = best[min(best)]
            for workers, (seconds, idle) in best.items():
                print(f"{workers} workers: {base[0] / seconds:.2f} times {min(best)} by the clock, "
                      f"{base[1] / idle:.2f} times by CPU seconds")  # fmt: skip
            for workers, seconds in apart.items():
                print(f"{workers} workers: {seconds / best[workers][0]:.2f} of the speed of "
                      "independent preparations")  # fmt: skip


if __name__ == "__main__":
    main()
