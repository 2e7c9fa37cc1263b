"""One loaded server bundle: checked, warmed, ready to answer."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splitveil.bundle import Graph, ServerManifest, read_server
from splitveil.errors import BundleError
from splitveil.serve.batching import Batcher, Run
from splitveil.serve.metrics import Metrics
from splitveil.serve.settings import Settings

Array = NDArray[np.float32]

WARM_RUNS = 5


@dataclass
class Statistics:
    """What a model has done since it was loaded; times in nanoseconds."""

    requests: int = 0
    rows: int = 0
    failures: int = 0
    runs: int = 0
    run_ns: int = 0
    queued: int = 0
    queue_ns: int = 0
    request_ns: int = 0
    failure_ns: int = 0
    last_ms: int = 0


class Model:
    """A bundle that is served. A request that has got hold of it is answered by it, whatever is loaded meanwhile.

    Nothing that a model holds refers to it, so that it and its graph are freed with the last request.

    Args:
        folder: of the server bundle.
        version: under which it is offered.
        settings: of the server.
        metrics: of the application.

    Raises:
        BundleError: the bundle is not whole, not signed as asked, or its graph does not run.
    """

    def __init__(self, folder: Path, version: str, settings: Settings, metrics: Metrics) -> None:
        self.manifest, self._graph = _read(folder, settings)
        self.messages = self.manifest.messages
        self.version = version
        self.max_batch = settings.max_batch
        # Bundles that were exported before this was checked do not say it.
        self.mixes = bool(getattr(self.manifest, "rows_independent", False))
        self.statistics = Statistics()
        self.frame_identity = self.manifest.short_identity
        one, many = self._warm(1), self._warm(settings.max_batch)
        slope = max(0.0, many - one) / max(1, settings.max_batch - 1)
        self._batcher = Batcher(
            self._graph.run,
            mixes=self.mixes,
            max_batch=settings.max_batch,
            max_delay=settings.max_delay_ms / 1000,
            seconds=lambda rows: one + slope * rows,
            observe=_observer(self.name, self.statistics, metrics),
        )

    @property
    def name(self) -> str:
        """The name that the bundle was exported under."""
        return self.manifest.name

    async def logits(self, coefficients: Array) -> Array:
        """Logits (B, n_classes) of what `read_coefficients` found."""
        return await self._batcher.submit(coefficients)

    def _warm(self, rows: int) -> float:
        """Seconds of a run of so many rows: the least of several, since other processes only ever add to it."""
        example = np.zeros((rows, self.messages.components, *self.messages.positions), np.float32)
        taken = []
        for _ in range(WARM_RUNS):
            begin = time.perf_counter()
            try:
                logits = self._graph.run(example)
            except Exception as error:  # ONNX Runtime raises classes of its own that share no base
                raise BundleError(f"the graph of {self.name} does not run; export it again") from error
            taken.append(time.perf_counter() - begin)
            if logits.shape != (rows, self.manifest.n_classes):
                raise BundleError(f"the graph of {self.name} does not take {rows} rows at once; export it again")
        return min(taken)


def _read(folder: Path, settings: Settings) -> tuple[ServerManifest, Graph]:
    """The bundle of a folder; its graph is in memory once."""
    bundle = read_server(folder, public_key=settings.public_key, to_load=True)
    messages = bundle.manifest.messages
    inside = (messages.components, *messages.positions)
    graph = Graph(bundle.graph, inside, (bundle.manifest.n_classes,), settings.threads)
    return bundle.manifest, graph


def _observer(name: str, statistics: Statistics, metrics: Metrics) -> Callable[[Run], None]:
    rows, seconds, queue = (
        histogram.labels(name) for histogram in (metrics.rows, metrics.run_seconds, metrics.queue_seconds)
    )

    def observe(run: Run) -> None:
        statistics.runs += 1
        statistics.run_ns += int(run.seconds * 1e9)
        rows.observe(run.rows)
        seconds.observe(run.seconds)
        for waited in run.waited:
            statistics.queued += 1
            statistics.queue_ns += int(waited * 1e9)
            queue.observe(waited)

    return observe
