"""How a server is reached and trusted: its address, certificates and the token."""

import ipaddress
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from splitveil.errors import RemoteError


@dataclass(frozen=True)
class Access:
    """What a server asks of its clients, and what they ask of it.

    Attributes:
        token: sent as a bearer token; never over plain http to another machine, unless ``token_over_http``.
        ca: PEM file of the authorities that the server's certificate must come from; the public ones where not given.
        client_cert, client_key: PEM files of this client's own certificate.
        token_over_http: whether anybody on the way may read the token.

    Raises:
        RemoteError: the token is no token, or only one of certificate and key is given.
    """

    token: str | None = field(default=None, repr=False)
    ca: str | Path | None = None
    client_cert: str | Path | None = None
    client_key: str | Path | None = field(default=None, repr=False)
    token_over_http: bool = False

    def __post_init__(self) -> None:
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise RemoteError("the token is empty or holds what no header can carry; give one line of ASCII characters")
        if self.token is not None and " " in self.token:
            raise RemoteError("the token holds a space, which no bearer token has; give the token alone")
        if (self.client_cert is None) != (self.client_key is None):
            raise RemoteError("a client's certificate and its key go together; give both or neither")

    def headers(self) -> dict[str, str]:
        """What goes into every request."""
        # No client library and no versions: a server needs to know nothing of the device but what the frame says.
        common = {"User-Agent": "splitveil", "Accept": "*/*", "Accept-Encoding": "identity"}
        return common if self.token is None else {**common, "Authorization": f"Bearer {self.token}"}

    def trust(self) -> ssl.SSLContext:
        """What TLS connections are made with; raises `RemoteError` where a file cannot be read."""
        try:
            context = ssl.create_default_context(cafile=str(self.ca)) if self.ca else _public_authorities()
        except OSError as error:
            raise RemoteError(f"{self.ca} holds no certificates that can be read ({error}); name a PEM file") from error
        if self.client_cert and self.client_key:
            try:
                # An empty passphrase, so that an encrypted key is refused instead of asked for on the terminal.
                context.load_cert_chain(str(self.client_cert), str(self.client_key), password="")
            except OSError as error:
                raise RemoteError(
                    f"{self.client_cert} and its key cannot be used ({error}); name PEM files without a passphrase"
                ) from error
        return context


def check_url(url: str, access: Access) -> str:
    """The address of a server, without a slash at its end.

    Raises:
        RemoteError: it is none, holds a password or a query, or would show the token to others.
    """
    try:
        found = httpx.URL(url)
    except (httpx.InvalidURL, TypeError, ValueError) as error:
        raise RemoteError(f"the address of the server cannot be read ({error}); give https://HOST[:PORT]") from error
    if found.userinfo or found.query or found.fragment:
        raise RemoteError("a server's address has no user, query or fragment here; give the token apart from it")
    if found.scheme not in ("http", "https") or not found.host:
        raise RemoteError(f"{url!r} is no address of a server; give https://HOST[:PORT]")
    if found.port is not None and not 1 <= found.port <= 65535:
        raise RemoteError(f"{url!r} has no port that exists; give one from 1 to 65535")
    if access.token is not None and is_exposed(url) and not access.token_over_http:
        raise RemoteError(
            f"the token would cross the network to {found.host} for anybody to read; give an https:// address"
        )
    return str(found).rstrip("/")


def is_exposed(url: str) -> bool:
    """Whether what goes to an address crosses a network without TLS."""
    found = httpx.URL(url)
    try:
        is_loopback = ipaddress.ip_address(found.host).is_loopback
    except ValueError:
        is_loopback = found.host == "localhost"
    return found.scheme == "http" and not is_loopback


def _public_authorities() -> ssl.SSLContext:
    # Not from the environment, as everything else about the connection.
    return httpx.create_ssl_context(trust_env=False)
