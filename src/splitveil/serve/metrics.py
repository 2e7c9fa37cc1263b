"""What a server counts, for Prometheus; one registry per application, so that several may share a process."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one application. No label holds what a client made up: an unknown model is the empty one."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # Finding a counter by its labels takes longer than counting.
        self._bound: dict[tuple[str, str, str], tuple[Counter, Histogram, Counter, Counter]] = {}
        self.requests = Counter(
            "splitveil_requests", "Inferences asked for.", ["model", "protocol", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "splitveil_request_seconds", "From the whole request to its answer.", ["model", "protocol"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.rows = Histogram(
            "splitveil_batch_rows", "Rows computed together.", ["model"], buckets=_ROWS, registry=self.registry
        )
        self.run_seconds = Histogram(
            "splitveil_run_seconds", "Of one computation.", ["model"], buckets=_SECONDS, registry=self.registry
        )
        self.bytes = Counter(
            "splitveil_bytes", "Bodies of inferences.", ["direction", "protocol"], registry=self.registry
        )
        self.refusals = Counter(
            "splitveil_refusals", "Requests and connections refused.", ["reason"], registry=self.registry
        )
        self.in_flight = Gauge("splitveil_requests_in_flight", "Being answered now.", registry=self.registry)
        self.models = Gauge(
            "splitveil_model_loaded", "1 for each model that is served.", ["model", "version", "identity"],
            registry=self.registry,
        )  # fmt: skip
        self.reloads = Counter("splitveil_loads", "Attempts to load a bundle.", ["outcome"], registry=self.registry)

    def count(self, model: str, protocol: str, status: str, seconds: float, received: int, sent: int) -> None:
        """Take note of one inference; the model's name is empty where there is none such."""
        labels = (model, protocol, status)
        found = self._bound.get(labels)
        if found is None:
            found = self._bound[labels] = (
                self.requests.labels(model, protocol, status),
                self.seconds.labels(model, protocol),
                self.bytes.labels("in", protocol),
                self.bytes.labels("out", protocol),
            )
        found[0].inc()
        found[1].observe(seconds)
        found[2].inc(received)
        found[3].inc(sent)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
