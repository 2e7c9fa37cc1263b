"""Who asked for what, and with which outcome: the access log, and the audit of control calls.

The outermost layer of either protocol opens an `Exchange`; whoever knows more of it further inside takes note of that.
"""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from splitveil.serve.logs import own
from splitveil.serve.metrics import Metrics
from splitveil.serve.shares import Addresses

Control = Literal["load", "unload"]
LONGEST_NAME = 100
"""Characters of a path or name that a client made up."""
_CONTROL = re.compile(r"/v2/repository/models/([^/]*)/(load|unload)")
# What is harmless in every log; another id is left out.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,64}")
_log = logging.getLogger("splitveil.access")
_audit = logging.getLogger("splitveil.audit")


@dataclass(slots=True)
class Exchange:
    """One request and its answer, without their content.

    Attributes:
        protocol: ``rest`` or ``grpc``.
        call: method and path, or the name of the call.
        address: of the client; see `Addresses.client`.
        request_id: the client's ``x-request-id``, if it is a plain one.
        control: what a control call asks for.
        model: that is asked for, as the client names it.
        token: which token was shown; see `Tokens.check`.
        status: of the protocol.
        reason: why the request was refused; empty where it was not.
        received, sent: bytes of the bodies.
    """

    protocol: Literal["rest", "grpc"]
    call: str
    address: str
    request_id: str = ""
    control: Control | None = None
    model: str = ""
    token: str = ""
    status: str | int = ""
    reason: str = ""
    received: int = 0
    sent: int = 0
    begin: float = field(default_factory=time.perf_counter)


_current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


def note(**facts: Any) -> None:
    """Take note of attributes of the exchange that is under way; nothing happens where none is recorded."""
    if (exchange := _current.get()) is not None:
        for name, value in facts.items():
            setattr(exchange, name, value)


def plain_id(given: str) -> str:
    """A request's id as a client gave it; empty where it could disturb a log."""
    return given if _REQUEST_ID.fullmatch(given) else ""


@contextmanager
def recording(exchange: Exchange, metrics: Metrics, access_log: bool) -> Iterator[None]:
    """Around an exchange: its lines are written in the end, however it ends."""
    before = _current.set(exchange)
    try:
        yield
    except BaseException:
        exchange.reason = exchange.reason or "broken off"
        raise
    finally:
        _current.reset(before)
        if exchange.control:
            _write_audit(exchange, metrics)
        if access_log:
            _write_access(exchange)


class Recorded:
    """An ASGI application whose control calls, or all of whose requests, are recorded.

    Args:
        app: the application.
        metrics: that count control calls.
        addresses: which say whose request it is.
        access_log: whether all requests are.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, addresses: Addresses, access_log: bool) -> None:
        self._app, self._metrics, self._addresses, self._access_log = app, metrics, addresses, access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        found = _CONTROL.fullmatch(scope.get("path", ""))
        if scope["type"] != "http" or not (self._access_log or found):
            await self._app(scope, receive, send)
            return
        exchange = _of_request(scope, self._addresses)
        if found and scope["method"] == "POST":
            exchange.model, exchange.control = found[1][:LONGEST_NAME], "load" if found[2] == "load" else "unload"

        async def receiving() -> Message:
            message = await receive()
            exchange.received += len(message.get("body", b""))
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
            exchange.sent += len(message.get("body", b""))
            await send(message)

        with recording(exchange, self._metrics, self._access_log):
            await self._app(scope, receiving, sending)
            exchange.model = exchange.model or scope.get("path_params", {}).get("name", "")[:LONGEST_NAME]


def _of_request(scope: Scope, addresses: Addresses) -> Exchange:
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    forwarded = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
    client = addresses.client((scope.get("client") or ("",))[0], forwarded)
    call = f"{scope['method']} {scope['path']}"[:LONGEST_NAME]
    return Exchange("rest", call, client, plain_id(given.decode("latin-1")))


def _write_access(exchange: Exchange) -> None:
    fields = {
        "protocol": exchange.protocol, "call": exchange.call, "model": exchange.model, "status": exchange.status,
        "reason": exchange.reason, "received": exchange.received, "sent": exchange.sent,
        "seconds": round(time.perf_counter() - exchange.begin, 6), "address": exchange.address,
        "token": exchange.token, "request_id": exchange.request_id,
    }  # fmt: skip
    _log.info("request", extra=own(**fields))


def _write_audit(exchange: Exchange, metrics: Metrics) -> None:
    outcome = exchange.reason or "done"
    metrics.control.labels(exchange.control, outcome).inc()
    fields = {
        "model": exchange.model, "outcome": outcome, "protocol": exchange.protocol, "address": exchange.address,
        "token": exchange.token, "request_id": exchange.request_id,
    }  # fmt: skip
    # Calls that came to nothing hide none that did not.
    caller = (exchange.address, exchange.token, outcome)
    _audit.info(exchange.control, extra={"fields": fields, "caller": caller})
