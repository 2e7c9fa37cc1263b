"""Inference over REST: JSON, or JSON followed by raw tensors. The one path that must be fast."""

import json
import time
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json, to_json
from starlette.types import Receive, Scope, Send

from splitveil.serve.body import COMPRESS_FROM, Head, compress, decompress, let_in, read_body, read_head
from splitveil.serve.model import Model
from splitveil.serve.query import LOGITS, Query, Tensor, longest_body
from splitveil.serve.refusal import HTTP_STATUS, RETRY_AFTER, RefusedError, fault
from splitveil.serve.service import SMALL_BODY, Service

_MOST_AXES = 8
_NO_HEAD = Head()
BYTES_PER_NUMBER = 64
"""Of JSON: 17 digits, sign and exponent are 24, and the rest is for who indents."""
OTHER_VALUES = 1000
"""Values in JSON beside a tensor's numbers: names, shapes, parameters."""


class Infer:
    """The endpoint POST /v2/models/NAME[/versions/VERSION]/infer, as an ASGI application."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        begin = time.perf_counter()
        service, model, reason, received, rows = self._service, None, None, 0, 0
        head = _NO_HEAD
        try:
            head = read_head(scope["headers"])
            caller = let_in(service, scope, head)
            path = scope["path_params"]
            model = service.models.get(path["name"], path.get("version", ""))
            numbers = service.settings.max_json_numbers
            most = service.settings.max_body
            if head.length is None or head.length > SMALL_BODY or head.encoding:
                most = longest_body(model, most, BYTES_PER_NUMBER * numbers)
            with service.holding(caller) as held:
                body = await read_body(receive, head, held, most)
                if head.encoding:
                    body = await decompress(body, head.encoding, held, most, service, caller)
                received = len(body)
                read = partial(read_query, body, head.json_length, numbers)
                query, logits = await service.infer(model, read, received, caller)
            rows = len(logits)
            content, json_length = write_answer(query, model, logits)
            status, headers = 200, _headers(json_length)
        except RefusedError as error:
            reason = error.reason
            status, headers, content = refusal_parts(error)
        except Exception as error:
            reason = "fault"
            status, headers, content = refusal_parts(fault(error))
        if head.accepts and len(content) >= COMPRESS_FROM:
            content, encoding = await compress(content, head.accepts)
            if encoding:
                headers.append((b"content-encoding", encoding))
        size = len(content)
        service.count(model, "rest", reason, begin, received, size, rows)
        headers.append((b"content-length", str(size).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})


def refusal_parts(refusal: RefusedError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of a refusal."""
    headers = [(b"content-type", b"application/json")]
    status = HTTP_STATUS[refusal.reason]
    if status == 503:
        headers.append((b"retry-after", str(RETRY_AFTER).encode()))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return status, headers, json.dumps({"error": str(refusal)}).encode()


def read_query(body: bytes | bytearray, json_length: int | None, numbers: int = 8192) -> Query:
    """What a body asks.

    Args:
        body: JSON, and raw tensors behind it.
        json_length: bytes of JSON; None: all.
        numbers: that the JSON may hold.

    Raises:
        RefusedError: it is not what the protocol says.
    """
    if json_length is not None and json_length > len(body):
        raise RefusedError("invalid", "the header inference-header-content-length is larger than the body")
    raw = memoryview(b"") if json_length is None else memoryview(body)[json_length:]
    content = parse_object(body if json_length is None else body[:json_length], numbers)
    inputs = content.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise RefusedError("invalid", "a request has exactly one input, 'frame' or 'coefficients'")
    name = content.get("id", "")
    if not isinstance(name, str) or len(name) > 1000:
        raise RefusedError("invalid", "the id of a request is a text of at most 1000 characters")
    binary = _parameters(content).get("binary_data_output", False) is True
    return Query(name, _tensor(inputs[0], raw), _wants_binary(content.get("outputs"), binary))


def parse_object(text: bytes | bytearray, numbers: int) -> dict[str, Any]:
    """A JSON object; raises `RefusedError` where it is none, or one that takes long to read.

    Args:
        text: of the object.
        numbers: that it may hold. Commas are counted, since every value but the first of its list or object has one.
    """
    if len(text) > BYTES_PER_NUMBER * numbers or text.count(b",") > numbers + OTHER_VALUES:
        raise RefusedError(
            "large", f"the JSON of a request has at most {numbers} numbers and {BYTES_PER_NUMBER * numbers} bytes; "
            "send fewer rows, or the numbers as binary tensors"
        )  # fmt: skip
    try:
        content = from_json(text, allow_inf_nan=False)
    except ValueError:  # its text may quote what was sent
        raise RefusedError(
            "invalid", "the request is no JSON (see the header inference-header-content-length)"
        ) from None
    if not isinstance(content, dict):
        raise RefusedError("invalid", "the request is no JSON object")
    return content


def write_answer(query: Query, model: Model, logits: NDArray[np.float32]) -> tuple[bytes, int | None]:
    """The body of an answer, and how much of it is JSON where raw bytes follow."""
    output: dict[str, Any] = {"name": LOGITS, "datatype": "FP32", "shape": logits.shape}
    content: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": [output]}
    if query.id:
        content["id"] = query.id
    if not query.binary:
        output["data"] = logits.ravel().tolist()
        return to_json(content), None
    raw = logits.astype("<f4", copy=False).tobytes()
    output["parameters"] = {"binary_data_size": len(raw)}
    text = to_json(content)
    return text + raw, len(text)


def _headers(json_length: int | None) -> list[tuple[bytes, bytes]]:
    if json_length is None:
        return [(b"content-type", b"application/json")]
    return [
        (b"content-type", b"application/octet-stream"),
        (b"inference-header-content-length", str(json_length).encode()),
    ]


def _parameters(content: dict[str, Any]) -> dict[str, Any]:
    parameters = content.get("parameters", {})
    if not isinstance(parameters, dict):
        raise RefusedError("invalid", "parameters are a JSON object")
    return parameters


def _tensor(content: Any, raw: memoryview) -> Tensor:
    if not isinstance(content, dict) or not isinstance(name := content.get("name"), str):
        raise RefusedError("invalid", "an input is a JSON object with a name")
    shown = f"input {name[:50]!r}"
    shape, datatype = content.get("shape"), content.get("datatype")
    if (
        not isinstance(shape, list)
        or not 1 <= len(shape) <= _MOST_AXES
        or not all(type(size) is int and 0 <= size < 2**31 for size in shape)
        or not isinstance(datatype, str)
    ):
        raise RefusedError("invalid", f"{shown} has no valid shape and datatype")
    parameters = _parameters(content)
    if any(key.startswith("shared_memory") for key in parameters):
        raise RefusedError("invalid", f"{shown} lies in shared memory, which is not offered here; send its data")
    size = parameters.get("binary_data_size")
    if size is not None:
        if type(size) is not int or size != len(raw):
            raise RefusedError("invalid", f"{shown} claims another number of raw bytes than the {len(raw)} that came")
        return Tensor(name, datatype, shape, raw)
    data = content.get("data")
    if not isinstance(data, list) or raw:
        raise RefusedError("invalid", f"{shown} needs either data or the parameter binary_data_size with raw bytes")
    return Tensor(name, datatype, shape, _flat(data, shape, shown))


def _flat(data: list[Any], shape: list[int], shown: str) -> list[Any]:
    """Row-major numbers of a flat list, or of one nested as the shape says."""
    if not (data and isinstance(data[0], list)):
        return data
    if len(data) != shape[0]:
        raise RefusedError("invalid", f"{shown} has data that is not nested as its shape says")
    for size in shape[1:]:
        if not all(isinstance(item, list) and len(item) == size for item in data):
            raise RefusedError("invalid", f"{shown} has data that is not nested as its shape says")
        data = list(chain.from_iterable(data))
    return data


def _wants_binary(outputs: Any, default: bool) -> bool:
    if outputs is None or outputs == []:
        return default
    if not isinstance(outputs, list) or len(outputs) != 1 or not isinstance(outputs[0], dict):
        raise RefusedError("invalid", f"the one output here is '{LOGITS}'")
    if outputs[0].get("name") != LOGITS:
        raise RefusedError("invalid", f"output {str(outputs[0].get('name'))[:50]!r} is not known; it is '{LOGITS}'")
    parameters = _parameters(outputs[0])
    if "classification" in parameters or any(key.startswith("shared_memory") for key in parameters):
        raise RefusedError("invalid", f"output '{LOGITS}' comes as numbers in the answer alone")
    return parameters.get("binary_data", default) is True
