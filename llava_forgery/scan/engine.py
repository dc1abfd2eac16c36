"""A scan on Ray Data: paths are distributed, results come back to the one process that writes."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from types import ModuleType
from typing import Any

import pyarrow as pa

from llava_forgery import clusters
from llava_forgery.clusters import last_line, require_ray
from llava_forgery.faces.kinds import Kind
from llava_forgery.scan.collector import Collector
from llava_forgery.scan.columns import from_columns, to_columns
from llava_forgery.scan.folder import ScanFolder
from llava_forgery.scan.long import next_units
from llava_forgery.scan.plan import Plan
from llava_forgery.scan.reader import hash_file
from llava_forgery.scan.registry import Registry
from llava_forgery.scan.results import Result
from llava_forgery.scan.sources import Entry
from llava_forgery.scan.stages import ScanSettings, list_stages
from llava_forgery.scan.units import Unit

logger = logging.getLogger(__name__)

# Tasks that wait beside the one that runs, of each process.
_AHEAD = 2
# So many files are given out at once, and the processes started again for the next ones: what the
# driver and Ray know of them stays small.
_WAVE = 100_000


@dataclass(frozen=True)
class Cluster:
    """Where a scan runs.

    Without numbers: a process that reads for each processor, and one of each other stage for each
    GPU, or for each processor where there is none.
    """

    address: str | None = None
    """Of a running Ray cluster, such as ``auto``; None starts one on this machine."""
    workers: int | None = None
    """Processes that read."""
    detectors: int | None = None
    """Processes with the detector."""
    speakers: int | None = None
    """Processes with the language model."""
    block: int = 16
    """Photographs that go through the stages together; a video goes alone."""
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    """What Ray installs for the workers; see Ray's documentation."""

    def __post_init__(self) -> None:
        for name in ("workers", "detectors", "speakers", "block"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")


def ray_data() -> ModuleType:
    """Ray with Ray Data, or an ImportError that names the extra ``ray``."""
    return require_ray("data", "scanning archives")


@contextmanager
def connected(cluster: Cluster) -> Iterator[ModuleType]:
    """Ray, connected to the cluster or to one that is started and ended here.

    Raises:
        OSError: As :func:`llava_forgery.clusters.connected`.
        ImportError: Ray is not installed (extra ``ray``).
    """
    ray = ray_data()
    with clusters.connected(ray, cluster.address, cluster.workers, cluster.runtime_env):
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        yield ray


class SharedRegistry:
    """The scan's registry, asked from another process."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *arguments: ray_data().get(getattr(self._actor, name).remote(*arguments))


def run_scan(
    ray: ModuleType,
    cluster: Cluster,
    settings: ScanSettings,
    plan: Plan,
    collector: Collector,
    progress: Callable[[int], None] = lambda files: None,
) -> None:
    """Judge all files of a plan that have no record.

    Args:
        ray: Connected.
        cluster: Number of processes.
        settings: All that decides the records.
        plan: What is to be judged.
        collector: Takes the results.
        progress: Called with the number of files that were taken, from time to time.

    Raises:
        OSError: Workers give back nothing more, and files are left.
        ray.exceptions.RayError: The same, and Ray says why.
    """
    registry = _start_registry(ray, collector.folder)
    stages = list_stages(settings, registry)
    pools = _pools(ray, cluster, settings.model.device, [kind.name for kind, _ in stages])

    def units_of(entry: Entry) -> list[Unit]:
        parts = collector.folder.parts(entry)
        read, reduce = settings.read, settings.judge.reduce
        return next_units(entry, parts, read.frames, read.span, reduce)

    while units := [u for entry in islice(plan.pending(), _WAVE) for u in units_of(entry)]:
        before = collector.files, collector.parts
        rows = ray.data.from_arrow(list(_blocks(units, cluster.block)))
        for kind, arguments in stages:
            rows = rows.map_batches(
                kind,
                fn_constructor_args=arguments,
                batch_size=None,
                batch_format="pyarrow",
                **pools[kind.name],
            )
        failure = None
        try:
            for table in rows.iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            ):
                results = from_columns(Result, table)
                collector.add(results)
                progress(sum(result.part is None for result in results))
        except ray.exceptions.RayError as error:
            # One of its own processes was lost, as where memory runs out: the rest is given out
            # again, as long as anything comes back.
            failure = error
        collector.flush()
        if (collector.files, collector.parts) == before:
            if failure is not None:
                raise failure
            raise OSError(
                f"{len(units)} files were given to workers and none came back, the first of them "
                f"{units[0].path}; see Ray's logs"
            )
        if failure is not None:
            reason = last_line(failure)
            logger.warning("Ray lost what it needs, what is left is given out again: %s", reason)


def hash_entries(
    ray: ModuleType, entries: Iterable[Entry], block: int = 64
) -> Iterator[tuple[str, str | None]]:
    """Path and SHA-256 of files, None where they cannot be read; in any order."""
    entries = iter(entries)
    while units := [Unit(entry) for entry in islice(entries, _WAVE)]:
        rows = ray.data.from_arrow(list(_blocks(units, block)))
        rows = rows.map_batches(_hash, batch_size=None, batch_format="pyarrow")
        for table in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from zip(table["path"].to_pylist(), table["sha256"].to_pylist(), strict=True)


def _hash(table: pa.Table) -> pa.Table:
    hashes = []
    paths = [unit.path for unit in from_columns(Unit, table)]
    for path in paths:
        try:
            hashes.append(hash_file(path))
        except OSError:
            hashes.append(None)
    return pa.table({"path": paths, "sha256": pa.array(hashes, pa.string())})


def _blocks(units: Iterable[Unit], size: int) -> Iterator[pa.Table]:
    """Videos alone and first, as they take the longest; then photographs in tables of a size."""
    units = list(units)
    yield from (to_columns(Unit, [unit]) for unit in units if unit.entry.kind is Kind.VIDEO)
    rest = (unit for unit in units if unit.entry.kind is not Kind.VIDEO)
    while block := list(islice(rest, size)):
        yield to_columns(Unit, block)


def _start_registry(ray: ModuleType, folder: ScanFolder) -> SharedRegistry:
    judged = folder.contents()
    # Where the scan's own process is: it can be lost only together with it.
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    kind = ray.remote(num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1)(
        Registry
    )
    actor = kind.remote()
    while rows := list(islice(judged, 100_000)):
        ray.get(actor.add.remote(rows))
    return SharedRegistry(actor)


def _pools(
    ray: ModuleType, cluster: Cluster, device: str | None, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """For each stage, by its name, how many processes, and which share of the cluster each gets."""
    have = ray.cluster_resources()
    cpus, gpus = max(1, int(have.get("CPU", 1))), int(have.get("GPU", 0))
    if device == "cpu":
        gpus = 0
    readers = cluster.workers or cpus
    judges = gpus or readers
    given = {"read": readers, "detect": cluster.detectors, "ask": cluster.speakers}
    sizes = {name: given[name] or judges for name in names}
    pools = {}
    for name, size in sizes.items():
        pools[name] = {
            "compute": ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=_AHEAD),
            # Half of the cluster in all: when half of it is lost, the rest has room for them.
            "num_cpus": round(cpus / (2 * sum(sizes.values())), 4),
        }
        if gpus and name != "read":
            pools[name]["num_gpus"] = round(gpus / (size * (len(sizes) - 1)), 4)
    return pools
