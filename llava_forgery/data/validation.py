"""A pass over the training data before the host is loaded, which finds all invalid samples.

Otherwise a truncated photograph or a question longer than the context would stop a training at the
step that draws it, hours after the start and again after resuming. The result is stored in the
training's folder, so that a repeated command does not check again::

    validation.json     what was checked (a fingerprint of data and settings), and the result
    invalid.txt         the invalid samples, one per line, if there are any
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from llava_forgery.files import read_json, write_json, write_text
from llava_forgery.progress import progress

logger = logging.getLogger(__name__)

CACHE, LISTED = "validation.json", "invalid.txt"

# Number of invalid samples in an error message; the list has all of them.
SHOWN = 10

# Rows that a process checks at a time, and the maximum number of processes.
_CHUNK, _MOST_WORKERS = 64, 16

Check = Callable[[int], Any]
"""Reads and encodes the sample of a row, and raises an error if it is invalid."""


def find_invalid(
    checks: Mapping[str, tuple[Check, int]],
    fingerprint: str,
    folder: str | PathLike,
    workers: int | None = None,
) -> dict[str, dict[int, str]]:
    """Check every sample, unless the folder records that this was already done.

    Args:
        checks: Check and number of rows of each data set.
        fingerprint: Fingerprint of everything that the result depends on.
        folder: Folder of the training; receives ``validation.json``.
        workers: Number of processes; by default the machine's cores if there are enough samples.

    Returns:
        The problems of each data set by row.
    """
    cache = Path(folder) / CACHE
    if cache.is_file():
        before = read_json(cache)
        if before.get("fingerprint") == fingerprint:
            logger.info("the data are already validated (%s)", cache)
            return {
                name: {int(row): reason for row, reason in before["invalid"][name].items()}
                for name in checks
            }
    found = {
        name: _find(check, count, workers, f"validate {name}")
        for name, (check, count) in checks.items()
    }
    write_json(cache, {"fingerprint": fingerprint, "invalid": found})
    return found


def settle_invalid(
    invalid: Sequence[str], count: int, folder: str | PathLike, skip_invalid: bool
) -> None:
    """Refuse invalid samples, or list and count them if they are to be skipped.

    Args:
        invalid: A line for each with the sample and its problem.
        count: Number of all samples, including the invalid ones.
        folder: Folder of the training; receives ``invalid.txt``; an earlier one is removed.
        skip_invalid: Whether to skip invalid samples.

    Raises:
        ValueError: There are invalid samples that are not to be skipped, or no valid ones.
    """
    listed = Path(folder) / LISTED
    if not invalid:
        listed.unlink(missing_ok=True)
        return
    write_text(listed, "".join(" ".join(line.split()) + "\n" for line in invalid))
    if skip_invalid and len(invalid) < count:
        logger.warning(
            "%d of %d samples are invalid and skipped; they are listed in %s",
            len(invalid),
            count,
            listed,
        )
        return
    shown = [f"  {' '.join(line.split())}" for line in invalid[:SHOWN]]
    if len(invalid) > SHOWN:
        shown.append(f"  ... and {len(invalid) - SHOWN} more")
    remedy = "" if skip_invalid else ", or skip them with --skip-invalid"
    raise ValueError(
        f"{len(invalid)} of {count} samples are invalid; fix them (all are listed in "
        f"{listed}){remedy}:\n" + "\n".join(shown)
    )


class _Chunks(Dataset):
    def __init__(self, check: Check, count: int) -> None:
        self.check, self.count = check, count

    def __len__(self) -> int:
        return -(-self.count // _CHUNK)

    def __getitem__(self, number: int) -> tuple[int, list[tuple[int, str]]]:
        rows = range(number * _CHUNK, min((number + 1) * _CHUNK, self.count))
        wrong = []
        for row in rows:
            try:
                self.check(row)
            except MemoryError:
                raise
            # Decoders may raise any exception on broken files, and each would stop a training.
            except Exception as error:
                wrong.append((row, str(error) or type(error).__name__))
        return len(rows), wrong


def _find(check: Check, count: int, workers: int | None, title: str) -> dict[int, str]:
    chunks = _Chunks(check, count)
    if workers is None:
        # Starting a process takes longer than checking a few samples.
        workers = min(os.cpu_count() or 1, _MOST_WORKERS, len(chunks) // 4)
    found: dict[int, str] = {}
    with progress(title=title, unit="sample", total=count) as bar:
        for looked_at, wrong in DataLoader(chunks, batch_size=None, num_workers=workers):
            found.update(wrong)
            bar.update(looked_at)
    return found
