"""What a server counts, for Prometheus; one registry per application, so that several may share a process."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily

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
        self.undecodable = Counter(
            "splitveil_decode_errors", "Messages that are not what their protocol says.", ["protocol"],
            registry=self.registry,
        )  # fmt: skip
        self.queue_seconds = Histogram(
            "splitveil_queue_seconds", "That a request waited for its computation.", ["model"], buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.control = Counter(
            "splitveil_control_calls", "Calls to load or unload a model.", ["action", "outcome"],
            registry=self.registry,
        )  # fmt: skip
        ProcessCollector(registry=self.registry)  # open and most descriptors, memory, processor
        self.in_flight = Gauge("splitveil_requests_in_flight", "Being answered now.", registry=self.registry)
        self.connections = Gauge("splitveil_open_connections", "Of the protocol.", ["protocol"], registry=self.registry)
        self.reopened = Counter(
            "splitveil_grpc_port_reopened", "Times that gRPC's library ended its port.", registry=self.registry
        )
        self.exhausted = Counter(
            "splitveil_descriptors_exhausted", "Looks at which no file descriptor was free.", registry=self.registry
        )
        self.buffered = Gauge("splitveil_buffered_bytes", "Of large bodies, held now.", registry=self.registry)
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

    def count_suppressed(self, suppressed: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        """Show how many lines of the log were not written, by logger and event."""
        self.registry.register(_Suppressed(suppressed))

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)


class _Suppressed:
    """A process has one log, and may have several applications: each shows the same numbers."""

    def __init__(self, suppressed: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        self._suppressed = suppressed

    def collect(self) -> Iterator[CounterMetricFamily]:
        """For the registry."""
        family = CounterMetricFamily(
            "splitveil_log_lines_suppressed", "Lines that were not logged, as there were too many.",
            labels=["logger", "event"],
        )  # fmt: skip
        for labels, number in self._suppressed().items():
            family.add_metric(labels, number)
        yield family
