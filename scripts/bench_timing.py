"""How the benches take their times: variants in turn, in one run."""

import statistics
import time
from collections.abc import Callable

import torch


def measure(
    variants: dict[str, Callable[[], None]], rounds: int, warm_up: int, device: torch.device
) -> dict[str, tuple[float, float]]:
    """Median seconds passed and busy; variants take turns, so that slow moments hit all alike."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for i in range(warm_up + rounds):
        for name, variant in variants.items():
            synchronise(device)
            start, start_busy = time.perf_counter(), time.process_time()
            variant()
            synchronise(device)
            if i >= warm_up:
                passed = time.perf_counter() - start
                times[name].append((passed, time.process_time() - start_busy))
    return {
        name: tuple(statistics.median(values) for values in zip(*pairs, strict=True))
        for name, pairs in times.items()
    }


def synchronise(device: torch.device) -> None:
    """Wait for the accelerator."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
