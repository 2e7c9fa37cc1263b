"""Requests to one server: connections kept, answers bounded, failures named, and repeated where that may help."""

import asyncio
import email.utils
import os
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx

from splitveil.client.access import Access, check_url
from splitveil.client.patience import Clock, Patience, TryAgain, persist
from splitveil.client.protocol import LARGEST_JSON, read_refusal
from splitveil.errors import RemoteError
from splitveil.forking import keep_in_children

_NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")
"""What OpenSSL calls an answer in plain HTTP."""
_AGAIN = {
    502: "is behind a gateway that got no valid answer from it",
    503: "has no room for the request, or is not ready",
    504: "is behind a gateway that waited in vain for it",
}
_ADVICE = {
    401: "give the right token",
    403: "ask its operator for access",
    404: "see that the address is right and that it serves this bundle's model",
    413: "send fewer photos at once",
    429: "send fewer requests",
}


@dataclass(frozen=True)
class Reply:
    """What a server answered, and what it took to get it.

    Attributes:
        status: of HTTP.
        headers, body: as they came.
        request_bytes: of the HTTP/1.1 request.
        attempts: how often it was sent.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    request_bytes: int
    attempts: int


class Connection:
    """One server, asked over connections that are used again.

    They belong to the process and the event loop that opened them. Another one, such as a child after `os.fork()`,
    opens its own: two that wrote to one connection would spoil each other's requests.

    Args:
        url: https://HOST[:PORT], with a path where the server lies behind one.
        access: certificates and token.
        patience: limits of each request.
        transport: of httpx, in place of the network.
        clock: of the waits between attempts.

    Raises:
        RemoteError: the address or what it is to be reached with cannot be used.
    """

    def __init__(
        self, url: str, access: Access, patience: Patience, transport: httpx.AsyncBaseTransport | None, clock: Clock
    ) -> None:
        self.url = check_url(url, access)
        self._access, self._patience, self._clock = access, patience, clock
        self._transport, self._trust = transport, access.trust()
        self._http: httpx.AsyncClient | None = None
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None
        self._closed = False

    @property
    def who(self) -> str:
        """The server, as it is called in errors."""
        return f"the server at {self.url}"

    async def get(self, path: str) -> Reply:
        """What lies at a path below the server's address; raises `RemoteError` as `post` does."""
        return await self._ask("GET", path, LARGEST_JSON)

    async def post(self, path: str, body: bytes, headers: Mapping[str, str], most: int) -> Reply:
        """The answer to a body, be it a refusal.

        Args:
            path: below the server's address.
            body, headers: of the request.
            most: bytes that the answer may have.

        Raises:
            RemoteError: the server cannot be reached in time, is not trusted, or answers with more.
        """
        return await self._ask("POST", path, most, body, headers)

    def refusal(self, reply: Reply) -> RemoteError:
        """What to tell the user of a reply whose status is not 200."""
        if 300 <= reply.status < 400:
            return RemoteError(f"{self.who} points to another address, which is not followed; give that address")
        said = read_refusal(reply.body)
        return RemoteError(f"{self.who} refuses ({reply.status}{said and ': ' + said}); {self._advice(reply, said)}")

    async def close(self) -> None:
        """Close all connections of this process and loop; what is asked afterwards is refused."""
        self._closed = True
        if self._http is not None and self._home == _here():
            await self._http.aclose()

    def _advice(self, reply: Reply, said: str) -> str:
        if reply.status == 401 and self._access.token is None:
            return "give the token that it asks for (--token-file, or Access(token=…))"
        if reply.status == 400 and not said and self.url.startswith("http:"):
            return "if it expects TLS, write https://; else see that it is a splitveil server"
        other = "ask its operator" if reply.status >= 500 else "see that client and server fit together"
        return _ADVICE.get(reply.status, other)

    def _opened(self) -> httpx.AsyncClient:
        """Connections of this process and event loop."""
        if self._closed:
            raise RemoteError("this client was closed; open another one")
        if self._http is None or self._home != _here():
            if self._home is not None and isinstance(self._transport, httpx.AsyncHTTPTransport):
                raise RemoteError(
                    "the transport of this client belongs to the process and event loop that first used it; open "
                    "another client here"
                )
            # Nothing is taken from the environment: a proxy named there would see tokens meant for this machine.
            self._http = httpx.AsyncClient(
                headers=self._access.headers(), verify=self._trust, transport=self._transport, trust_env=False,
                follow_redirects=False, timeout=None,  # `persist` bounds attempts as a whole
            )  # fmt: skip
            self._home = _here()
            keep_in_children(self._http)
        return self._http

    async def _ask(
        self, method: str, path: str, most: int, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Reply:
        http = self._opened()
        request = http.build_request(method, self.url + path, content=body, headers=dict(headers or {}))
        (response, content), attempts = await persist(
            lambda: self._attempt(http, request, most), self._patience, self._clock, self.who
        )
        return Reply(response.status_code, response.headers, content, request_bytes(request), attempts)

    async def _attempt(
        self, http: httpx.AsyncClient, request: httpx.Request, most: int
    ) -> tuple[httpx.Response, bytes]:
        try:
            response = await http.send(request, stream=True)
            try:
                if response.status_code in _AGAIN:
                    raise TryAgain(_AGAIN[response.status_code], _retry_after(response))
                body = await self._read(response, most)
            finally:
                await response.aclose()
        except httpx.TransportError as error:
            if (reason := _distrust(error)) is not None:
                raise RemoteError(f"{self.who} {_advised(reason)}") from error
            if (other := _other_protocol(error)) is not None:
                raise RemoteError(f"{self.who} {other}") from error
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                raise TryAgain("cannot be reached") from error
            # What a server that expects TLS does with plain HTTP.
            hint = "" if request.url.scheme == "https" else ", as servers of https do"
            raise TryAgain(f"broke the connection off{hint}") from error
        if response.status_code == 500 and not read_refusal(body):
            # No fault that a server of this protocol has, as it would say so, but a proxy (Ray's) that lost its server.
            raise TryAgain("is behind a gateway that lost it")
        return response, body

    async def _read(self, response: httpx.Response, most: int) -> bytes:
        # A few bytes of gzip can stand for gigabytes, which httpx unpacks before anybody can count them.
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise RemoteError(f"{self.who} answers with packed bytes, which were not asked for; ask its operator")
        body = bytearray()
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > most:
                raise RemoteError(f"{self.who} answers with more than the {most} bytes that it may; ask its operator")
        return bytes(body)


def request_bytes(request: httpx.Request) -> int:
    """Length of a request as HTTP/1.1 writes it: request line, headers, an empty line, body."""
    line = len(request.method) + len(request.url.raw_path) + len("  HTTP/1.1\r\n")
    headers = sum(len(name) + len(value) + len(": \r\n") for name, value in request.headers.raw)
    return line + headers + len("\r\n") + len(request.content)


def _here() -> tuple[int, asyncio.AbstractEventLoop]:
    return os.getpid(), asyncio.get_running_loop()


def _other_protocol(error: httpx.TransportError) -> str | None:
    """What a server speaks that answers with something else than HTTP/1.1, and what to do about it."""
    # h11 says so of a first byte that no line of HTTP/1.1 has, as TLS and HTTP/2 begin with.
    if "illegal request line" in str(error):
        return (
            "does not speak HTTP/1.1; write https:// if it expects TLS, or give its REST port if this is that of gRPC"
        )
    if "illegal status line" in str(error):
        return "does not speak HTTP; give the address of a splitveil server"
    return None


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks to wait, 0 where it does not say so in one of the two forms that HTTP has."""
    value = response.headers.get("Retry-After", "")
    if value.isascii() and value.isdecimal() and len(value) < 10:
        return float(value)
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return 0.0


def _advised(reason: str) -> str:
    """The end of a sentence on what TLS objects to, with what to do about it."""
    if reason in _NOT_TLS:
        return "does not speak TLS; write http:// if frames may cross without it, or ask its operator for https"
    if "CERTIFICATE_REQUIRED" in reason:
        return "asks for a client's certificate; give one (--client-cert and --client-key, or Access)"
    if "APPLICATION_PROTOCOL" in reason:
        return "does not speak HTTP/1.1 over TLS, as the port of gRPC; give the address of its REST port"
    if "mismatch" in reason:
        return f"shows a certificate of another name ({reason}); give its address by a name in the certificate"
    return (
        f"and this client do not trust each other ({reason}); give the authority of its certificate, or this client's "
        "own certificate"
    )


def _distrust(error: BaseException) -> str | None:
    """What TLS objects to; None for a connection that broke for another reason."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return getattr(cause, "verify_message", None) or cause.reason or "TLS failed"
        cause = cause.__cause__ or cause.__context__
    return None
