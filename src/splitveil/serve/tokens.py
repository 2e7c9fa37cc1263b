"""Bearer tokens: which are known, compared in constant time."""

import hashlib
import hmac
from pathlib import Path

from splitveil.errors import ServeError
from splitveil.serve.access import note
from splitveil.serve.refusal import RefusedError

SHORTEST = 16
LONGEST_FILE = 2**20


class Tokens:
    """The tokens that are let in.

    Args:
        file: one token per line; empty lines and those that begin with # do not count. None: everybody is let in.

    Raises:
        ServeError: the file cannot be read, or holds no token, or one that is too short or has blanks.
    """

    def __init__(self, file: Path | None) -> None:
        self._digests: list[bytes] = []
        if file is None:
            return
        try:
            with file.open("rb") as opened:
                content = opened.read(LONGEST_FILE + 1)
            lines = content.decode("ascii").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ServeError(f"{file} cannot be read as tokens, one per line ({error})") from error
        if len(content) > LONGEST_FILE:
            raise ServeError(f"{file} has more than {LONGEST_FILE} bytes; name a file of tokens, one per line")
        for number, line in enumerate(lines, 1):
            token = line.strip()
            if not token or token.startswith("#"):
                continue
            if len(token) < SHORTEST or " " in token:
                raise ServeError(
                    f"line {number} of {file} is no token of at least {SHORTEST} characters without blanks; "
                    "make one with 'openssl rand -hex 32'"
                )
            self._digests.append(hashlib.sha256(token.encode()).digest())
        if not self._digests:
            raise ServeError(f"{file} holds no token; make one with 'openssl rand -hex 32'")

    @property
    def needed(self) -> bool:
        """Whether requests must carry a token."""
        return bool(self._digests)

    def check(self, authorization: bytes) -> bytes:
        """Let a request in by its header ``Authorization``; returns what tells its token from the others, if any.

        The log calls the token by its SHA-256's first 8 digits.

        Raises:
            RefusedError: it names no known token.
        """
        if not self._digests:
            return b""
        scheme, _, token = authorization.partition(b" ")
        # Digests have one length, and all are compared: how long it takes tells nothing of any token.
        given = hashlib.sha256(token.strip()).digest()
        known = sum(hmac.compare_digest(given, digest) for digest in self._digests)
        if scheme.lower() != b"bearer" or not known:
            raise RefusedError("unauthenticated", "this server asks for a token: send 'Authorization: Bearer TOKEN'")
        note(token=given.hex()[:8])
        return given if len(self._digests) > 1 else b""
