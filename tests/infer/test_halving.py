"""Batches that do not fit into memory."""

import pytest
import torch

from llava_forgery.infer.halving import in_halves


def _limited(room, error):
    """Squares numbers, at most ``room`` at once."""
    batches = []

    def run(items):
        batches.append(len(items))
        if len(items) > room:
            raise error
        return [item**2 for item in items]

    return run, batches


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ],
)
def test_what_does_not_fit_is_halved_down_to_one(error):
    run, batches = _limited(1, error)
    assert in_halves(run, range(5)) == [0, 1, 4, 9, 16]
    assert batches == [5, 3, 2, 1, 1, 1, 2, 1, 1]


def test_one_that_does_not_fit_and_other_errors_are_raised():
    run, batches = _limited(0, torch.OutOfMemoryError("out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        in_halves(run, range(4))
    assert batches == [4, 2, 1]
    run, batches = _limited(1, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        in_halves(run, range(4))
    assert batches == [4]
