"""What ``detect`` takes: start to first verdict, photographs and face crops per second, memory.

    git worktree add ../before COMMIT
    python scripts/bench_detect.py ../before                     # the photographs of samples/
    python scripts/bench_detect.py ../before --photographs DIR --count 200 --rounds 3

Both trees judge the same files with the same weights, in processes that take turns, and the best
of the rounds counts. Ratios are of both clock and CPU time: other programs disturb the second less,
the first alone shows what runs side by side. Answers and P(yes) of both are compared, and the share
of padding in the prompts of a batch is printed. Peak memory is the resident size of a process that
judges 1, then 64, then 256 faces of one picture: it can only rise.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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
from llava_forgery.cli.app import load_predictor
from llava_forgery.infer.batch import judge_files
answers, cropped, files = sys.argv[1], sys.argv[2] == "cropped", sys.argv[3:]
predictor = load_predictor(answers=answers, dtype="auto")
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
shape = predictor.size, predictor.size, 3
for count in map(int, sys.argv[1:]):
    faces = [FaceInput(rng.integers(0, 256, shape, np.uint8), (0, 0, 9, 9)) for _ in range(count)]
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


PARTS = ("start", "photographs", "crops", "padding", "memory")


def main(
    before: Annotated[Path, typer.Argument(help="Worktree to compare with.")],
    photographs: Annotated[Path, typer.Option(help="Folder of photographs.")] = TREE / "samples",
    count: Annotated[int, typer.Option(min=1, help="Files to judge; taken again if fewer.")] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each tree.")] = 2,
    part: Annotated[
        list[str] | None, typer.Option(help=f"Repeatable; all by default: {', '.join(PARTS)}.")
    ] = None,
) -> None:
    """Print the tables."""
    parts = part or list(PARTS)
    found = sorted(photographs.rglob("*.jpg"))
    if not found or not {*parts} <= {*PARTS}:
        raise typer.BadParameter(f"expected .jpg in {photographs} and parts of {PARTS}")
    files = [str(path.resolve()) for path in islice(cycle(found), count)]
    trees = {"before": before.resolve(), "now": TREE}

    def measured(run: Callable[[str, Path], Any]) -> dict[str, list[Any]]:
        turns = [(name, run(name, tree)) for _ in range(rounds) for name, tree in trees.items()]
        return {name: [result for other, result in turns if other == name] for name in trees}

    print("| what | before, s | now, s | clock | CPU |\n|---|---|---|---|---|", flush=True)
    for answers in ("all", "none"):
        if "start" in parts:
            runs = measured(lambda _, tree, answers=answers: _start(tree, files[0], answers))
            _row(f"one photograph from the start, answers {answers}", runs)
    if "photographs" in parts:
        runs = measured(lambda _, tree: _judged(tree, "all", "whole", files))
        _row(f"{count} photographs, answers all", runs)
        _compare(runs["before"][0][2], runs["now"][0][2])
    if "crops" in parts:
        with tempfile.TemporaryDirectory() as folder:
            crops = _face_crops(files, Path(folder))
            # Answering is the measure: what was to be had before.
            runs = measured(
                lambda name, tree: (
                    _judged(tree, "all", "whole", files)
                    if name == "before"
                    else _judged(tree, "none", "cropped", crops)
                )
            )
        _row(f"{count} face crops, answers none, against photographs, answers all", runs)
    if "padding" in parts:
        print(f"padding of prompts: {float(_python(TREE, _PADDING)[0]):.1%}")
    if "memory" in parts:
        print("| faces | peak memory, MiB |\n|---|---|")
        for faces, peak in zip(FACES, _python(TREE, _MEMORY, *map(str, FACES)), strict=True):
            print(f"| {faces} | {int(peak) >> 10} |", flush=True)


def _judged(tree: Path, answers: str, kind: str, files: list[str]) -> list[Any]:
    """Seconds by the clock, of CPU time, and the records."""
    return json.loads(_python(tree, _THROUGHPUT, answers, kind, *files)[-1])


def _python(tree: Path, script: str, *arguments: str) -> list[str]:
    """The lines that a script prints with the package of a tree."""
    command = [sys.executable, "-c", script, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, env=environment, cwd=tree, stdout=subprocess.PIPE, check=True)
    return done.stdout.decode().splitlines()


def _start(tree: Path, file: str, answers: str) -> tuple[float, float]:
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
        (a["file"], one, other)
        for a, b in zip(before, now, strict=True)
        for one, other in zip(a["faces"], b["faces"], strict=True)
    ]
    same = sum(one["answer"] == other["answer"] for _, one, other in pairs)
    apart, where = max((abs(one["p_yes"] - other["p_yes"]), file) for file, one, other in pairs)
    print(
        f"{same} of {len(pairs)} answers are the same, P(yes) differs by {apart:.1e} at most, in "
        f"{where}"
    )


if __name__ == "__main__":
    typer.run(main)
