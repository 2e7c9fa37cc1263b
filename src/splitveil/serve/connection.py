"""HTTP connections under limits: uvicorn's protocol, which has none for slow, silent or endless clients."""

import asyncio
from typing import cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from splitveil.serve.refusal import HTTP_STATUS, RETRY_AFTER, Reason
from splitveil.serve.service import Service

LONGEST_HEAD = 64 * 2**10
"""Bytes of a request's line and headers."""
_PHRASE = {408: "Request Timeout", 413: "Content Too Large", 431: "Request Header Fields Too Large",
           503: "Service Unavailable"}  # fmt: skip


class _Joined:
    """A transport that sends the head and the body of an answer at once: a system call less on either side."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held: list[bytes] = []
        self.is_closing, self.abort = transport.is_closing, transport.abort

    def write(self, data: bytes) -> None:
        if not self._held:
            self._loop.call_soon(self.flush)  # at the latest
        self._held.append(data)

    def flush(self) -> None:
        if self._held:
            self._transport.write(b"".join(self._held))
            self._held.clear()

    def close(self) -> None:
        self.flush()
        self._transport.close()


class Connection(HttpToolsProtocol):
    """One connection.

    One timer runs while the client owes something: from the connection, or a request's first byte, to its last byte,
    and while an answer is not taken. A request that comes whole never starts one.
    """

    def __init__(self, config: Config, state: ServerState, service: Service) -> None:
        super().__init__(config, state, {}, asyncio.get_running_loop())
        self._service = service
        self._owed: asyncio.TimerHandle | None = None
        self._in_head = self._in_request = False
        self._received = 0  # bytes since the request began

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; too many connections are told so, and ended."""
        super().connection_made(transport)
        self._joined = _Joined(transport, self.loop)
        self.transport = cast(asyncio.Transport, self._joined)
        if len(self.connections) > self._service.settings.max_connections:
            self._refuse("busy", 503, "too many connections; come again in a second")
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of requests."""
        if self.transport.is_closing():
            return
        self._received += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        most = self._service.settings.max_body
        if self._in_head and max(self._received, len(data)) > LONGEST_HEAD:
            self._refuse("large", 431, "the headers are too long")
        elif self._in_request and self._received > 2 * most + LONGEST_HEAD:
            self._refuse("large", 413, "the request is too long")  # mostly frames of chunks, or trailers
        elif self._in_request or self.cycle is None or self.cycle.response_complete:
            self._watch()
        else:
            self._unwatch()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._in_head = self._in_request = True
        self._received = 0

    def on_headers_complete(self) -> None:
        """The end of a request's headers."""
        self._in_head = False
        super().on_headers_complete()
        if self._service.draining:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        self._in_request = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer was written."""
        self._joined.flush()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client does not take what we write."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """The client takes it again."""
        super().resume_writing()
        if not self._in_request:
            self._unwatch()

    def timeout_keep_alive_handler(self) -> None:
        """No further request came."""
        self._end()

    def announce_end(self) -> None:
        """Tell the client with the next answer that no further request is read."""
        for cycle in (self.cycle, *(waiting for waiting, _ in self.pipeline)):
            if cycle is not None:
                cycle.keep_alive = False

    def shutdown(self) -> None:
        """End the connection, unless a request is under way; its answer will be the last."""
        if not self._in_request and (self.cycle is None or self.cycle.response_complete):
            self._end()

    def _watch(self) -> None:
        if self._owed is None:
            self._owed = self.loop.call_later(self._service.settings.timeout, self._too_slow)

    def _unwatch(self) -> None:
        if self._owed is not None:
            self._owed.cancel()
            self._owed = None

    def _too_slow(self) -> None:
        self._owed = None
        if self.flow.write_paused:
            self._service.metrics.refusals.labels("slow").inc()
            self.transport.abort()
        elif self._in_request or self.cycle is None:
            self._refuse("slow", HTTP_STATUS["slow"], "the request did not come in time")
        else:
            self._end()

    def _refuse(self, reason: Reason, status: int, sentence: str) -> None:
        """Answer without the application, if nothing is being answered, and end."""
        self._service.metrics.refusals.labels(reason).inc()
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = f'{{"error": "{sentence}"}}'
            retry = f"retry-after: {RETRY_AFTER}\r\n" if status == 503 else ""
            self.transport.write(
                f"HTTP/1.1 {status} {_PHRASE[status]}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\n{retry}connection: close\r\n\r\n{body}".encode()
            )
        self._end()

    def _end(self) -> None:
        """Close, and do not wait long for a client that takes nothing."""
        self._unwatch()
        if not self.transport.is_closing():
            self.transport.close()
            self.loop.call_later(self._service.settings.timeout, self.transport.abort)
