"""The same application as a deployment of Ray Serve: replicas on one machine or on several."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI

from llava_forgery import clusters
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.serve.app import create_app
from llava_forgery.serve.service import Service
from llava_forgery.serve.settings import Settings

_APPLICATION = "llava-forgery"
# Of a replica's requests; beyond them Ray starts further replicas, as far as it may.
_BUSY = 8


@dataclass(frozen=True)
class Replicas:
    """How many replicas there are, and where.

    Raises:
        ValueError: Numbers below 1, or fewer at most than at least.
    """

    least: int = 1
    most: int | None = None
    """None for ``least``; above it Ray adds replicas under load and takes them away after it."""
    address: str | None = None
    """Of a running cluster, such as ``auto``; None starts one on this machine."""
    cpus: float = 1
    """Processors of a replica."""
    gpus: float = 0
    """GPUs of a replica, or a share of one."""
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    """What Ray installs for the replicas; see Ray's documentation."""

    def __post_init__(self) -> None:
        if self.least < 1 or (self.most is not None and self.most < self.least):
            raise ValueError(
                f"expected 1 replica or more, and at most as many as at least or more, got "
                f"{self.least} and {self.most}"
            )

    def options(self, settings: Settings) -> dict[str, Any]:
        """Of the deployment."""
        number: dict[str, Any] = {"num_replicas": self.least}
        if self.most not in (None, self.least):
            number = {
                "autoscaling_config": {
                    "min_replicas": self.least,
                    "max_replicas": self.most,
                    "target_ongoing_requests": _BUSY,
                }
            }
        return {
            **number,
            "name": _APPLICATION,
            "max_ongoing_requests": settings.max_requests,
            "graceful_shutdown_timeout_s": settings.drain_seconds,
            "ray_actor_options": {"num_cpus": self.cpus, "num_gpus": self.gpus},
        }


class JobBoard:
    """The states of all replicas' jobs, for as long as results are kept.

    Args:
        seconds: For which a state is kept after it was told last.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._states: dict[str, tuple[float, dict[str, Any]]] = {}
        self._removed: dict[str, float] = {}

    def put(self, state: dict[str, Any]) -> bool:
        """See ``jobs.Board``."""
        self._forget()
        if state["id"] in self._removed:
            return False
        self._states[state["id"]] = time.monotonic(), state
        return True

    def get(self, identity: str) -> dict[str, Any] | None:
        """See ``jobs.Board``."""
        self._forget()
        return self._states.get(identity, (0, None))[1]

    def remove(self, identity: str) -> bool:
        """See ``jobs.Board``."""
        self._forget()
        self._removed[identity] = time.monotonic()
        return self._states.pop(identity, None) is not None

    def _forget(self) -> None:
        oldest = time.monotonic() - self._seconds
        self._states = {key: kept for key, kept in self._states.items() if kept[0] > oldest}
        self._removed = {key: told for key, told in self._removed.items() if told > oldest}


class SharedBoard:
    """The board, asked from a replica."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def put(self, state: dict[str, Any]) -> bool:
        """See ``jobs.Board``."""
        return self._ask("put", state)

    def get(self, identity: str) -> dict[str, Any] | None:
        """See ``jobs.Board``."""
        return self._ask("get", identity)

    def remove(self, identity: str) -> bool:
        """See ``jobs.Board``."""
        return self._ask("remove", identity)

    def _ask(self, name: str, value: Any) -> Any:
        return _ray().get(getattr(self._actor, name).remote(value))


class Replica:
    """One replica: models of its own behind the application.

    Args:
        load: Gives the predictors by name; called where the replica runs.
        settings: Limits, each of a replica.
        batch_size: Most faces of a batch.
        batch_wait: See ``Engine``; in seconds.
        board: The actor of a :class:`JobBoard`.
    """

    def __init__(
        self,
        load: Callable[[], Mapping[str, ForgeryPredictor]],
        settings: Settings,
        batch_size: int,
        batch_wait: float | None,
        board: Any,
    ) -> None:
        self.service = Service(load(), settings, batch_size, batch_wait, SharedBoard(board))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve."""
        return create_app(self.service)

    def check_health(self) -> None:
        """Called by Ray Serve, which starts another replica where this raises."""
        if not self.service.alive:
            raise RuntimeError("a model's thread has ended")


def serve_replicas(
    load: Callable[[], Mapping[str, ForgeryPredictor]],
    settings: Settings,
    replicas: Replicas,
    batch_size: int = 8,
    batch_wait: float | None = None,
    stop: threading.Event | None = None,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Serve until ``stop``; what has begun is then finished within ``drain_seconds``.

    A job is judged by the replica that took it, and any replica tells of it. A dialogue's turn
    brings its turns before with it, so that any replica answers it; one that has not seen the
    dialogue computes them anew.

    Args:
        load: Gives the predictors by name in each replica; must be picklable.
        settings: Address and limits; these hold for each replica.
        replicas: How many, and where.
        batch_size: Most faces of a batch.
        batch_wait: See ``Engine``; in seconds.
        stop: Ends the deployment when it is set; None serves for ever.
        started: Called when all replicas that there are at least take requests.

    Raises:
        ImportError: Ray Serve is not installed (extra ``ray``).
        OSError: Ray does not start, or a replica does not.
    """
    ray = _ray()
    # At least as many as the replicas need together, whatever this machine has.
    needed = round((replicas.most or replicas.least) * replicas.cpus + 1)
    with clusters.connected(ray, replicas.address, needed, replicas.runtime_env):
        serve = ray.serve
        try:
            serve.start(
                http_options={"host": settings.host, "port": settings.port},
                logging_config={"log_level": "ERROR", "enable_access_log": False},
            )
            board = ray.remote(num_cpus=0)(JobBoard).remote(settings.job_seconds)
            deployment = serve.deployment(serve.ingress()(Replica)).options(
                **replicas.options(settings)
            )
            bound = deployment.bind(load, settings, batch_size, batch_wait, board)
            try:
                serve.run(bound, name=_APPLICATION, route_prefix="/")
            except RuntimeError as error:
                raise OSError(f"the replicas did not start, see Ray's logs: {error}") from error
            started()
            (stop or threading.Event()).wait()
        finally:
            serve.shutdown()


def _ray() -> Any:
    return clusters.require_ray("serve", "serving with replicas")
