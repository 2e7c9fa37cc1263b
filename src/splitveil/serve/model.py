"""One loaded server bundle: checked, warmed, ready to answer."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splitveil.bundle import Graph, ServerManifest, read_server
from splitveil.errors import BundleError
from splitveil.serve.batching import Batcher
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
    request_ns: int = 0
    failure_ns: int = 0
    last_ms: int = 0


class Model:
    """A bundle that is served. A request that has got hold of it is answered by it, whatever is loaded meanwhile.

    Args:
        folder: of the server bundle.
        version: under which it is offered.
        settings: of the server.
        observe: told the rows and the seconds of each run.

    Raises:
        BundleError: the bundle is not whole, not signed as asked, or its graph does not run.
    """

    def __init__(
        self, folder: Path, version: str, settings: Settings, observe: Callable[["Model", int, float], None]
    ) -> None:
        bundle = read_server(folder, public_key=settings.public_key)
        self.manifest: ServerManifest = bundle.manifest
        self.messages = bundle.manifest.messages
        self.version = version
        self.max_batch = settings.max_batch
        self.statistics = Statistics()
        self.frame_identity = self.manifest.short_identity
        inside = (self.messages.components, *self.messages.positions)
        self._graph = Graph(bundle.files["server.onnx"], inside, (self.manifest.n_classes,), settings.threads)
        one, many = self._warm(1), self._warm(settings.max_batch)
        slope = max(0.0, many - one) / max(1, settings.max_batch - 1)
        self._batcher = Batcher(
            self._graph.run,
            max_batch=settings.max_batch,
            max_delay=settings.max_delay_ms / 1000,
            seconds=lambda rows: one + slope * rows,
            observe=lambda rows, seconds: self._observed(rows, seconds, observe),
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

    def _observed(self, rows: int, seconds: float, observe: Callable[["Model", int, float], None]) -> None:
        self.statistics.runs += 1
        self.statistics.run_ns += int(seconds * 1e9)
        observe(self, rows, seconds)
