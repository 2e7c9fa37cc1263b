"""What a bundle's graphs give and take, coefficients or digits, to frames and back."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from splitveil.bundle.manifest import Messages
from splitveil.codec import FrameCoding, dequantise, quantise
from splitveil.errors import WireError
from splitveil.wire import Frame, check_identity, decode, encode, pack_digits, unpack_digits


def to_frames(
    given: NDArray[np.float32], messages: Messages, identity: bytes, *, m: int, coding: FrameCoding
) -> list[bytes]:
    """One frame per message.

    Args:
        given: coefficients (B, at least m, *positions), the strongest first; or digits (B, components), whole numbers.
        messages: how they are written.
        identity: 4 bytes, see `Frame`.
        m: components to send.
        coding: how they are written.

    Raises:
        WireError: the messages do not allow this m or coding, a coefficient is not finite, or a digit not one of its
            level.
    """
    check_form(messages, m, coding)
    if coding == "index":
        assert messages.levels is not None  # a manifest that lists this coding has them
        return pack_digits(given, messages.levels, identity)
    kept = given[:, :m]
    values = kept if coding == "float32" else quantise(kept, messages.scale(coding), coding)
    tables = values.reshape(len(values), m, messages.places)
    return [encode(Frame(identity, table, coding)) for table in tables]


def from_frames(frames: Sequence[bytes], messages: Messages, identity: bytes) -> NDArray[np.float32]:
    """Coefficients (B, components, *positions), zero where nothing was sent; or digits (B, components).

    Raises:
        WireError: a frame is damaged, of another bundle, or of a form that the messages do not allow.
    """
    if messages.levels is not None:
        return unpack_digits(frames, messages.levels, identity).astype(np.float32)
    found = np.zeros((len(frames), messages.components, messages.places), dtype=np.float32)
    for row, data in zip(found, frames, strict=True):
        frame = decode(data)
        check_identity(frame, identity)
        check_form(messages, len(frame.values), frame.coding)
        if frame.values.shape[1] != messages.places:
            raise WireError(f"a component has {messages.places} coefficients here, not {frame.values.shape[1]}")
        row[: len(frame.values)] = _coefficients(frame, messages)
    return found.reshape(len(frames), messages.components, *messages.positions)


def check_form(messages: Messages, m: int, coding: FrameCoding) -> None:
    """Raises `WireError` where messages of this length or coding are not allowed."""
    if not 1 <= m <= messages.components:
        raise WireError(f"a message has 1 to {messages.components} components here, not {m}")
    if coding not in messages.codings:
        raise WireError(f"messages are coded as {' or '.join(messages.codings)} here, not as {coding}")
    if messages.certified and m != messages.components:
        raise WireError(f"every message of this certified bundle has {messages.components} components, not {m}")


def _coefficients(frame: Frame, messages: Messages) -> NDArray[np.float32]:
    assert frame.coding != "index"  # see `check_form`
    if frame.coding == "float32":
        return np.asarray(frame.values, dtype=np.float32)
    coefficients: NDArray[np.float32] = dequantise(
        np.asarray(frame.values, dtype=np.int8)[None], messages.scale(frame.coding)
    )[0]
    return coefficients
