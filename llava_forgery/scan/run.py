"""A scan from beginning to end: list, plan, judge, sum up."""

import logging
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import islice
from pathlib import Path
from typing import Any

from llava_forgery.faces.kinds import Kind
from llava_forgery.progress import progress
from llava_forgery.scan.collector import Collector
from llava_forgery.scan.engine import Cluster, connected, hash_entries, run_scan
from llava_forgery.scan.folder import SETTINGS, open_folder
from llava_forgery.scan.plan import Counts, Plan, Selection
from llava_forgery.scan.sources import Entry, list_entries
from llava_forgery.scan.stages import ScanSettings, judge_here
from llava_forgery.scan.units import Unit

logger = logging.getLogger(__name__)

# How many files of each kind an estimate is made from.
_TRIED = {Kind.PICTURE: 8, Kind.VIDEO: 2}


@dataclass
class Summary:
    """What a scan did, and what its files' records say in all."""

    out: Path
    files: int = 0
    """Judged or found unreadable by this call."""
    skipped: int = 0
    """That had a record and have not changed."""
    changed: int = 0
    """That had one and were judged again."""
    failed: int = 0
    """Of all listed files, those whose record is an error."""
    faces: int = 0
    """Judged by this call."""
    flagged: int = 0
    """Files of this call with a flagged face."""
    seconds: float = 0.0
    """From the first file that was given out to the last record; starting processes included."""
    interrupted: bool = False
    left: int = 0
    """Without a record yet."""

    def lines(self) -> list[str]:
        """For people."""
        rate = self.files / self.seconds if self.seconds else 0.0
        lines = [
            f"{self.files} files in {self.seconds:.0f} s ({rate:.1f} a second), "
            f"{self.faces} faces, {self.flagged} files flagged",
            f"{self.skipped} unchanged and skipped, {self.changed} changed and judged again, "
            f"{self.failed} could not be judged",
        ]
        if self.interrupted:
            left = f"{self.left} files are left" if self.left else "before all files were listed"
            lines.append(f"interrupted: {left}; the same command resumes")
        return [*lines, f"records in {self.out}; page: llava-forgery scan-report {self.out}"]


def scan_archive(
    sources: Sequence[str],
    out: Path,
    settings: ScanSettings,
    selection: Selection,
    cluster: Cluster,
    verify_hashes: bool = False,
    retry_errors: bool = False,
    shard_seconds: float = 20.0,
) -> Summary:
    """Judge an archive, or what is left of it.

    Args:
        sources: As for :func:`list_entries`.
        out: Folder of the records; one that an earlier call began is continued.
        settings: All that decides the records.
        selection: Which files are taken.
        cluster: Where it runs.
        verify_hashes: Judged files are read to find out whether they have changed.
        retry_errors: Files that could not be judged are tried again.
        shard_seconds: Records are written at least so often.

    Raises:
        FileNotFoundError: A source or the model is not there.
        ValueError: ``out`` holds a scan with other settings.
        ImportError: Ray is not installed (extra ``ray``).
        OSError: ``out`` cannot be written; what was written before stays.
    """
    summary = Summary(out)
    with open_folder(out, settings.decisive()) as folder:
        plan = None
        try:
            plan = Plan(folder, list_entries(sources, out), selection)
            if not verify_hashes:
                summary.changed = plan.drop_changed(retry_errors)
            if verify_hashes or plan.left():
                with connected(cluster) as ray:
                    if verify_hashes:
                        hashes = hash_entries(ray, plan.judged())
                        summary.changed = plan.drop_other_content(hashes, retry_errors)
                    summary.left = plan.left()
                    collector = Collector(folder, seconds=shard_seconds)
                    _judge(ray, cluster, settings, plan, collector, summary)
        except KeyboardInterrupt:
            summary.interrupted = True
        if plan is not None:
            summary.left, summary.failed = plan.left(), plan.failed()
            summary.skipped = len(plan) - summary.left - summary.files
    return summary


def _judge(
    ray: Any,
    cluster: Cluster,
    settings: ScanSettings,
    plan: Plan,
    collector: Collector,
    summary: Summary,
) -> None:
    begun = time.monotonic()
    with collector, progress(title="scan", unit="file", total=summary.left) as bar:

        def advance(files: int) -> None:
            bar.update(files)
            bar.set_postfix(errors=collector.errors, flagged=collector.flagged)

        try:
            run_scan(ray, cluster, settings, plan, collector, advance)
        finally:
            # What was taken is written first: the figures are those of the records.
            collector.flush()
            summary.files, summary.faces = collector.files, collector.faces
            summary.flagged = collector.flagged
            summary.seconds = time.monotonic() - begun


def estimate(
    sources: Sequence[str],
    out: Path,
    settings: ScanSettings,
    selection: Selection,
    cluster: Cluster,
) -> dict[str, Any]:
    """What a scan would do: counts, bytes, and the time that a few files take in this process.

    Args:
        sources: As for :func:`scan_archive`, and the rest as well.

    Returns:
        ``files`` and ``pending`` by suffix, each ``{"files": N, "bytes": N}``;
        ``seconds_for_each`` picture and video, None where none was tried; ``hours`` of one
        worker's time, and of the given number of workers where it is given.
    """
    with tempfile.TemporaryDirectory(prefix="llava-forgery-") as scratch:
        # A scan that was not begun is not begun by this.
        root = out if (out / SETTINGS).is_file() else Path(scratch)
        counts, left, tried = _planned(root, out, sources, settings, selection)
    each = _time_each(settings, tried)
    hours = sum((each.get(kind) or 0) * number for kind, number in left.items()) / 3600
    report: dict[str, Any] = {
        name: {suffix: vars(count) for suffix, count in found.items()}
        for name, found in zip(("files", "pending"), counts, strict=True)
    }
    report["seconds_for_each"] = {str(kind): seconds for kind, seconds in each.items()}
    report["hours"] = {"1 worker": round(hours, 3)}
    if cluster.workers:
        report["hours"][f"{cluster.workers} workers"] = round(hours / cluster.workers, 3)
    return report


def _planned(
    root: Path, out: Path, sources: Sequence[str], settings: ScanSettings, selection: Selection
) -> tuple[list[dict[str, Counts]], Counter[Kind | None], dict[Kind, list[Entry]]]:
    """All files and those that are left, by suffix; these by kind; and some of each to be tried."""
    with open_folder(root, settings.decisive()) as folder:
        plan = Plan(folder, list_entries(sources, out), selection)
        counts = [plan.count(pending) for pending in (False, True)]
        left = Counter(entry.kind for entry in plan.pending())
        tried = {
            kind: nsmallest(
                most,
                (entry for entry in plan.pending() if entry.kind is kind),
                key=lambda entry: selection.draw(entry.path),
            )
            for kind, most in _TRIED.items()
        }
    return counts, left, tried


def _time_each(settings: ScanSettings, tried: dict[Kind, list[Entry]]) -> dict[Kind, float | None]:
    if not any(tried.values()):
        return dict.fromkeys(tried)
    run = judge_here(settings)
    each: dict[Kind, float | None] = {}
    for kind, entries in tried.items():
        # The first of a kind also pays for what is loaded when it is first needed.
        run([Unit(entry) for entry in islice(entries, 1)])
        begun = time.monotonic()
        rest = entries[1:] or entries
        run([Unit(entry) for entry in rest])
        each[kind] = (time.monotonic() - begun) / len(rest) if rest else None
    return each
