"""The inference server on a Ray cluster: replicas of one application behind Ray Serve's HTTP proxies.

    this process ── bundles' bytes ─► Ray ─► replica: splitveil.serve's application
    client ═══ HTTP ═══► proxy ────────────► replica, on any node

REST only: Ray's gRPC proxy wants servicers that can be pickled, and those of the protocol's stubs cannot.
"""

import importlib
import logging
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette

from splitveil.bundle import Bundle, ServerManifest, read_server, write_bundle
from splitveil.errors import ServeError
from splitveil.serve import Settings, application, open_models
from splitveil.telemetry import switch_off

NAME = "splitveil"
_log = logging.getLogger("splitveil.deploy")
# Of a Ray that we start: no accelerator is hidden, and a proxy on a busy machine is waited for.
_CALM = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}


@dataclass(frozen=True)
class Cargo:
    """What every replica gets with the deployment, so that nodes need no shared disk; they need splitveil alone.

    Attributes:
        bundles: each with the version under which it is offered.
        tokens: content of the token file, if there is one.
    """

    bundles: Sequence[tuple[str, Bundle[ServerManifest]]]
    tokens: bytes | None

    def application(self) -> Starlette:
        """The server's application, from files that are written, checked and read at once."""
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            for version, bundle in self.bundles:
                write_bundle(folder / "models" / bundle.manifest.name / version, bundle.manifest, bundle.files)
            token_file = None if self.tokens is None else folder / "tokens"
            if token_file and self.tokens is not None:
                token_file.write_bytes(self.tokens)
            # A client's call to load or unload would reach one replica of many.
            settings = Settings(token_file=token_file, control=False)
            return application(open_models([folder / "models"], settings), settings)


@contextmanager
def ray_service(
    bundles: Sequence[str | Path],
    *,
    replicas: int = 2,
    address: str | None = None,
    host: str = "127.0.0.1",
    http_port: int = 8000,
    token_file: str | Path | None = None,
    public_key: str | Path | None = None,
) -> Iterator[str]:
    """Serve bundles on a Ray cluster; yields the URL, and stops serving in the end.

    Each replica takes one CPU of the cluster and is put on another node where there is one. Every node with a replica
    has a proxy on this host and port. A connection to Ray that this process already has is used, and left open.

    Args:
        bundles: folders as `splitveil.serve.open_models` takes them; they need to be on this machine only.
        replicas: of the application, each with all models.
        address: of a running cluster, such as "auto" or "host:6379"; None: the connection that this process has, else
            a Ray on this machine alone, which is shut down in the end.
        host, http_port: that the proxies listen on; "0.0.0.0" for other machines to reach them.
        token_file: bearer tokens, one per line; without it everybody who reaches a proxy is answered.
        public_key: PEM file of an Ed25519 key; the bundles must then carry its signature.

    Raises:
        BundleError: a bundle is not whole, or not signed as asked.
        ServeError: a setting is impossible, no cluster answers, it serves something already, or the port is taken.
    """
    if replicas < 1 or http_port < 1:
        raise ServeError(f"replicas is {replicas} and http_port {http_port}; give at least 1 of the one, and a port")
    settings = Settings(
        host=host, http_port=http_port, token_file=_path(token_file), public_key=_path(public_key), control=False
    )
    for sentence in settings.warnings:
        _log.warning(sentence)
    cargo = _pack(bundles, settings)
    if address is None:
        _check_port(host, http_port)
    with _connected(address, replicas) as ray:
        serve: Any = importlib.import_module("ray.serve")
        if serve.status().proxies:
            raise ServeError("Ray Serve runs on this cluster already; stop it with 'serve shutdown', or use another")
        try:
            try:
                serve.start(http_options={"host": host, "port": http_port}, proxy_location="EveryNode")
                serve.run(_deployment(serve, cargo, replicas, settings).bind(), name=NAME, route_prefix="/")
            except (ray.exceptions.RayError, RuntimeError, TimeoutError) as error:
                raise ServeError(f"the cluster cannot serve ({_line(error)}); see the logs of Ray") from error
            yield f"http://{host}:{http_port}"
        finally:
            serve.shutdown()


def _pack(bundles: Sequence[str | Path], settings: Settings) -> Cargo:
    """Loaded here once, so that what is wrong with them is said before anything starts."""
    models = open_models(bundles, settings)
    application(models, settings)
    packed = [(place.version, read_server(place.folder, public_key=settings.public_key)) for place in models.all]
    return Cargo(packed, settings.token_file.read_bytes() if settings.token_file else None)


def _deployment(serve: Any, cargo: Cargo, replicas: int, settings: Settings) -> Any:
    def build() -> Starlette:  # Ray calls it in each replica
        return cargo.application()

    return serve.deployment(
        serve.ingress(build)(), name=NAME, num_replicas=replicas, ray_actor_options={"num_cpus": 1},
        # Enough at once for batches to form; more are told to come back, as the server itself does.
        max_ongoing_requests=settings.max_requests, max_queued_requests=settings.max_requests,
        graceful_shutdown_timeout_s=settings.drain, health_check_period_s=2, health_check_timeout_s=10,
    )  # fmt: skip


@contextmanager
def _connected(address: str | None, replicas: int) -> Iterator[Any]:
    """The module ray, connected; what was started or connected here ends here."""
    switch_off()  # Ray's processes inherit it
    if address is None:
        for name, value in _CALM.items():
            os.environ.setdefault(name, value)
    import ray

    ours = not ray.is_initialized()
    if not ours and address is not None:
        raise ServeError("this process is connected to a Ray cluster already; leave the address out to use it")
    if ours:
        # "local" also where the variable RAY_ADDRESS names a cluster: nobody asked for that one here.
        cores = max(replicas, os.cpu_count() or 1)
        local = {"address": "local", "num_cpus": cores, "include_dashboard": False}
        options = local if address is None else {"address": address}
        try:
            ray.init(**options, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            place = address or "this machine"
            raise ServeError(
                f"no Ray cluster answers at {place} ({_line(error)}); start one with 'ray start'"
            ) from error
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


def _check_port(host: str, port: int) -> None:
    """Ray itself would try in vain, again and again."""
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise ServeError(f"nothing can listen on {host}:{port} ({error}); give another address or port") from error


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
