"""What ``/metrics`` tells Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_FACES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one application, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()

        def name(what: str) -> str:
            return f"llava_forgery_{what}"

        self.requests = Counter(
            name("requests"), "Answered requests.", ("path", "status"), registry=registry
        )
        self.seconds = Histogram(
            name("request_seconds"),
            "From the first byte of a request to the end of its answer.",
            ("path",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_faces = Histogram(
            name("batch_faces"),
            "Faces of a batch, by what is computed.",
            ("model", "kind"),
            buckets=_FACES,
            registry=registry,
        )
        self.batch_seconds = Histogram(
            name("batch_seconds"),
            "Time of a batch.",
            ("model", "kind"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.faces = Counter(name("faces"), "Judged faces.", ("model",), registry=registry)
        self.disagreements = Counter(
            name("disagreements"),
            "Faces that score and P(yes) call differently.",
            ("model",),
            registry=registry,
        )
        self.tokens = Counter(
            name("answer_tokens"), "Tokens written in dialogues.", ("model",), registry=registry
        )
        self.queue = Gauge(name("queue_faces"), "Faces that wait.", ("model",), registry=registry)
        self.active = Gauge(
            name("active_requests"), "Requests and jobs that are worked on.", registry=registry
        )
        self.jobs = Gauge(name("jobs"), "Jobs, by their state.", ("status",), registry=registry)
        self.dialogues = Gauge(
            name("dialogues"), "Dialogues whose caches are kept.", ("model",), registry=registry
        )

    def observe_batch(self, model: str, kind: str, faces: int, seconds: float) -> None:
        """Note a batch of an engine; called by its thread."""
        self.batch_faces.labels(model, kind).observe(faces)
        self.batch_seconds.labels(model, kind).observe(seconds)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self.registry)
