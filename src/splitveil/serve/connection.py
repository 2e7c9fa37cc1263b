"""HTTP connections under limits: uvicorn's protocol, which has none for slow, silent or endless clients."""

import asyncio
from collections import deque
from typing import Any, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from splitveil.serve.deadline import Idle
from splitveil.serve.refusal import HTTP_STATUS, Reason, RefusedError
from splitveil.serve.service import Service
from splitveil.serve.shares import Caller, Pool
from splitveil.serve.strict import LONGEST_HEAD, HeadError, answer_of, check_head
from splitveil.serve.transport import Flow, Joined

STEP = 4096
"""Bytes that are parsed before the requests in them are looked at: one piece of 256 KiB may hold ten thousand."""
LINGER_SECONDS = 2.0
"""For which the rest of a refused request is read and dropped, so that its client hears why."""


class Connection(HttpToolsProtocol):
    """One connection.

    One timer runs while the client owes something: from the connection, or a request's first byte, to its last byte,
    and while an answer is not taken. A request that comes whole never starts one. A client that has closed its own
    side still gets its answers. Of requests sent at once, two are parsed before the first is answered.

    Args:
        config: of uvicorn.
        state: of uvicorn; has the open connections of this port.
        service: that answers.
        room: connections of this port.
    """

    def __init__(self, config: Config, state: ServerState, service: Service, room: Pool) -> None:
        super().__init__(config, state, {}, asyncio.get_running_loop())
        self._service, self._room = service, room
        self._peer: Caller = ()
        self._counted = False
        self._owed: asyncio.TimerHandle | None = None
        self._idle = Idle(self.loop, service.settings.keep_alive, self.timeout_keep_alive_handler)
        self._in_head = self._in_request = False
        self._received = 0  # bytes since the request began, to a STEP
        self._declared = 0  # bytes of its body
        self._unparsed = memoryview(b"")
        self._cycles: deque[Any] = deque()  # not yet answered, in the order in which they came
        self._fault: HeadError | None = None
        self._last: tuple[int, str] | None = None  # what is refused once all before it is answered
        self._ended = False  # by the client: nothing more comes
        self._lingering = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; too many connections are told so, and ended."""
        super().connection_made(transport)
        self._joined = Joined(transport, self.loop)
        self.transport = cast(asyncio.Transport, self._joined)
        self.flow = self._flow = Flow(transport)
        self._peer = self._service.addresses.caller(self.client[0] if self.client else "")
        self._held = self._service.holding(self._peer)
        if self._room is self._service.connections and self._service.files_exhausted(transport):
            self._refuse("busy", 503, "too many files are open; come again in a second")
        elif not self._room.take(self._peer):
            self._refuse("busy", 503, "too many connections, or too many from one address; come again in a second")
        else:
            self._counted = True
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._unwatch()
        self._idle.end()
        self._held.set(0)
        if self._counted:
            self._room.give(self._peer)
        for cycle in self._cycles:
            cycle.disconnected = True
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of requests."""
        if self.transport.is_closing():
            return
        if self._last or self._ended:
            self._flow.drop_slowly(self.loop)
            return
        if len(data) <= STEP and not self._unparsed and not self.pipeline:  # as nearly always
            self._parse_piece(data)
            if self._cycles and not (
                self.pipeline or self._in_request or self._last or self._ended or self.flow.write_paused
            ):
                self._unwatch()
                return
        else:
            self._unparsed = memoryview(bytes(self._unparsed) + data if self._unparsed else data)
        self._parse()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client has sent all that it will; it still gets its answers, which TLS has no way for."""
        self._ended = True
        self._parse()
        if self._lingering:
            return False
        return self.scheme != "https" and not self.transport.is_closing()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._in_head = self._in_request = True
        self._received = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header field; those behind the body are dropped, or they would join those before it."""
        if self._in_head:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The end of a request's headers."""
        version = self.parser.get_http_version()
        try:
            self._declared, self.expect_100_continue = check_head(
                version, self.parser.get_method(), self.url, self.headers
            )
        except HeadError as error:
            self._fault = error
            raise
        super().on_headers_complete()
        self._in_head = False
        self._cycles.append(self.cycle)
        if self._service.draining or self.parser.should_upgrade():  # an offer of another protocol is not taken up
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        self._in_request = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer was written. As uvicorn does, but without a new timer, which costs a twentieth of a request."""
        self._joined.flush()
        self._cycles.popleft()
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        self._idle.begin()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        if self._last and not self._cycles:
            self._say(*self._last)
        elif self._unparsed or self._ended or self._in_request:
            self.loop.call_soon(self._parse)

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
        """Perhaps no further request came."""
        if not self._in_request and not self._cycles:
            self._end()

    def announce_end(self) -> None:
        """Tell the client with the next answer that no further request is read."""
        if self._cycles:
            self._cycles[-1].keep_alive = False

    def shutdown(self) -> None:
        """End the connection, unless a request is under way; its answer will be the last."""
        if self._lingering or (not self._in_request and not self._cycles):
            self._end()

    def _parse(self) -> None:
        """Go on with what was read, unless a request waits for the one before it; then see who owes what."""
        while self._unparsed and not self.pipeline and not self.transport.is_closing() and not self._last:
            # What is known to be body needs no small steps.
            in_body = self._in_request and not self._in_head
            size = max(STEP, self._declared - self._received) if in_body else STEP
            piece, self._unparsed = self._unparsed[:size], self._unparsed[size:]
            self._parse_piece(piece)
        if self.transport.is_closing() or self._last:
            return
        self._flow.held = bool(self._unparsed)
        try:
            self._held.set(len(self._unparsed))
        except RefusedError as error:
            self._refuse("busy", 503, str(error))
            return
        if self._unparsed:
            self.flow.pause_reading()
        elif self._ended:
            self._finish()
            return
        elif self._in_request and not self._in_head and self.cycle.response_complete:  # refused already
            self._flow.drop_slowly(self.loop)
        elif not self.pipeline:
            self.flow.resume_reading()
        self._settle()

    def _parse_piece(self, piece: bytes | memoryview) -> None:
        if self._in_head and self._received > LONGEST_HEAD:
            self._refuse("large", 431, "the headers are too long")
            return
        self._received += len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            self._ended, self._unparsed = True, memoryview(b"")  # what follows is of another protocol
        except httptools.HttpParserError:
            fault = self._fault or HeadError("invalid", 400, "this is no valid HTTP request")
            self._refuse(fault.reason, fault.status, str(fault))
            return
        if self._in_request and self._received > 2 * self._service.settings.max_body + LONGEST_HEAD:
            self._refuse("large", 413, "the request is too long")  # mostly frames of chunks, or trailers

    def _finish(self) -> None:
        """The client sends no more: its answers are the last."""
        if self._in_request:
            self._refuse("invalid", 400, "the request ended early")
        elif not self._cycles:
            self._end()
        else:
            self._cycles[-1].keep_alive = False
            self._settle()

    def _settle(self) -> None:
        """Start or stop the timer."""
        if self.flow.write_paused:
            self._watch()
        elif self.pipeline or self._unparsed:
            self._unwatch()  # it is our turn
        elif self._in_request or not self._cycles:
            self._watch()
        else:
            self._unwatch()

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
        """Answer without the application, after all that is still being answered, and end."""
        self._service.metrics.refusals.labels(reason).inc()
        self._unwatch()
        self._unparsed, started = memoryview(b""), False
        if self._in_request and not self._in_head:  # this one has reached the application, which hears no more of it
            cycle = self._cycles.pop() if self._cycles else self.cycle
            if self.pipeline and self.pipeline[0][0] is cycle:
                self.pipeline.popleft()
            started = cycle.response_started
            cycle.disconnected = True
            cycle.message_event.set()
        if started:
            self._end()
        elif self._cycles:
            self.cycle, self._last = self._cycles[-1], (status, sentence)
        else:
            self._say(status, sentence)

    def _say(self, status: int, sentence: str) -> None:
        self.transport.write(answer_of(status, sentence))
        if self._counted and self.scheme == "http":
            # Closed at once, with bytes unread, the system would reset the connection and lose what was said.
            self._last, self._lingering = (status, sentence), True
            self._joined.end_writing()
            self.flow.resume_reading()
            self._owed = self.loop.call_later(min(LINGER_SECONDS, self._service.settings.timeout), self._end)
        else:
            self._end()

    def _end(self) -> None:
        """Close, and do not wait long for a client that takes nothing."""
        self._unwatch()
        if not self.transport.is_closing():
            self.transport.close()
            self.loop.call_later(self._service.settings.timeout, self.transport.abort)
