"""Requests that are not answered: the reasons, as both protocols name them, and faults of ours as opaque ids."""

import logging
import secrets
from typing import Literal

from splitveil.errors import ServeError
from splitveil.serve.logs import places

Reason = Literal[
    "invalid", "unauthenticated", "forbidden", "missing", "slow", "large", "encoding", "busy", "draining", "fault"
]
HTTP_STATUS: dict[Reason, int] = {
    "invalid": 400, "unauthenticated": 401, "forbidden": 403, "missing": 404, "slow": 408, "large": 413,
    "encoding": 415, "busy": 503, "draining": 503, "fault": 500,
}  # fmt: skip
# Names of grpc.StatusCode; this module does not need grpc.
GRPC_STATUS: dict[Reason, str] = {
    "invalid": "INVALID_ARGUMENT", "unauthenticated": "UNAUTHENTICATED", "forbidden": "PERMISSION_DENIED",
    "missing": "NOT_FOUND", "slow": "DEADLINE_EXCEEDED", "large": "RESOURCE_EXHAUSTED", "encoding": "UNIMPLEMENTED",
    "busy": "RESOURCE_EXHAUSTED", "draining": "UNAVAILABLE", "fault": "INTERNAL",
}  # fmt: skip
RETRY_AFTER = 1
"""Seconds after which a client that came at a busy time may come again."""

_log = logging.getLogger("splitveil.serve")


class RefusedError(ServeError):
    """A request that is not answered.

    Args:
        reason: why, for the status of either protocol.
        sentence: for the client; holds no value of a tensor.
    """

    def __init__(self, reason: Reason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


def fault(error: BaseException) -> RefusedError:
    """What a client hears of a fault of ours: an id, under which the log says where it happened."""
    name = secrets.token_hex(8)
    _log.error("fault", extra={"fields": {"id": name, "traceback": places(error)}})
    return RefusedError("fault", f"a fault of the server; its log knows more under the id {name}")
