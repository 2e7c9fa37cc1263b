"""Both protocols on sockets, in one event loop, from start to drained end."""

import asyncio
import contextlib
import errno
import logging
import os
import resource
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from starlette.applications import Starlette
from uvicorn.config import Config
from uvicorn.server import ServerState

from splitveil.errors import ServeError
from splitveil.serve.connection import Connection
from splitveil.serve.grpc_port import grpc_port
from splitveil.serve.logs import own, places
from splitveil.serve.reload import reload_when_asked, watch
from splitveil.serve.repository import Models
from splitveil.serve.rest import health_application, rest_application
from splitveil.serve.service import Service
from splitveil.serve.settings import Settings
from splitveil.serve.shares import Pool
from splitveil.serve.signals import listening
from splitveil.serve.tls import Certificates, certificates

QUIET_SECONDS = 0.3
"""How long connections stay open once draining has begun: what is on its way still gets a proper answer."""
CHECK_SECONDS = 0.02
OTHER_FILES = 256
"""File descriptors beside those of connections."""
HEALTH_CONNECTIONS = 64
"""Of the port for probes, which are few."""

_log = logging.getLogger("splitveil.serve")


@dataclass(frozen=True)
class Addresses:
    """Where a server listens.

    Attributes:
        rest: URL of REST, such as http://127.0.0.1:8000.
        grpc: host and port of gRPC, such as 127.0.0.1:8001.
        health: URL of the port for probes; None: there is none.
    """

    rest: str
    grpc: str
    health: str | None = None


async def serve(models: Models, settings: Settings, on_ready: Callable[[Addresses], None]) -> None:
    """Serve until SIGTERM or SIGINT; then answer what was accepted, and return.

    Args:
        models: of `open_models`.
        settings: of the server.
        on_ready: called once both protocols answer.

    Raises:
        ServeError: an address, the tokens or the certificates cannot be used.
    """
    service, certified = Service(models, settings), certificates(settings)
    asyncio.get_running_loop().set_exception_handler(partial(_lost, service))
    for sentence in settings.warnings:
        _log.warning(sentence, extra=own())
    service.most_files = _allow_files(2 * settings.max_connections + OTHER_FILES)
    with listening() as asked:
        async with _http(service, certified) as http, grpc_port(service, certified) as rpc, _health(service) as health:
            addresses = Addresses(http.url, rpc.address, health)
            on_ready(addresses)
            _log.info("ready", extra=own(**asdict(addresses)))
            reloading = [asyncio.create_task(reload_when_asked(service, certified, asked.reload))]
            if settings.reload:
                reloading.append(asyncio.create_task(watch(service)))
            await asked.stop.wait()
            service.draining = True
            _log.info("draining", extra=own())
            for task in reloading:
                task.cancel()
            await asyncio.gather(http.drain(), rpc.drain(QUIET_SECONDS))
    _log.info("stopped", extra=own())


class _Http:
    def __init__(self, service: Service, connections: set[Connection], server: asyncio.Server) -> None:
        self._service, self._connections, self._server = service, connections, server
        port = server.sockets[0].getsockname()[1]
        scheme = "https" if service.settings.tls_cert else "http"
        self.url = f"{scheme}://{_bracketed(service.settings.host)}:{port}"

    async def drain(self) -> None:
        """Let no new connection in, answer what comes on the others, and close them."""
        self._server.close()
        for connection in list(self._connections):
            connection.announce_end()
        await asyncio.sleep(QUIET_SECONDS)
        for connection in list(self._connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._service.settings.drain):
                while self._connections:
                    await asyncio.sleep(CHECK_SECONDS)
        for connection in list(self._connections):
            connection.transport.abort()


@asynccontextmanager
async def _http(service: Service, certified: Certificates | None) -> AsyncIterator[_Http]:
    application, port = rest_application(service), service.settings.http_port
    context = certified.http if certified else None
    async with _opened(service, application, service.connections, port, context) as (connections, server):
        yield _Http(service, connections, server)


@asynccontextmanager
async def _health(service: Service) -> AsyncIterator[str | None]:
    """The URL of the port for probes, if there is one. It answers until the end, while the others drain too."""
    port = service.settings.health_port
    if port is None:
        yield None
        return
    room = Pool(HEALTH_CONNECTIONS, service.settings.share)
    async with _opened(service, health_application(service), room, port, None) as (_, server):
        yield f"http://{_bracketed(service.settings.host)}:{server.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def _opened(
    service: Service, application: Starlette, room: Pool, port: int, context: ssl.SSLContext | None
) -> AsyncIterator[tuple[set[Connection], asyncio.Server]]:
    """Open connections of a port, and what lets new ones in."""
    settings = service.settings
    # Only what a connection reads of it matters; uvicorn's own server is not used.
    config = Config(
        application, log_config=None, access_log=False, lifespan="off", ws="none", server_header=False,
        date_header=False, proxy_headers=False, timeout_keep_alive=settings.keep_alive,  # type: ignore[arg-type]
    )  # fmt: skip
    config.load()
    state = ServerState()
    connections: set[Connection] = state.connections  # type: ignore[assignment]
    patience = settings.timeout if context else None
    try:
        server = await asyncio.get_running_loop().create_server(
            lambda: Connection(config, state, service, room), settings.host, port, ssl=context, backlog=2048,
            ssl_handshake_timeout=patience, ssl_shutdown_timeout=patience,
        )  # fmt: skip
    except OSError as error:
        # A name that is not known has a negative number, which the system has no words for.
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else error
        raise ServeError(
            f"cannot listen on {settings.host} port {port} ({why}); choose another address or port"
        ) from error
    try:
        yield connections, server
    finally:
        server.close()
        for connection in list(connections):
            connection.transport.abort()


def _lost(service: Service, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What nobody caught; the loop's own handler would log texts of exceptions, which may hold values of a tensor."""
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        service.metrics.exhausted.inc()
        _log.warning("no file descriptor is free for a connection")
        return
    where = places(error) if isinstance(error, BaseException) else ""
    _log.error("lost exception", extra={"fields": {"traceback": where}})


def _allow_files(wanted: int) -> int:
    """As many open files as connections may need, if the system lets us; returns how many may be open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return 0 if soft == resource.RLIM_INFINITY else soft
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        _log.warning("fewer files may be open than max_connections need", extra=own(limit=most))
    return most


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
