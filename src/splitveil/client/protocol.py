"""The Open Inference Protocol v2 with binary tensors, as bytes; what a server answers is believed in nothing."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitveil.errors import RemoteError

HEADER_LENGTH = "Inference-Header-Content-Length"
LARGEST_JSON = 64 * 2**10
"""Bytes that are read at most of what a server says in words."""

_HELP = "ask its operator, or see that the address is that of a splitveil server"


def inference_body(frames: Sequence[bytes]) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the request that carries frames of equal length, and asks for logits as binary."""
    rows, length = len(frames), len(frames[0])
    content = {
        "inputs": [
            {"name": "frame", "shape": [rows, length], "datatype": "UINT8",
             "parameters": {"binary_data_size": rows * length}}
        ],
        "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
    }  # fmt: skip
    header = json.dumps(content, separators=(",", ":")).encode()
    headers = {HEADER_LENGTH: str(len(header)), "Content-Type": "application/octet-stream"}
    return b"".join((header, *frames)), headers


def longest_answer(rows: int, classes: int) -> int:
    """Bytes that an honest answer has at most."""
    return LARGEST_JSON + 4 * rows * classes


def read_logits(body: bytes, headers: Mapping[str, str], rows: int, classes: int) -> NDArray[np.float32]:
    """Logits (rows, classes), read only, of an answer.

    Raises:
        RemoteError: it is not exactly that.
    """
    length = headers.get(HEADER_LENGTH, "")
    if not (length.isascii() and length.isdecimal() and len(length) < 9 and int(length) <= len(body)):
        raise RemoteError(f"the server's answer has no valid {HEADER_LENGTH}; {_HELP}")
    outputs = read_object(body[: int(length)]).get("outputs")
    if not (isinstance(outputs, list) and len(outputs) == 1 and isinstance(outputs[0], dict)):
        raise RemoteError(f"the server's answer has not the one output that was asked for; {_HELP}")
    output, values = outputs[0], body[int(length) :]
    parameters = output.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    expected = ("logits", "FP32", [rows, classes], math.prod((4, rows, classes)))
    if (output.get("name"), output.get("datatype"), output.get("shape"), size) != expected or len(values) != size:
        raise RemoteError(f"the server's answer is not the {rows} × {classes} logits of FP32 asked for; {_HELP}")
    logits = np.frombuffer(values, dtype="<f4").reshape(rows, classes)
    if not np.isfinite(logits).all():
        raise RemoteError(f"the server answered with logits that are not finite; {_HELP}")
    return logits


def read_object(text: bytes) -> dict[str, Any]:
    """A JSON object; raises `RemoteError` where it is none."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RemoteError(f"the server's answer is no JSON; {_HELP}") from error
    if not isinstance(content, dict):
        raise RemoteError(f"the server's answer is no JSON object; {_HELP}")
    return content


def configured_identity(config: Mapping[str, Any]) -> object:
    """The parameter ``identity`` of a model's configuration in Triton's words; None where there is none."""
    entry = config.get("parameters")
    for name in ("identity", "string_value"):
        entry = entry.get(name) if isinstance(entry, dict) else None
    return entry


def read_refusal(body: bytes) -> str:
    """The sentence of a server that refuses, fit for a terminal; empty where there is none."""
    try:
        said = read_object(body).get("error")
    except RemoteError:
        return ""
    if not isinstance(said, str):
        return ""
    # What comes from outside must neither move a terminal's cursor nor fill it.
    plain = "".join(character if character.isprintable() else " " for character in said)
    return " ".join(plain.split())[:300].rstrip(".")
