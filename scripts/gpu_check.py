"""Everything that only a GPU can tell, in one command of a few minutes.

    python scripts/gpu_check.py --out gpu-check               # on a machine with a GPU
    python scripts/gpu_check.py --rehearse --out rehearsal    # all parts on the CPU, at tiny sizes

Parts run one after another in the order of what they are worth, each in a process of its own with a
limit of its own: one that fails, hangs or runs out of memory does not stop the others. Figures are
written as they come, to ``PART.jsonl`` and ``PART.log``; at the end ``gpu_check.json`` and a table
hold them all. Figures of a rehearsal say only that the parts run.

With ``--train MINUTES`` the shipped detector's recipe is trained at this machine's speed on
``--faces`` (written by ``llava-forgery data prepare``) and measured on ``--real`` (see
``llava-forgery eval real --help``).
"""

import argparse
import json
import math
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import gpu_commands
import gpu_parts
import torch
from gpu_parts import Setting

from llava_forgery.files import write_json

LIBRARIES = ("torch", "transformers", "peft", "timm", "open-clip-torch", "kornia", "datasets",
             "bitsandbytes", "opencv-python-headless", "av")  # fmt: skip


class Part(NamedTuple):
    """What runs, and how long it may take."""

    run: Callable[[Setting], None]
    seconds: float


PARTS: dict[str, Part] = {
    "equality": Part(gpu_parts.equality, 90),
    "host": Part(gpu_parts.host, 90),
    "steps": Part(gpu_parts.steps, 120),
    "simulator": Part(gpu_parts.simulator, 120),
    "detector": Part(gpu_parts.detector, 60),
    "detect": Part(gpu_commands.detect, 60),
    "serve": Part(gpu_commands.serve, 60),
    "quantised": Part(gpu_parts.quantised, 90),
    "train": Part(gpu_commands.train, 120),
}
"""In the order of what they are worth."""

# Seconds after its limit until a part is killed: it is asked to stop first.
GRACE = 5


def main() -> None:
    """Run the parts and print the table."""
    # argparse: such machines may hold no more than torch and transformers.
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder for figures")
    parser.add_argument("--parts", help="some of: " + ",".join(PARTS))
    parser.add_argument(
        "--budget", type=float, help="seconds for all parts, by default 480; no limit to --rehearse"
    )
    parser.add_argument("--device", default="cuda", help="such as cuda or cuda:1")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, at tiny sizes")
    parser.add_argument("--train", type=float, default=0, help="minutes of training; 0: none")
    parser.add_argument("--faces", type=Path, help="prepared faces to train on")
    parser.add_argument("--real", type=Path, help="crops of real and forged videos")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    setting = Setting(
        device="cpu" if given.rehearse else given.device,
        tiny=given.rehearse,
        minutes=given.train,
        faces=given.faces,
        real=given.real,
        out=given.out,
    )
    if given.one is not None:
        run_part(given.one, setting)
        return
    if not given.rehearse and not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use; --rehearse runs all parts on the CPU")
    wanted = list(PARTS) if given.parts is None else given.parts.split(",")
    unknown = sorted(set(wanted) - set(PARTS))
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; parts are {', '.join(PARTS)}")
    if given.train and (given.faces is None or given.real is None):
        parser.error("--train needs --faces to train on and --real to measure on")
    if not given.train:
        wanted = [name for name in wanted if name != "train"]
    given.out.mkdir(parents=True, exist_ok=True)
    # A rehearsal's parts are to end, however slow the processor is.
    budget = given.budget or (math.inf if given.rehearse else 480)
    end = time.monotonic() + budget
    results: dict[str, Any] = {"machine": describe(setting.device), "rehearsal": given.rehearse}
    results["parts"] = {}
    for name in wanted:
        limit = end - time.monotonic()
        if not given.rehearse:
            limit = min(limit, PARTS[name].seconds + 60 * given.train * (name == "train"))
        results["parts"][name] = run_alone(name, given.out, limit)
        write_json(given.out / "gpu_check.json", results)
    print(table(results))


def run_alone(name: str, out: Path, seconds: float) -> dict[str, Any]:
    """Run a part in a process of its own; what became of it, with its figures."""
    figures = out / f"{name}.jsonl"
    figures.unlink(missing_ok=True)
    if seconds < 1:
        return {"outcome": "not begun: the budget is used up", "figures": []}
    started = time.monotonic()
    with (out / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--one", name],
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            code = process.wait(None if seconds == math.inf else seconds)
            outcome = "done" if code == 0 else f"failed, see {name}.log"
        except subprocess.TimeoutExpired:
            outcome = f"stopped after {seconds:.0f} s"
            process.terminate()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    lines = figures.read_text().splitlines() if figures.is_file() else []
    return {
        "outcome": outcome,
        "seconds": round(time.monotonic() - started, 1),
        "figures": [json.loads(line) for line in lines],
    }


def run_part(name: str, setting: Setting) -> None:
    """Run one part in this process."""
    torch.manual_seed(0)
    # Equality with the CPU is that of float32, not of the tensor cores' shorter numbers.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    # A part that is stopped ends the commands that it has begun.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    with (setting.out / f"{name}.jsonl").open("w") as setting._file:
        PARTS[name].run(setting)


def describe(device: str) -> dict[str, Any]:
    """Machine and versions that the figures are of."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    on_gpu = device != "cpu"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "memory_gib": round(torch.cuda.mem_get_info(device)[1] / 2**30, 1) if on_gpu else None,
        "cuda": torch.version.cuda if on_gpu else None,
        "cpu_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **versions,
    }


def table(results: dict[str, Any]) -> str:
    """All figures as Markdown."""
    lines = [f"{results['machine']['device']}, torch {results['machine']['torch']}"]
    if results["rehearsal"]:
        lines.append("A rehearsal at tiny sizes: these figures say only that the parts run.")
    lines += ["", "| part | figure | value | goal |", "|---|---|---|---|"]
    for name, part in results["parts"].items():
        for row in part["figures"]:
            value = row["value"]
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            goal = row.get("goal") or ""
            if goal and not results["rehearsal"]:
                goal += ", met" if row["met"] else ", missed"
            lines.append(f"| {name} | {row['what']} | {shown} {row['unit']} | {goal} |")
        took = f", {part['seconds']} s" if "seconds" in part else ""
        lines.append(f"| {name} | {part['outcome']}{took} | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
