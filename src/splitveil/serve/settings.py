"""Everything that an operator may set, in one place, each with its reason."""

from dataclasses import dataclass
from pathlib import Path

from splitveil.errors import ServeError
from splitveil.serve.shares import Addresses

# gRPC takes no longer message than 2**31 - 1 bytes, nor more connections; a batch of zeros is computed at the start.
_MOST = {
    "max_batch": 2**16, "max_requests": 2**20, "max_connections": 2**20, "max_body": 2**31 - 1, "max_buffered": 2**63,
    "max_json_numbers": 2**24,
}  # fmt: skip
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Settings:
    """How a server runs.

    Attributes:
        host: address to listen on; loopback, so that nobody is served by accident.
        http_port, grpc_port: 8000 and 8001 are where clients of this protocol look first; 0 picks a free one.
        health_port: of live, ready and metrics alone, in plain HTTP and without tokens, so that probes and Prometheus
            are answered whatever goes on at the others; None: there is no such port, 0 picks a free one.
        token_file: bearer tokens, one per line; without it everybody who reaches the server is answered.
        tls_cert, tls_key: PEM files of the certificate with its chain, and of its key; without them nothing is
            encrypted.
        client_ca: PEM file of the authority whose client certificates are let in; without it none is asked for.
        public_key: PEM file of the Ed25519 key that must have signed every bundle; without it none is asked for.
        max_batch: rows of one request, and rows that are computed together; more rows make one computation longer,
            for which everybody else waits.
        max_delay_ms: how long the first of a batch waits for others, in milliseconds. 0: whatever has arrived is
            computed at once, which is best unless computing is long and requests are many.
        max_requests: that are being answered at once; more are told to come back, which keeps the waiting bounded.
        max_connections: open ones of each protocol; bounds memory and file descriptors.
        max_body: bytes of a request, also after decompression; less where the model takes less.
        max_buffered: bytes of all bodies that have come and are not yet answered, decompressed, so that many clients
            cannot fill the memory.
        max_json_numbers: in the JSON of a request, which has at most 64 bytes for each. Reading 8192 takes some 3 ms,
            in which nobody else is answered; numbers in bytes have no such limit.
        share: of what the others leave that one address, or one token where there are several, may have of connections,
            memory and requests at once; 1: everything. Some is always left for a newcomer, and a load balancer, whose
            clients all have its address, has enough.
        trusted_proxies: addresses and networks of proxies, which are counted by the address in their
            ``X-Forwarded-For`` instead of their own, and may take all connections.
        timeout: seconds from a connection, or from a request's first byte, to the request's last byte; also for
            handshakes, and for a client that does not take its answer.
        keep_alive: seconds that a connection may wait for its next request; longer than a load balancer's idle time
            (often 60), which otherwise sends into a connection that was just closed.
        drain: seconds that requests under way have after SIGTERM; orchestrators kill after 30.
        threads: of ONNX Runtime per model. 1 suits the small halves that are served here, which take less time than
            waking other threads does; 0 is one per core of this machine.
        reload: seconds between looks at the bundles' files; 0: never, new ones come by the repository's load call.
        control: whether clients may load and unload models.
        access_log: whether each request is logged. That is not bounded: clients then decide how fast the log grows.
    """

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    health_port: int | None = None
    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    public_key: Path | None = None
    max_batch: int = 64
    max_delay_ms: float = 0.0
    max_requests: int = 384
    max_connections: int = 2048
    max_body: int = 16 * 2**20
    max_buffered: int = 256 * 2**20
    max_json_numbers: int = 8192
    share: float = 0.75
    trusted_proxies: tuple[str, ...] = ()
    timeout: float = 10.0
    keep_alive: float = 75.0
    drain: float = 20.0
    threads: int = 1
    reload: float = 0.0
    control: bool = True
    access_log: bool = False

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise ServeError(f"{name} is {getattr(self, name)}; give 1 to {most}")
        for name in ("timeout", "keep_alive", "drain"):
            if not 0 < getattr(self, name) <= 86_400:
                raise ServeError(f"{name} is {getattr(self, name)} seconds; give more than 0 and at most a day")
        if not 0 <= self.max_delay_ms <= 10_000 or not 0 <= self.reload <= 86_400:
            raise ServeError("max_delay_ms is 0 to 10000 milliseconds, and reload 0 to 86400 seconds")
        if not 0 <= self.threads <= 1024:
            raise ServeError(f"threads is {self.threads}; give 0 (one per core) to 1024")
        if not 0 < self.share <= 1:
            raise ServeError(f"share is {self.share}; give more than 0 and at most 1, such as 0.75")
        try:
            Addresses(self.trusted_proxies)
        except ValueError as error:
            raise ServeError(f"a trusted proxy is no address or network ({error}); give such as 10.0.0.0/8") from error
        for name in ("http_port", "grpc_port", "health_port"):
            if not 0 <= (getattr(self, name) or 0) <= 65_535:
                raise ServeError(f"{name} is {getattr(self, name)}; give 0 (any free port) to 65535")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ServeError("TLS needs both the certificate and its key; give both or neither")
        if self.client_ca and not self.tls_cert:
            raise ServeError("client certificates need TLS; give the server's certificate and key too")

    @property
    def warnings(self) -> list[str]:
        """What an operator should hear before strangers do."""
        found = []
        if self.host not in _LOOPBACK:
            if self.token_file and not self.tls_cert:
                found.append(f"tokens cross the network in the clear, because {self.host} is served without TLS")
            if not self.token_file and not self.client_ca:
                found.append(f"everybody who reaches {self.host} is answered; give a token file or a client authority")
            if self.health_port is not None:
                found.append(f"everybody who reaches {self.host} is told health and metrics at the health port")
        return found
