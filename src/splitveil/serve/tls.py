"""TLS for both protocols from the same files."""

import ssl
from pathlib import Path
from typing import Any

import grpc

from splitveil.errors import ServeError
from splitveil.serve.settings import Settings


def http_context(settings: Settings) -> ssl.SSLContext | None:
    """For HTTP; None without TLS.

    Raises:
        ServeError: a file cannot be used.
    """
    if settings.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # Without a password of its own, OpenSSL would ask for one on the terminal.
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: b"")
    except OSError as error:  # ssl.SSLError is one
        raise ServeError(
            f"{settings.tls_cert} and {settings.tls_key} are no certificate and its key in PEM, or the key has a "
            f"passphrase ({error})"
        ) from error
    if settings.client_ca is not None:
        try:
            context.load_verify_locations(settings.client_ca)
        except OSError as error:
            raise ServeError(f"{settings.client_ca} is no certificate of an authority in PEM ({error})") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def grpc_credentials(settings: Settings) -> Any:
    """For gRPC, from files that `http_context` has accepted; None without TLS. Raises `ServeError` likewise."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    authority = _read(settings.client_ca) if settings.client_ca else None
    pair = (_read(settings.tls_key), _read(settings.tls_cert))
    return grpc.ssl_server_credentials([pair], authority, authority is not None)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ServeError(f"{path} cannot be read ({error})") from error
