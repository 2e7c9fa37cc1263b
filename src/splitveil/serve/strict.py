"""What the parser lets through of a request's head and two servers could read in two ways: refused, with an answer."""

import re

from splitveil.errors import ServeError
from splitveil.serve.refusal import RETRY_AFTER, Reason

LONGEST_HEAD = 64 * 2**10
"""Bytes of a request's line and header fields."""
MOST_FIELDS = 100
"""Header fields of a request; each costs time, however short it is. Proxies add a dozen."""
ONCE = {
    b"host", b"authorization", b"content-length", b"content-type", b"transfer-encoding", b"content-encoding",
    b"inference-header-content-length", b"origin", b"expect",
}  # fmt: skip
"""Fields of which only one may come: of two, a proxy may go by the other one."""
_HOST = re.compile(rb"(?:[A-Za-z0-9\-._~%!$&'()*+,;=]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)(?:[/?]|$)", re.IGNORECASE)


_PHRASE = {400: "Bad Request", 408: "Request Timeout", 413: "Content Too Large", 417: "Expectation Failed",
           431: "Request Header Fields Too Large", 503: "Service Unavailable"}  # fmt: skip


class HeadError(ServeError):
    """A head that is refused.

    Args:
        reason: for the metrics.
        status: of HTTP.
        sentence: for the client.
    """

    def __init__(self, reason: Reason, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.reason, self.status = reason, status


def check_head(version: str, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]]) -> tuple[int, bool]:
    """The declared length of the body, 0 where there is none or it comes in chunks; whether to say that it may come.

    Args:
        version: such as 1.1.
        method: such as POST.
        target: as it stands in the first line.
        headers: names in lower case, and values.

    Raises:
        HeadError: it is too long, or ambiguous.
    """
    fields: dict[bytes, bytes] = {}
    size = len(target)
    for name, value in headers:
        size += len(name) + len(value) + 4
        if name in ONCE:
            if name in fields:
                raise _invalid(f"the header {name.decode()} comes twice; send it once")
            fields[name] = value
    if len(headers) > MOST_FIELDS or size > LONGEST_HEAD:
        raise HeadError("large", 431, "the headers are too long")
    if version not in ("1.0", "1.1"):
        raise _invalid("only HTTP/1.0 and HTTP/1.1 are understood here")
    host = fields.get(b"host")
    if (host is None and version == "1.1") or (host is not None and not _HOST.fullmatch(host)):
        raise _invalid("a request has exactly one header Host, which names the server")
    coding = fields.get(b"transfer-encoding")
    if coding is not None and (version == "1.0" or coding.lower() != b"chunked"):
        raise _invalid("the only transfer coding is chunked, and HTTP/1.0 has none")
    expected = fields.get(b"expect")
    if expected is not None and expected.lower() != b"100-continue":
        raise HeadError("invalid", 417, "the only expectation that is met here is 100-continue")
    _check_target(method, target, host)
    return int(fields.get(b"content-length", 0)), expected is not None and version == "1.1"


def answer_of(status: int, sentence: str) -> bytes:
    """The last answer of a connection, where no application gives one."""
    body = f'{{"error": "{sentence}"}}'
    retry = f"retry-after: {RETRY_AFTER}\r\n" if status == 503 else ""
    return (
        f"HTTP/1.1 {status} {_PHRASE[status]}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n{retry}connection: close\r\n\r\n{body}"
    ).encode()


def _check_target(method: bytes, target: bytes, host: bytes | None) -> None:
    if target.startswith(b"/") and b"#" not in target and method != b"CONNECT":
        return
    absolute = _ABSOLUTE.match(target)
    if not absolute or b"#" in target or host is None or absolute[1].lower() != host.lower():
        raise _invalid("the target of a request is a path, or a URL of the host that the header Host names")


def _invalid(sentence: str) -> HeadError:
    return HeadError("invalid", 400, sentence)
