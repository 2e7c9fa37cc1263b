"""What both protocols share: the models, who is let in, how much at once, and how one inference is done."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from splitveil.serve.access import note
from splitveil.serve.model import Model
from splitveil.serve.query import LARGE_BODY, LOGITS, Query, read_coefficients
from splitveil.serve.refusal import Reason, RefusedError
from splitveil.serve.repository import Models
from splitveil.serve.settings import Settings
from splitveil.serve.shares import Addresses, Caller, Held, Pool
from splitveil.serve.tokens import Tokens

T = TypeVar("T")

SMALL_BODY = 16 * 2**10
"""Bytes for which there is always room: a query has hundreds, and so many for each connection and call are few."""
MOST_ASIDE = 32
"""Large requests that wait to be read; each takes up to some milliseconds of the interpreter."""
SPARE_FILES = 32
"""File descriptors that stay free for everything else when connections have taken the others."""


_log = logging.getLogger("splitveil.serve")


class Service:
    """One application's state.

    Args:
        models: that are served.
        settings: of what concerns requests.

    Attributes:
        draining: whether the server is about to stop; it then says that it is not ready, and answers what comes.
        addresses: under which names they count.
        in_flight: requests that are being answered.
        buffered: bytes of bodies that are being received or answered.
        connections, calls: open ones of REST, and those of gRPC.
        most_files: descriptors that this process may have open, as far as connections are concerned; 0: unknown.
    """

    def __init__(self, models: Models, settings: Settings) -> None:
        self.models, self.settings = models, settings
        self.metrics = models.metrics
        self.tokens = Tokens(settings.token_file)
        self.draining = False
        self.addresses = Addresses(settings.trusted_proxies)
        self.in_flight = Pool(settings.max_requests, settings.share)
        # Each connection and each call of gRPC may hold a small body; only the rest of the memory is fought for.
        small = 2 * settings.max_connections
        self._small_body = min(SMALL_BODY, settings.max_buffered // (4 * small))
        self.buffered = Pool(settings.max_buffered - small * self._small_body, settings.share)
        self.connections = Pool(settings.max_connections, settings.share)
        self.calls = Pool(settings.max_connections, settings.share)
        self.most_files = 0
        self._aside = Pool(MOST_ASIDE, settings.share)
        self._lane = asyncio.Lock()
        self.metrics.in_flight.set_function(lambda: self.in_flight.used)
        self.metrics.connections.labels("rest").set_function(lambda: self.connections.used)
        self.metrics.connections.labels("grpc").set_function(lambda: self.calls.used)
        self.metrics.buffered.set_function(lambda: self.buffered.used)

    @property
    def ready(self) -> bool:
        """Whether requests of newcomers should be sent here."""
        return self.ready_for(())

    def ready_for(self, caller: Caller) -> bool:
        """Whether a small request of this caller would be answered now, if it named a model that is served."""
        return self.open_to(caller) and any(place.model for place in self.models.all)

    def open_to(self, caller: Caller) -> bool:
        """Whether the caller's next request would find a place."""
        return not self.draining and self.in_flight.fits(caller)

    def let_in(self, address: str, authorization: bytes, forwarded: bytes | None = None) -> Caller:
        """Under which names a request counts; raises `RefusedError` where it needs a token and has none.

        Args:
            address: that the connection comes from.
            authorization: the header; empty where there is none.
            forwarded: the header ``X-Forwarded-For``.
        """
        token = self.tokens.check(authorization)
        caller = self.addresses.caller(address, forwarded)
        return (*caller, token) if token else caller

    def admitted(self, caller: Caller) -> Held:
        """Around the answering of one inference; raises `RefusedError` where there are too many already."""
        held = Held(self.in_flight, caller, 0, _too_many)
        held.add(1)
        return held

    def holding(self, caller: Caller) -> Held:
        """Counts the bytes of one request; refuses more of them where too much is held already."""
        return Held(self.buffered, caller, self._small_body, _too_many_large)

    def files_exhausted(self, transport: asyncio.Transport) -> bool:
        """Whether a new connection has taken one of the last descriptors, which others need."""
        socket = transport.get_extra_info("socket")
        if not self.most_files or socket.fileno() < self.most_files - SPARE_FILES:
            return False
        self.metrics.exhausted.inc()
        _log.warning("file descriptors are exhausted", extra={"fields": {"limit": self.most_files}})
        return True

    def check_control(self) -> None:
        """Raises `RefusedError` where clients may not load and unload models."""
        if not self.settings.control:
            raise RefusedError("forbidden", "models of this server are not loaded or unloaded by clients")

    async def aside(self, caller: Caller, work: Callable[[], T]) -> T:
        """What some work returns that takes long: in a thread, one after the other.

        Parsing holds the interpreter, in a thread too, so that afterwards everybody else has as much time before the
        next such work begins.
        """
        if not self._aside.take(caller):
            raise _busy("too many large requests are being read")
        try:
            await self._lane.acquire()
            loop = asyncio.get_running_loop()
            begin = loop.time()
            try:
                return await asyncio.to_thread(work)
            finally:
                loop.call_later(loop.time() - begin, self._lane.release)
        finally:
            self._aside.give(caller)

    async def infer(
        self, model: Model, read: Callable[[], Query], size: int, caller: Caller
    ) -> tuple[Query, NDArray[np.float32]]:
        """What a body of so many bytes asks, and logits (B, n_classes); the body counts as held meanwhile.

        Raises:
            RefusedError: it is not one that the model answers, or too much is being answered already.
        """

        def parse() -> tuple[Query, NDArray[np.float32]]:
            query = read()
            coefficients = read_coefficients(query.tensor, model)
            query.tensor.data = b""
            return query, coefficients

        if size <= LARGE_BODY:
            with self.admitted(caller):
                query, coefficients = parse()
                logits = await model.logits(coefficients)
        else:  # while it waits to be read it takes no place from those that are answered
            query, coefficients = await self.aside(caller, parse)
            with self.admitted(caller):
                logits = await model.logits(coefficients)
        if not np.isfinite(logits).all():
            raise RefusedError("invalid", f"input '{query.tensor.name}' is so large that '{LOGITS}' are not finite")
        return query, logits

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


def _busy(what: str) -> RefusedError:
    return RefusedError("busy", f"{what}; come again in a second")


def _too_many() -> RefusedError:
    return _busy("too many requests are being answered")


def _too_many_large() -> RefusedError:
    return _busy("too many large requests are on their way")
