"""Messages of gRPC, changed in their encoding and sent by a real client, against a second reader."""

import random
import struct
from typing import Any, Self

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from .bundles import MAX_BATCH
from .graphs import LEAVES, Part, joined, messages, parts
from .oracle import read_tensor
from .served import COMPONENTS, PATIENCE, Served
from .target import WORDS, change_bytes

METHODS = (
    "ModelInfer", "ModelMetadata", "ModelReady", "ModelConfig", "ModelStatistics", "RepositoryIndex", "ServerLive",
    "RepositoryModelLoad", "SystemSharedMemoryStatus", "TraceSetting", "Nothing",
)  # fmt: skip
CODES = {
    grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED,
}  # fmt: skip
REQUEST, TENSOR, ENTRY, CONTENTS, OUTPUT, PARAMETER = range(6)
INNER = {
    REQUEST: {4: ENTRY, 5: TENSOR, 6: OUTPUT}, TENSOR: {4: ENTRY, 5: CONTENTS}, ENTRY: {2: PARAMETER}, CONTENTS: {},
    OUTPUT: {2: ENTRY}, PARAMETER: {},
}  # fmt: skip
NUMBERS = (*range(1, 9), 100, 2**29 - 1)


def change_message(data: bytes, rng: random.Random) -> bytes:
    """One change of a field of a ModelInferRequest."""
    try:
        message = parts(data, REQUEST, INNER)
    except (IndexError, KeyError):
        return change_bytes(data, rng)
    place, _ = rng.choice(messages(message, REQUEST))
    index = rng.randrange(len(place)) if place else None
    choice = rng.randrange(9)
    if choice == 0 or index is None:
        wire = rng.randrange(6)
        value = {0: rng.choice(LEAVES), 1: bytes(8), 2: rng.choice(WORDS).encode(), 3: b"", 4: b"", 5: bytes(4)}[wire]
        place.insert(rng.randrange(len(place) + 1), Part(rng.choice(NUMBERS), wire, value))
    elif choice == 1:
        place.insert(index, place[index])
    elif choice == 2:
        del place[index]
    elif choice == 3:
        place[index] = place[index]._replace(number=rng.choice(NUMBERS))
    elif choice == 4:
        place[index] = place[index]._replace(spare=rng.choice((1, 2, 4, 9)))
    elif choice == 5 and isinstance(place[index].value, int):
        place[index] = place[index]._replace(value=rng.choice(LEAVES))
    elif isinstance(found := place[index].value, bytes):
        words = (b"frame", b"coefficients", b"UINT8", b"FP32", b"made", b"2", b"", b"\xff")
        changed = rng.choice(words) if choice == 6 else change_bytes(found, rng, 3000)
        if place[index].wire == 2:
            place[index] = place[index]._replace(value=changed)
    else:
        return change_bytes(data, rng)
    return joined(message)


class Grpc(Served):
    """The port of gRPC. The first byte of a case names the method."""

    def __enter__(self) -> Self:
        super().__enter__()
        channel = self._stack.enter_context(grpc.insecure_channel(self.server.grpc))
        prefix = "/inference.GRPCInferenceService/"
        self._calls = [channel.unary_unary(prefix + name) for name in METHODS]  # bytes in, bytes out
        return self

    def seeds(self) -> list[bytes]:
        found = [bytes([number]) for number in range(1, len(METHODS))]
        found.append(b"\x01" + service_pb2.ModelMetadataRequest(name="made", version="1").SerializeToString())
        for rows in (1, 2, MAX_BATCH):
            numbers = [0.25] * (rows * COMPONENTS)
            raw = struct.pack(f"<{len(numbers)}f", *numbers)
            for shape in ([rows, COMPONENTS], [rows, COMPONENTS - 1]):
                size = rows * shape[1]
                given = {"name": "coefficients", "datatype": "FP32", "shape": shape}
                typed = service_pb2.ModelInferRequest(model_name="made", id="a")
                typed.inputs.add(**given).contents.fp32_contents.extend(numbers[:size])
                binary = service_pb2.ModelInferRequest(model_name="made", model_version="1")
                binary.inputs.add(**given).parameters["a"].int64_param = 5
                binary.outputs.add(name="logits")
                binary.raw_input_contents.append(raw[: 4 * size])
                found += [b"\0" + message.SerializeToString() for message in (typed, binary)] * 4
        return found

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        first = data[:1] if rng.random() < 0.98 else bytes([rng.randrange(len(METHODS))])
        return first + change_message(data[1:], rng)

    def check(self, data: bytes) -> None:
        number = data[0] % len(METHODS) if data else 0
        answer = self._answer(number, data[1:])
        if METHODS[number] != "ModelInfer":
            return
        request = service_pb2.ModelInferRequest()
        try:
            request.ParseFromString(data[1:])
        except DecodeError:
            assert answer is None, "what is no message is answered"
            return
        expected = _rows(request, self.facts)
        if answer is None:
            assert expected is None, "a valid request is refused"
            return
        assert expected is not None, "a request is answered that must not be"
        found = service_pb2.ModelInferResponse.FromString(answer)
        assert found.id == request.id
        self.check_logits(np.frombuffer(found.raw_output_contents[0], "<f4"), expected)

    def _answer(self, number: int, message: bytes) -> bytes | None:
        try:
            found: bytes = self._calls[number](message, timeout=PATIENCE, wait_for_ready=True)
        except grpc.RpcError as error:
            assert error.code() in CODES, f"{error.code()}: {error.details()}"
            return None
        return found


def _rows(request: Any, facts: Any) -> list[list[float]] | None:
    """Rows of a request that must be answered."""
    if request.model_name != "made" or request.model_version not in ("", "1") or len(request.inputs) != 1:
        return None
    if any(output.name != "logits" or output.parameters for output in request.outputs) or len(request.outputs) > 1:
        return None
    given = request.inputs[0]
    if any(key.startswith("shared_memory") for key in given.parameters):
        return None
    if len(request.raw_input_contents) > 1 or (request.raw_input_contents and given.HasField("contents")):
        return None
    numbers: Any = list(given.contents.uint_contents if given.datatype == "UINT8" else given.contents.fp32_contents)
    if request.raw_input_contents:
        numbers = request.raw_input_contents[0]
    shape = list(given.shape)
    return read_tensor({"name": given.name, "datatype": given.datatype, "shape": shape}, numbers, facts, MAX_BATCH)
