"""What both protocols share: the models, who is let in, how much at once, and how one inference is done."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from splitveil.serve.access import note
from splitveil.serve.model import Model
from splitveil.serve.query import LARGE_BODY, LOGITS, Query, read_coefficients
from splitveil.serve.refusal import Reason, RefusedError
from splitveil.serve.repository import Models
from splitveil.serve.settings import Settings
from splitveil.serve.tokens import Tokens


class Service:
    """One application's state.

    Args:
        models: that are served.
        settings: of what concerns requests.

    Attributes:
        draining: whether the server is about to stop; it then says that it is not ready, and answers what comes.
        buffered: bytes of bodies that are being received or answered.
    """

    def __init__(self, models: Models, settings: Settings) -> None:
        self.models, self.settings = models, settings
        self.metrics = models.metrics
        self.tokens = Tokens(settings.token_file)
        self.draining = False
        self.buffered = 0
        self._in_flight = 0
        self._parsing = asyncio.Lock()
        self.metrics.in_flight.set_function(lambda: self._in_flight)

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return not self.draining and any(place.model for place in self.models.all)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Around the answering of one inference; raises `RefusedError` where there are too many already."""
        if self._in_flight >= self.settings.max_requests:
            raise RefusedError("busy", "too many requests are being answered; come again in a second")
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    @contextmanager
    def buffering(self, size: int) -> Iterator[None]:
        """Around the receiving or the answering of a body; raises `RefusedError` where too much is held already."""
        if self.buffered + size > self.settings.max_buffered:
            raise RefusedError("busy", "too many large requests are being answered; come again in a second")
        self.buffered += size
        try:
            yield
        finally:
            self.buffered -= size

    def check_control(self) -> None:
        """Raises `RefusedError` where clients may not load and unload models."""
        if not self.settings.control:
            raise RefusedError("forbidden", "models of this server are not loaded or unloaded by clients")

    async def infer(self, model: Model, read: Callable[[], Query], size: int) -> tuple[Query, NDArray[np.float32]]:
        """What a body of so many bytes asks, and logits (B, n_classes).

        Raises:
            RefusedError: it is not one that the model answers, or too much is being answered already.
        """
        with self.admitted(), self.buffering(size):
            query, coefficients = await self._parsed(model, read, size)
            logits = await model.logits(coefficients)
        if not np.isfinite(logits).all():
            raise RefusedError("invalid", f"input '{query.tensor.name}' is so large that '{LOGITS}' are not finite")
        return query, logits

    async def _parsed(self, model: Model, read: Callable[[], Query], size: int) -> tuple[Query, NDArray[np.float32]]:
        """The query without its data, and its coefficients.

        Numbers in JSON take many times the memory of their text, so that large bodies are parsed one after the other,
        and what came of one is gone before the next; in a thread, so that small ones need not wait.
        """

        def parse() -> tuple[Query, NDArray[np.float32]]:
            query = read()
            coefficients = read_coefficients(query.tensor, model)
            query.tensor.data = b""
            return query, coefficients

        if size <= LARGE_BODY:
            return parse()
        async with self._parsing:
            return await asyncio.to_thread(parse)

    def count(
        self, model: Model | None, protocol: str, reason: Reason | None, begin: float, received: int, sent: int,
        rows: int,
    ) -> None:  # fmt: skip
        """Take note of one inference.

        Args:
            model: that was asked; None where there is none of that name.
            protocol: ``rest`` or ``grpc``.
            reason: why it was refused; None where it was answered.
            begin: when it began, by `time.perf_counter`.
            received, sent: bytes of the bodies.
            rows: that were answered.
        """
        taken = time.perf_counter() - begin
        self.metrics.count(model.name if model else "", protocol, reason or "ok", taken, received, sent)
        if reason:
            self.metrics.refusals.labels(reason).inc()
            note(reason=reason)
        if model is None:
            return
        statistics = model.statistics
        if reason:
            statistics.failures += 1
            statistics.failure_ns += int(taken * 1e9)
        else:
            statistics.requests += 1
            statistics.rows += rows
            statistics.request_ns += int(taken * 1e9)
            statistics.last_ms = int(time.time() * 1000)
