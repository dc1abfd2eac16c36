"""One pass over the training data before the host is loaded, which finds all that is not valid.

A truncated photograph or a question that is longer than the context would else stop a training at
the step that draws it, hours after its beginning and again after resuming. What was found lies in
the training's folder, so that a repeated command does not look again::

    validation.json     what was looked at (a fingerprint of data and settings), and found
    invalid.txt         the invalid samples, one a line; only if there are any
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

# Invalid samples that an error message shows; all stand in the list.
SHOWN = 10

# Rows that a process checks at a time, and the most processes.
_CHUNK, _MOST_WORKERS = 64, 16

Check = Callable[[int], Any]
"""Reads and encodes the sample of a row, and raises what is wrong with it."""


def find_invalid(
    checks: Mapping[str, tuple[Check, int]],
    fingerprint: str,
    folder: str | PathLike,
    workers: int | None = None,
) -> dict[str, dict[int, str]]:
    """Look at every sample, unless the folder tells that this was done.

    Args:
        checks: For each data set a check and the number of its rows.
        fingerprint: Of all that the outcome hangs on.
        folder: The training's; receives ``validation.json``.
        workers: Processes; by default the machine's cores where there are enough samples.

    Returns:
        For each data set what is wrong, by row.
    """
    cache = Path(folder) / CACHE
    if cache.is_file():
        before = read_json(cache)
        if before.get("fingerprint") == fingerprint:
            logger.info("the data were validated before (%s)", cache)
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
    """Refuse invalid samples, or list and count them where they are to be left out.

    Args:
        invalid: A line for each: which sample, and what is wrong.
        count: Samples that were looked at, the invalid ones among them.
        folder: The training's; receives ``invalid.txt``, or loses an earlier one.
        skip_invalid: Whether they are left out.

    Raises:
        ValueError: There are invalid samples and they are not to be left out, or no sample is
            valid.
    """
    listed = Path(folder) / LISTED
    if not invalid:
        listed.unlink(missing_ok=True)
        return
    write_text(listed, "".join(" ".join(line.split()) + "\n" for line in invalid))
    if skip_invalid and len(invalid) < count:
        logger.warning(
            "%d of %d samples are invalid and left out; they are listed in %s",
            len(invalid),
            count,
            listed,
        )
        return
    shown = [f"  {' '.join(line.split())}" for line in invalid[:SHOWN]]
    if len(invalid) > SHOWN:
        shown.append(f"  ... and {len(invalid) - SHOWN} more")
    remedy = "" if skip_invalid else ", or leave them out with --skip-invalid"
    raise ValueError(
        f"{len(invalid)} of {count} samples are invalid; mend them (all are listed in "
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
            # Decoders raise whatever they like on broken files; all of it would stop a training.
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
