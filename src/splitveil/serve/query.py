"""What a request asks, in the terms of neither protocol, and the coefficients or digits that it carries."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitveil.bundle import Messages, from_frames
from splitveil.errors import WireError
from splitveil.serve.model import Model
from splitveil.serve.refusal import RefusedError
from splitveil.wire import HEADER_BYTES

FRAME, COEFFICIENTS, LOGITS = "frame", "coefficients", "logits"
LARGE_BODY = 2**16
"""Requests of more bytes are parsed in a thread, one after the other, so that others need not wait for it."""
DATATYPE = {FRAME: "UINT8", COEFFICIENTS: "FP32"}


@dataclass(slots=True)
class Tensor:
    """The one input of a request.

    Attributes:
        name: ``frame`` or ``coefficients``.
        datatype: as the protocol names it.
        shape: as claimed, not yet compared with the data.
        data: raw little-endian bytes, as `bytes` or `memoryview`, or numbers in row-major order.
    """

    name: str
    datatype: str
    shape: list[int]
    data: bytes | memoryview | Sequence[Any]


@dataclass(slots=True)
class Query:
    """One inference.

    Attributes:
        id: the client's own name of the request, handed back to it; may be empty.
        tensor: what it sends.
        binary: whether logits go back as raw bytes.
    """

    id: str
    tensor: Tensor
    binary: bool


def read_coefficients(tensor: Tensor, model: Model) -> NDArray[np.float32]:
    """Coefficients (B, components, *positions), zero beyond what was sent; or digits (B, components).

    Raises:
        RefusedError: the tensor is not what this model takes; the sentence names it.
    """
    shape = _checked_shape(tensor, model)
    if tensor.name == FRAME:
        raw = _octets(tensor, shape)
        length = shape[1]
        try:
            return from_frames(
                [raw[place : place + length] for place in range(0, len(raw), length)],
                model.messages,
                model.frame_identity,
            )
        except WireError as error:
            raise RefusedError("invalid", f"input '{FRAME}': {error}") from error
    values = _floats(tensor, shape)
    if not np.isfinite(values).all():
        raise RefusedError("invalid", f"input '{COEFFICIENTS}' holds values that are not finite")
    found = np.zeros((shape[0], model.messages.components, *model.messages.positions), np.float32)
    found[:, : shape[1]] = values
    return found


def input_names(messages: Messages) -> list[str]:
    """The inputs that a bundle takes: a certified one takes frames alone, as only they are of a known number."""
    return [FRAME] if messages.certified else [FRAME, COEFFICIENTS]


def longest_body(model: Model, most: int, most_json: int) -> int:
    """Bytes that a request to a model can have and be right: JSON, and behind it the longest rows in binary.

    Args:
        model: that is asked.
        most: bytes of any request.
        most_json: bytes of its JSON.
    """
    row = HEADER_BYTES + 4 * model.messages.components * model.messages.places
    return min(most, most_json + model.max_batch * row)


def _checked_shape(tensor: Tensor, model: Model) -> list[int]:
    name, shape, messages = tensor.name, tensor.shape, model.messages
    if name not in DATATYPE:
        raise RefusedError("invalid", f"input {name[:50]!r} is not known; send '{FRAME}' or '{COEFFICIENTS}'")
    if name not in input_names(messages):
        raise RefusedError("invalid", f"input '{name}' is refused by this certified bundle; send '{FRAME}'")
    if tensor.datatype != DATATYPE[name]:
        raise RefusedError("invalid", f"input '{name}' is {DATATYPE[name]}, not {tensor.datatype[:20]!r}")
    if name == FRAME:
        longest = HEADER_BYTES + 4 * messages.components * messages.places
        fits = len(shape) == 2 and 1 <= shape[1] <= longest
        wanted = f"[B, 1 to {longest}]"
    else:
        fits = (
            len(shape) == 2 + len(messages.positions)
            and 1 <= shape[1] <= messages.components
            and tuple(shape[2:]) == messages.positions
        )
        wanted = f"[B, {', '.join([f'1 to {messages.components}', *map(str, messages.positions)])}]"
    if not fits:
        raise RefusedError("invalid", f"input '{name}' has shape {shape[:8]}, but must have {wanted}")
    if not 1 <= shape[0] <= model.max_batch:
        raise RefusedError("invalid", f"input '{name}' has {shape[0]} rows; a request has 1 to {model.max_batch}")
    return shape


def _octets(tensor: Tensor, shape: list[int]) -> bytes:
    if len(tensor.data) != shape[0] * shape[1]:  # which is looked at first: it bounds the work
        raise RefusedError(
            "invalid", f"input '{tensor.name}' has {len(tensor.data)} bytes, which is not its shape {shape}"
        )
    try:
        if not isinstance(tensor.data, bytes | memoryview) and bool in set(map(type, tensor.data)):
            raise TypeError  # true is an int to Python, but no number to the protocol
        return bytes(tensor.data)
    except (TypeError, ValueError) as error:
        raise RefusedError("invalid", f"input '{tensor.name}' holds values that are no UINT8") from error


def _floats(tensor: Tensor, shape: list[int]) -> NDArray[np.float32]:
    count = math.prod(shape)
    if isinstance(tensor.data, bytes | memoryview):
        if len(tensor.data) != 4 * count:
            raise RefusedError(
                "invalid", f"input '{tensor.name}' has {len(tensor.data)} bytes, but FP32 {shape} has {4 * count}"
            )
        return np.frombuffer(tensor.data, "<f4").reshape(shape)
    if len(tensor.data) != count:
        raise RefusedError(
            "invalid", f"input '{tensor.name}' has {len(tensor.data)} values, which is not its shape {shape}"
        )
    # bool is an int to Python, and a text may be a number to NumPy; neither is one to the protocol.
    if not set(map(type, tensor.data)) <= {int, float}:
        raise RefusedError("invalid", f"input '{tensor.name}' holds values that are no FP32")
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
            return np.array(tensor.data, np.float64).astype(np.float32).reshape(shape)
    except OverflowError as error:
        raise RefusedError("invalid", f"input '{tensor.name}' holds values that are no FP32") from error
