"""What comes back for a photo, and what went out for it."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sent:
    """The request that carried a frame.

    Attributes:
        request_bytes: of the whole HTTP/1.1 request: request line, headers, body; without TLS and TCP.
        rows: frames in it.
        attempts: how often it was sent.
    """

    request_bytes: int
    rows: int
    attempts: int


@dataclass(frozen=True, eq=False)
class Answer:
    """What the server says of one photo; shows nothing but the label when it is printed or logged.

    Attributes:
        label: name of the class.
        index: of the class.
        logits: (classes,), float32.
        frame: the bytes that were sent of this photo.
        sent: the request that they were sent in.
    """

    label: str
    index: int
    logits: NDArray[np.float32] = field(repr=False)
    frame: bytes = field(repr=False)
    sent: Sent = field(repr=False)

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Softmax of the logits, (classes,)."""
        powers = np.exp(self.logits.astype(np.float64) - float(self.logits.max()))
        shares: NDArray[np.float64] = powers / powers.sum()
        return shares
