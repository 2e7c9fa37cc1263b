"""TLS for both protocols from the same files, which may be replaced while the server runs."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from splitveil.errors import ServeError
from splitveil.serve.settings import Settings


@dataclass
class Certificates:
    """The server's certificate and its key, as they were last read, and the authority of clients' certificates.

    Attributes:
        http: for new connections of HTTP.
    """

    settings: Settings
    http: ssl.SSLContext = field(init=False)
    _authority: bytes | None = field(init=False)
    _grpc: Any = field(init=False)
    _generation: int = 0

    def __post_init__(self) -> None:
        self.http = _context(self.settings)
        self._authority = _read(self.settings.client_ca) if self.settings.client_ca else None
        self._grpc = self._configuration()

    def reload(self) -> None:
        """Read certificate and key again for new connections; raises `ServeError`, and keeps the old ones."""
        _context(self.settings)  # so that the one in use is not spoilt by a pair that does not fit
        configuration = self._configuration()
        _load(self.http, self.settings)
        self._grpc, self._generation = configuration, self._generation + 1

    def grpc(self) -> Any:
        """Credentials for gRPC, whose core asks at each handshake for what has changed."""
        seen = self._generation

        def changed() -> Any:
            nonlocal seen
            if seen == self._generation:
                return None
            seen = self._generation
            return self._grpc

        return grpc.dynamic_ssl_server_credentials(self._grpc, changed, self._authority is not None)

    def _configuration(self) -> Any:
        assert self.settings.tls_key is not None
        assert self.settings.tls_cert is not None
        pair = (_read(self.settings.tls_key), _read(self.settings.tls_cert))
        return grpc.ssl_server_certificate_configuration([pair], self._authority)


def certificates(settings: Settings) -> Certificates | None:
    """Those of the settings; None without TLS.

    Raises:
        ServeError: a file cannot be used.
    """
    return None if settings.tls_cert is None else Certificates(settings)


def _context(settings: Settings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, settings)
    if settings.client_ca is not None:
        try:
            context.load_verify_locations(settings.client_ca)
        except OSError as error:
            raise ServeError(f"{settings.client_ca} is no certificate of an authority in PEM ({error})") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _load(context: ssl.SSLContext, settings: Settings) -> None:
    assert settings.tls_cert is not None
    try:
        # Without a password of its own, OpenSSL would ask for one on the terminal.
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: b"")
    except OSError as error:  # ssl.SSLError is one
        raise ServeError(
            f"{settings.tls_cert} and {settings.tls_key} are no certificate and its key in PEM, or the key has a "
            f"passphrase ({error})"
        ) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ServeError(f"{path} cannot be read ({error})") from error
