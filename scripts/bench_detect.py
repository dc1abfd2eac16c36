"""What ``detect`` takes: start to first verdict, photographs and face crops per second, memory.

    git worktree add ../before COMMIT
    python scripts/bench_detect.py ../before                     # the photographs of samples/
    python scripts/bench_detect.py ../before --photographs DIR --count 200 --rounds 3

Both trees judge the same files with the same weights, in processes that take turns, and the best
of the rounds counts. Ratios are of both clock and CPU time: other programs disturb the second less,
the first alone shows what runs side by side. Answers and P(yes) of both are compared, and the share
of padding in the prompts of a batch is printed. Peak memory is the resident size of a process that
judges 1, 64 and 256 faces of one picture.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

TREE = Path(__file__).parents[1]
FACES = (1, 64, 256)
# Runs in either tree: only what both have is called.
_THROUGHPUT = """
import json, resource, sys, time
from llava_forgery.infer.batch import judge_files
from llava_forgery.infer.predictor import ForgeryPredictor
answers, cropped, files = sys.argv[1], sys.argv[2] == "cropped", sys.argv[3:]
predictor = ForgeryPredictor.from_pretrained(answers=answers)
list(judge_files(predictor, files[:1], cropped=cropped))
clock, cpu = time.perf_counter(), time.process_time()
records = [record.to_dict() for record in judge_files(predictor, files, cropped=cropped)]
print(json.dumps([time.perf_counter() - clock, time.process_time() - cpu, records]))
"""
_MEMORY = """
import resource, sys
import numpy as np
from llava_forgery.infer.predictor import FaceInput, ForgeryPredictor
predictor = ForgeryPredictor.from_pretrained()
rng = np.random.default_rng(0)
faces = [
    FaceInput(rng.integers(0, 256, (predictor.size, predictor.size, 3), np.uint8), (0, 0, 9, 9))
    for _ in range(int(sys.argv[1]))
]
predictor.predict_faces(faces)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
_PADDING = """
import sys
from PIL import Image
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.qa.build import build_prompt
prompts = ForgeryPredictor.from_pretrained().vlm.prompts
image = Image.new("RGB", (64, 64))
lengths = [len(prompts.encode(build_prompt(i / 100), [image])["input_ids"]) for i in range(101)]
print(1 - sum(lengths) / (len(lengths) * max(lengths)))
"""


def main(
    before: Annotated[Path, typer.Argument(help="Worktree to compare with.")],
    photographs: Annotated[Path, typer.Option(help="Folder of photographs.")] = TREE / "samples",
    count: Annotated[int, typer.Option(min=1, help="Files to judge; taken again if fewer.")] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each tree.")] = 2,
    memory: Annotated[bool, typer.Option(help="Measure the peak memory.")] = True,
) -> None:
    """Print the tables."""
    found = sorted(path for path in photographs.rglob("*.jpg"))
    if not found:
        raise typer.BadParameter(f"no .jpg lies in {photographs}")
    files = [str(path.resolve()) for path in islice(cycle(found), count)]
    trees = {"before": before.resolve(), "now": TREE}
    with tempfile.TemporaryDirectory() as folder:
        crops = _face_crops(files, Path(folder))
        print("| what | before, s | now, s | clock | CPU |\n|---|---|---|---|---|")
        for answers in ("all", "none"):
            times = {name: [] for name in trees}
            for _ in range(rounds):
                for name, tree in trees.items():
                    times[name].append(_cold(tree, files[0], answers))
            _row(f"one photograph from the start, answers {answers}", times)
        slow: dict[str, list[Any]] = {}
        for answers, kind, paths in (("all", "whole", files), ("none", "cropped", crops)):
            runs = {name: [] for name in trees}
            for _ in range(rounds):
                for name, tree in trees.items():
                    # The rate of before, with answers, is the measure of both.
                    if name == "before" and answers == "none":
                        continue
                    arguments = [answers, kind, *paths]
                    runs[name].append(json.loads(_python(tree, _THROUGHPUT, *arguments)))
            slow = slow or runs
            runs["before"] = slow["before"]
            _row(f"{count} {kind} files, answers {answers}", runs)
    _compare(slow["before"][0][2], slow["now"][0][2])
    print(f"padding of prompts: {float(_python(TREE, _PADDING)):.1%}")
    if memory:
        print("| faces | peak memory before, MiB | now, MiB |\n|---|---|---|")
        for faces in FACES:
            peaks = [int(_python(tree, _MEMORY, str(faces))) >> 10 for tree in trees.values()]
            print(f"| {faces} | {peaks[0]} | {peaks[1]} |", flush=True)


def _python(tree: Path, script: str, *arguments: str) -> str:
    """The last line that a script prints with the package of a tree."""
    command = [sys.executable, "-c", script, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, env=environment, cwd=tree, stdout=subprocess.PIPE, check=True)
    return done.stdout.decode().splitlines()[-1]


def _cold(tree: Path, file: str, answers: str) -> tuple[float, float]:
    """Seconds until ``detect`` has judged a file, by the clock and of CPU time."""
    command = [sys.executable, "-m", "llava_forgery.cli", "detect", file, "--answers", answers]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    clock, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environment, cwd=tree, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return time.perf_counter() - clock, cpu


def _face_crops(files: list[str], folder: Path) -> list[str]:
    """The largest face of each photograph, as training frames faces."""
    sys.path.insert(0, str(TREE))
    from llava_forgery.infer.predictor import FaceFinder

    finder, crops = FaceFinder(224), []
    made: dict[str, str] = {}
    for file in files:
        if file not in made:
            path = folder / f"{len(made)}.png"
            Image.fromarray(finder.largest_face(file).image).save(path)
            made[file] = str(path)
        crops.append(made[file])
    return crops


def _row(what: str, times: dict[str, list[Any]]) -> None:
    """One line: the best clock times, and the ratios of both."""
    best = {name: [min(run[i] for run in runs) for i in (0, 1)] for name, runs in times.items()}
    (clock, cpu), (clock_now, cpu_now) = best["before"], best["now"]
    ratios = f"{clock / clock_now:.2f} times | {cpu / cpu_now:.2f} times"
    print(f"| {what} | {clock:.1f} | {clock_now:.1f} | {ratios} |", flush=True)


def _compare(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> None:
    """Whether both trees say the same of the same files."""
    pairs = [
        (one, other)
        for a, b in zip(before, now, strict=True)
        for one, other in zip(a["faces"], b["faces"], strict=True)
    ]
    same = sum(one["answer"] == other["answer"] for one, other in pairs)
    apart = max(abs(one["p_yes"] - other["p_yes"]) for one, other in pairs)
    print(f"{same} of {len(pairs)} answers are the same, P(yes) differs by {apart:.1e} at most")


if __name__ == "__main__":
    typer.run(main)
