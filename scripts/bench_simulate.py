"""Forged images per second at 224 and 380 pixels, one CPU thread, alpha and Poisson blending.

    python scripts/bench_simulate.py
    python scripts/bench_simulate.py --faces FACES --public SelfBlendedImages
    python scripts/bench_simulate.py --batch 32 --torch      # the torch renderer, on the CPU too

What is timed is the process's own CPU time, which other programs disturb less than the clock; all
ways take turns, and medians are printed. "supply" is the work for a training pair: framed, forged
as the simulator's defaults say, degraded, as tensors; the crop is decoded already. ``--public``
names a checkout of github.com/mapooon/SelfBlendedImages (which needs scikit-image and
albumentations, 1.3.1 to 1.4.24, whose speeds differ by three): its self-blending is timed on the
same faces, alone and with its shared transforms and tensors. "solver" compares Poisson blending
with ``cv2.seamlessClone`` under an ellipse. Where there is a GPU, a last table times batches of
tensors on it by the clock, with worker processes and all CPU threads. "CPU alone" is the time for
an image that no GPU shortens: plans, masks and JPEG.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import torch
import typer

from llava_forgery.faces.prepare import prepare
from llava_forgery.faces.records import FaceCrop, load_faces
from llava_forgery.simulate import staging
from llava_forgery.simulate.blend import poisson_blend
from llava_forgery.simulate.config import SimulatorConfig
from llava_forgery.simulate.degrade import DegradeConfig, degrade
from llava_forgery.simulate.pairs import CENTRED, FramingConfig, frame_face
from llava_forgery.simulate.simulator import ForgerySimulator, to_tensor

SAMPLES = Path(__file__).parents[1] / "samples"
SIZES = (224, 380)


def main(
    faces: Annotated[
        Path | None, typer.Option(help="Prepared faces; by default those of samples/.")
    ] = None,
    public: Annotated[
        Path | None, typer.Option(help="Checkout of SelfBlendedImages to compare with.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Turns of each way.")] = 7,
    images: Annotated[int, typer.Option(help="Images of each way in a turn.")] = 20,
    batch: Annotated[int, typer.Option(help="Images of a batch of tensors.")] = 256,
    on_cpu: Annotated[
        bool, typer.Option("--torch", help="Time the torch renderer on the CPU as well.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that draw for the torch renderer; without, one for each core "
            "where there is a GPU, none on the CPU."
        ),
    ] = None,
) -> None:
    """Print the tables."""
    threads = torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if faces is None:
            prepare(SAMPLES, folder)
        rows = load_faces(faces or folder)
        crops = [FaceCrop.from_row(rows[i]) for i in range(min(16, len(rows)))]
    print(f"OpenCV {cv2.__version__}, torch {torch.__version__}, {len(crops)} faces, one thread")
    print("| pixels | way | images/s | ms | times public |\n|---|---|---|---|---|")
    for size in SIZES:
        framed = [frame_face(crop, size, CENTRED) for crop in crops]
        ways = _ours(crops, framed, size)
        if public is not None:
            ways |= _public(public, framed, size)
        times = _take_turns(ways, rounds, images)
        for name, seconds in times.items():
            base = times.get("public, supply" if "supply" in name else "public, self-blending")
            ratio = f"{base / seconds:.1f}" if base else ""
            print(f"| {size} | {name} | {1 / seconds:.1f} | {1000 * seconds:.2f} | {ratio} |")
    print("\n| pixels | solver, ms | seamlessClone, ms | difference inside | largest |")
    print("|---|---|---|---|---|")
    for size in SIZES:
        _solver(crops, size, rounds)
    devices = ["cpu"] * on_cpu + ["cuda"] * torch.cuda.is_available()
    if devices:
        print("\n| pixels | torch renderer | workers | images/s | ms | CPU alone, ms | batch |")
        print("|---|---|---|---|---|---|---|")
    for device in devices:
        on_gpu = device == "cuda"
        torch.set_num_threads(threads if on_gpu else 1)
        drawers = (os.cpu_count() or 1) * on_gpu if workers is None else workers
        for size in SIZES:
            _batches(crops, size, device, rounds, batch, drawers)


def _ours(
    crops: list[FaceCrop], framed: list[tuple[np.ndarray, np.ndarray]], size: int
) -> dict[str, Callable[[int], object]]:
    alpha = ForgerySimulator(SimulatorConfig(poisson=0.0))
    poisson = ForgerySimulator(SimulatorConfig(poisson=1.0))
    mixed, framing, changes = ForgerySimulator(), FramingConfig(), DegradeConfig()

    def supply(seed: int) -> tuple[torch.Tensor, ...]:
        rng = np.random.default_rng([seed, 1])
        image, landmarks = frame_face(crops[seed % len(crops)], size, framing, rng)
        forged = mixed.forge(image, landmarks, seed)
        pair, _ = degrade(np.stack([forged.image, forged.pristine]), changes, rng)
        return to_tensor(pair[0]), to_tensor(pair[1]), to_tensor(forged.mask)

    return {
        "alpha": lambda seed: alpha.forge(*framed[seed % len(framed)], seed),
        "Poisson": lambda seed: poisson.forge(*framed[seed % len(framed)], seed),
        "supply": supply,
    }


def _public(
    folder: Path, framed: list[tuple[np.ndarray, np.ndarray]], size: int
) -> dict[str, Callable[[int], object]]:
    """The public code's ways; its data set is made without its files, its methods are its own."""
    if not (folder / "src" / "utils" / "sbi.py").is_file():
        raise FileNotFoundError(
            f"{folder} is no checkout of SelfBlendedImages: no src/utils/sbi.py"
        )
    sys.path.insert(0, str(folder / "src"))
    from utils import sbi

    source = object.__new__(sbi.SBI_Dataset)
    source.transforms, source.source_transforms = (
        source.get_transforms(),
        source.get_source_transforms(),
    )
    points = [landmarks.astype(int) for _, landmarks in framed]

    def blend(seed: int) -> tuple[np.ndarray, ...]:
        place = seed % len(framed)
        return source.self_blending(framed[place][0].copy(), points[place].copy())

    def supply(seed: int) -> list[np.ndarray]:
        pristine, forged, _ = blend(seed)
        changed = source.transforms(image=forged, image1=pristine)
        pair = [cv2.resize(changed[name], (size, size)) for name in ("image", "image1")]
        return [(image.astype("float32") / 255).transpose(2, 0, 1) for image in pair]

    return {"public, self-blending": blend, "public, supply": supply}


def _take_turns(
    ways: dict[str, Callable[[int], object]], rounds: int, images: int
) -> dict[str, float]:
    """Median seconds of CPU time for an image."""
    seeds, taken = count(), {name: [] for name in ways}
    for way in ways.values():
        way(next(seeds))
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            for _ in range(images):
                way(next(seeds))
            taken[name].append((time.process_time() - start) / images)
    return {name: statistics.median(values) for name, values in taken.items()}


def _solver(crops: list[FaceCrop], size: int, rounds: int) -> None:
    mask = np.zeros((size, size), np.uint8)
    middle, axes = (size // 2, size // 2), (size // 4, size // 3)
    cv2.ellipse(mask, middle, axes, 20, 0, 360, 255, -1)
    x, y, width, height = cv2.boundingRect(mask)
    taken: tuple[list[float], list[float]] = ([], [])
    means, largest = [], 0
    for crop in crops:
        back, _ = frame_face(crop, size, CENTRED)
        front = cv2.convertScaleAbs(np.roll(back, (3, 5), (0, 1)), alpha=0.85, beta=25)
        results = []
        for times, clone in (
            (taken[0], lambda f=front, b=back: poisson_blend(f, b, mask, erosion=3)),
            (
                taken[1],
                # OpenCV overwrites the mask that it is given.
                lambda f=front, b=back: cv2.seamlessClone(
                    f, b, mask.copy(), (x + width // 2, y + height // 2), cv2.NORMAL_CLONE
                ),
            ),
        ):
            for _ in range(max(1, rounds // 2)):
                start = time.process_time()
                result = clone()
                times.append(time.process_time() - start)
            results.append(result.astype(int))
        difference = np.abs(results[0] - results[1])
        means.append(difference[mask > 0].mean())
        largest = max(largest, int(difference.max()))
    ours, theirs = (1000 * statistics.median(times) for times in taken)
    print(f"| {size} | {ours:.2f} | {theirs:.2f} | {np.mean(means):.3f} | {largest} |")


def _batches(
    crops: list[FaceCrop], size: int, device: str, rounds: int, batch: int, workers: int
) -> None:
    """Time whole calls by the clock, and what the CPU does in them by itself."""
    framed = [frame_face(crop, size, CENTRED) for crop in crops]
    order = [i % len(framed) for i in range(batch)]
    pictures = np.stack([framed[i][0] for i in order])
    points = np.stack([framed[i][1] for i in order])
    images = torch.stack([to_tensor(picture) for picture in pictures]).to(device)
    landmarks = torch.from_numpy(points)
    for name, poisson in (("alpha", 0.0), ("Poisson", 1.0)):
        simulator = ForgerySimulator(SimulatorConfig(poisson=poisson), "torch", workers)
        taken, alone = [], []
        for turn in range(rounds + 1):
            seeds = range(turn * batch, (turn + 1) * batch)
            start = time.perf_counter()
            made = simulator(images, landmarks, seeds)
            float(made.image.sum())  # waits for the device
            taken.append((time.perf_counter() - start) / batch)
            start = time.perf_counter()
            _cpu_part(simulator, pictures, points, seeds, device == "cuda")
            alone.append((time.perf_counter() - start) / batch)
        simulator.drawer.close()
        # The first turn warms up.
        whole, cpu_only = statistics.median(taken[1:]), statistics.median(alone[1:])
        print(
            f"| {size} | {device}, {name} | {workers} | {1 / whole:.1f} | {1000 * whole:.3f} | "
            f"{1000 * cpu_only:.3f} | {batch} |"
        )


def _cpu_part(
    simulator: ForgerySimulator,
    pictures: np.ndarray,
    points: np.ndarray,
    seeds: range,
    pinned: bool,
) -> None:
    """What the CPU does for a batch, but for faint forgeries that are drawn anew."""
    size = pictures.shape[1:3]
    plans, drawn = simulator.drawer(seeds, points, size)
    staging.gather_masks(drawn, np.array([plan.poisson for plan in plans]), size, pinned)
    qualities = np.array([plan.jpeg for plan in plans])
    chosen = torch.from_numpy(pictures[qualities > 0])
    staging.compress(chosen, [size] * len(chosen), qualities[qualities > 0].tolist())


if __name__ == "__main__":
    typer.run(main)
