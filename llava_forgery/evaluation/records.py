"""Records of an evaluation, written to disk as they are made, so that an interrupted one resumes.

While it runs, its folder holds ``records.partial.jsonl``: a line with all settings that determine
the records, then a line ``[number, record]`` for each. ``records.jsonl`` is written once all
records are complete.
"""

import hashlib
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

import llava_forgery
from llava_forgery.files import changed_setting, naming, write_json, write_json_lines
from llava_forgery.progress import progress

logger = logging.getLogger(__name__)

PARTIAL, RECORDS = "records.partial.jsonl", "records.jsonl"
METRICS = "metrics.json"
# Number of values per tensor that identify the weights: training changes nearly all of them.
_PROBES = 32


class KeptRecords:
    """The records of one evaluation, starting with those of an interrupted one.

    A context manager: on an error, including Ctrl-C, the records stay in the folder.

    Args:
        output_dir: Folder of the evaluation; None keeps the records in memory only.
        settings: Everything besides the weights that determines the records; JSON-serializable.
        model: Model whose weights determine the records.
        batch_size: Number of items judged at once. Those of an unfinished batch are judged again,
            so that an interruption changes no batch.
        each: Number of records per item.

    Raises:
        ValueError: The folder holds records of an interrupted evaluation with different settings.
    """

    def __init__(
        self,
        output_dir: str | PathLike | None,
        settings: Mapping[str, Any],
        model: nn.Module,
        batch_size: int,
        each: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size, self.each = batch_size, each
        self.records: list[dict[str, Any]] = []
        """All records in order."""
        self.path = None if output_dir is None else Path(output_dir) / PARTIAL
        if self.path is None:
            self._file = io.BytesIO()
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # In bytes, to truncate an unfinished line at the end.
            self._file = self.path.open("a+b")
        try:
            weights = weights_digest(model)
            self._resume({"version": llava_forgery.__version__, **settings, "weights": weights})
        except BaseException:
            self._file.close()
            raise

    def _resume(self, settings: dict[str, Any]) -> None:
        self._file.seek(0)
        header, *lines = self._file.readlines() or [b""]
        before = _parse(header)
        if not isinstance(before, dict):
            self._file.truncate(0)
            self._write([settings])
            return
        changed = changed_setting(before, settings)
        if changed:
            raise ValueError(
                f"{self.path} holds the records of an interrupted evaluation with other settings: "
                f"{changed}. Repeat the evaluation unchanged to complete it, remove that file, or "
                "give another folder"
            )
        for number, line in enumerate(lines):
            entry = _parse(line)
            if not isinstance(entry, list) or entry[0] != number:
                break
            self.records.append(entry[1])
        together = self.batch_size * self.each
        del self.records[len(self.records) // together * together :]
        self._file.truncate(sum(map(len, [header, *lines[: len(self.records)]])))
        if self.records:
            logger.info("%d records are already in %s", len(self.records), self.path)

    def batches(self, count: int, title: str) -> Iterator[range]:
        """Indices of the items that are still to be judged, one batch at a time.

        Args:
            count: Number of all items.
            title: Title of the progress bar.
        """
        first, size = len(self.records) // self.each, self.batch_size
        for start in progress(range(first, count, size), title, "batch"):
            yield range(start, min(start + size, count))

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Write records to disk, so that they survive the end of this process.

        Raises:
            ValueError: A value is NaN or infinite.
        """
        start = len(self.records)
        try:
            self._write([[start + i, record] for i, record in enumerate(records)])
        except ValueError as error:
            raise ValueError(
                f"a score among the records {start} to {start + len(records) - 1} is not finite: "
                "the weights are damaged, or too large for their dtype"
            ) from error
        self.records += records

    def _write(self, entries: Sequence[Any]) -> None:
        lines = [json.dumps(entry, allow_nan=False) for entry in entries]
        with naming(self.path or RECORDS):
            self._file.write("".join(f"{line}\n" for line in lines).encode())
            self._file.flush()

    def finish(self, metrics: dict[str, Any] | None = None) -> None:
        """Write ``metrics.json``, if any, and finally ``records.jsonl``, and remove the partial
        file."""
        if metrics is not None:
            write_json(self.path.with_name(METRICS), metrics)
        write_json_lines(self.path.with_name(RECORDS), self.records)
        self.remove()

    def remove(self) -> None:
        """Remove the partial file."""
        self._file.close()
        if self.path is not None:
            self.path.unlink()

    def __enter__(self) -> "KeptRecords":
        return self

    def __exit__(self, *error: object) -> None:
        if self._file.closed:
            return
        # Closing would retry the write that a full disk has refused.
        with suppress(OSError):
            self._file.close()
        if self.path is not None:
            logger.warning(
                "%d records are kept in %s: the same call resumes there",
                len(self.records),
                self.path,
            )


def _parse(line: bytes) -> Any:
    """The value of a line; None if the line is incomplete."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None


@torch.no_grad()
def weights_digest(model: nn.Module) -> str:
    """SHA-256 of a few values of each tensor; fast even for a large host."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.is_meta or not tensor.numel():
            continue
        places = torch.linspace(0, tensor.numel() - 1, _PROBES, dtype=torch.float64).long()
        values = tensor.detach().flatten()[places.to(tensor.device)].cpu()
        digest.update(values.contiguous().view(torch.uint8).numpy().tobytes())
    # A detector's scores depend on these besides its weights.
    for module in model.modules():
        if (calibration := getattr(module, "calibration", None)) is not None:
            digest.update(repr(calibration).encode())
    return digest.hexdigest()
