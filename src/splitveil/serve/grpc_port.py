"""The port for gRPC, from start to drained end; opened again should the library end it."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from splitveil.errors import ServeError
from splitveil.serve.grpc_calls import Bounded
from splitveil.serve.grpc_handlers import grpc_handlers
from splitveil.serve.logs import places
from splitveil.serve.service import Service
from splitveil.serve.strict import LONGEST_HEAD
from splitveil.serve.tls import Certificates

CALLS_PER_CONNECTION = 100
AGAIN_SECONDS = 0.005
"""Until a port that is still taken is tried again."""

_log = logging.getLogger("splitveil.serve")


class GrpcPort:
    """A port that answers by gRPC until it is drained. Made by `grpc_port`.

    From grpcio 1.84.0 on (1.85.1 at least) grpc.aio ends its whole server at a call whose path is not UTF-8, before
    any token is read. Earlier versions go on, but hold messages of any length in memory before they refuse them. So a
    server that ends takes only the calls under way with it: another one has its port some milliseconds later.

    Args:
        service: that answers.
        certified: of TLS; None without.

    Attributes:
        address: host and port.
    """

    def __init__(self, service: Service, certified: Certificates | None) -> None:
        self._service, self._certified = service, certified
        self._server: Any = None
        self.address = ""

    async def open(self, port: int) -> None:
        """Listen; 0 picks a free port. Raises `ServeError` where that cannot be."""
        settings = self._service.settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        server, address = _server(self._service), f"{host}:{port}"
        credentials = self._certified.grpc() if self._certified else None
        try:
            found = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        except RuntimeError as error:
            raise ServeError(f"cannot listen on {address} for gRPC; choose another address or port") from error
        if not found:
            raise ServeError(f"cannot listen on {address} for gRPC; choose another address or port")
        await server.start()
        self._server, self.address = server, f"{host}:{found}"

    async def keep_open(self) -> None:
        """Open the port again whenever its server has ended by itself; returns once it was stopped."""
        while True:
            try:
                await self._server.wait_for_termination()
                return
            except Exception as error:  # whatever ended the library's own loop
                self._service.metrics.reopened.inc()
                _log.error("gRPC port opened again", extra={"fields": {"traceback": places(error)}})
            with contextlib.suppress(Exception):
                await self._server.stop(None)
            while True:
                with contextlib.suppress(ServeError):
                    await self.open(int(self.address.rpartition(":")[2]))
                    break
                await asyncio.sleep(AGAIN_SECONDS)

    async def drain(self, quiet: float) -> None:
        """After so many quiet seconds let no new call in, and answer the others."""
        await asyncio.sleep(quiet)
        await self._server.stop(self._service.settings.drain)

    async def close(self) -> None:
        """End all calls, and the port."""
        await self._server.stop(None)


@asynccontextmanager
async def grpc_port(service: Service, certified: Certificates | None) -> AsyncIterator[GrpcPort]:
    """The open port, within the context; raises `ServeError` where it cannot be opened."""
    port = GrpcPort(service, certified)
    await port.open(service.settings.grpc_port)
    keeping = asyncio.create_task(port.keep_open())
    try:
        yield port
    finally:
        keeping.cancel()
        await port.close()


def _server(service: Service) -> Any:
    settings = service.settings
    milliseconds = int(settings.timeout * 1000)
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.max_body),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", LONGEST_HEAD),
            ("grpc.absolute_max_metadata_size", LONGEST_HEAD),
            ("grpc.max_concurrent_streams", CALLS_PER_CONNECTION),
            ("grpc.max_allowed_incoming_connections", settings.max_connections),
            ("grpc.server_handshake_timeout_ms", milliseconds),
            ("grpc.max_connection_idle_ms", int(settings.keep_alive * 1000)),
            ("grpc.keepalive_time_ms", max(milliseconds, 10_000)),
            ("grpc.keepalive_timeout_ms", milliseconds),
            ("grpc.so_reuseport", 0),  # or two servers would share a port without knowing
        ],
        maximum_concurrent_rpcs=settings.max_connections,
    )
    server.add_generic_rpc_handlers([Bounded(service, grpc_handlers(service))])
    return server
