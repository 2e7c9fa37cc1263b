"""Raw HTTP/2: frames in any order and of any content; the port of gRPC answers honest clients afterwards."""

import contextlib
import random
import struct
from typing import NamedTuple, Self

import grpc
from tritonclient.grpc import service_pb2

from .grpc_ import PATIENCE, change_message
from .served import COMPONENTS, Served
from .target import change_bytes

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
ACK, END_STREAM, END_HEADERS, PADDED = 1, 1, 4, 8
MARK = b"the last"  # of the ping behind a case
WAIT = 0.05  # seconds; a case that asks for no answer ends after it
STREAMS = (0, 1, 2, 3, 5, 2**31 - 1, 2**31)
NAMES = (
    (b":method", b"POST"), (b":method", b"GET"), (b":path", b"/inference.GRPCInferenceService/ModelInfer"),
    (b":path", b"/x"), (b":path", b""), (b":scheme", b"http"), (b":authority", b"x"), (b"te", b"trailers"),
    (b"content-type", b"application/grpc"), (b"content-type", b"text/plain"), (b"grpc-timeout", b"1n"),
    (b"grpc-timeout", b"99999999999H"), (b"grpc-encoding", b"gzip"), (b"grpc-encoding", b"x"), (b"a-bin", b"!!"),
    (b"authorization", b"Bearer a"), (b"connection", b"close"), (b"content-length", b"5"), (b":status", b"200"),
    (b"x", b"a" * 5000), (b"X", b"a"), (b"", b""), (b"a\n", b"b\r\n"), (b"grpc-accept-encoding", b"gzip"),
)  # fmt: skip


class Part(NamedTuple):
    """A frame; its length is that of its content, unless it lies about it."""

    kind: int
    flags: int
    stream: int
    content: bytes
    lie: int = 0


def written(frames: list[Part]) -> bytes:
    """Their bytes."""
    return b"".join(
        (max(0, len(frame.content) + frame.lie) % 2**24).to_bytes(3, "big") + bytes([frame.kind, frame.flags])
        + struct.pack(">I", frame.stream % 2**32) + frame.content
        for frame in frames
    )  # fmt: skip


def read(data: bytes) -> list[Part]:
    """The frames of a case; the last one may be cut off."""
    found = []
    while len(data) >= 9:
        length = int.from_bytes(data[:3], "big")
        content = data[9 : 9 + length]
        found.append(Part(data[3], data[4], int.from_bytes(data[5:9], "big"), content, length - len(content)))
        data = data[9 + length :]
    return found


def header(name: bytes, value: bytes) -> bytes:
    """A field, literal and without an index (RFC 7541, 6.2.2)."""
    return b"\0" + _text(name) + _text(value)


def _text(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes([len(text)]) + text
    found, rest = b"\x7f", len(text) - 127
    while rest >= 128:
        found += bytes([rest % 128 + 128])
        rest //= 128
    return found + bytes([rest]) + text


def call(stream: int, method: bytes, message: bytes) -> list[Part]:
    """A call of gRPC."""
    fields = (
        (b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"x"), (b"te", b"trailers"),
        (b":path", b"/inference.GRPCInferenceService/" + method), (b"content-type", b"application/grpc"),
    )  # fmt: skip
    block = b"".join(header(*field) for field in sorted(fields, key=lambda field: field[0][:1] != b":"))
    content = b"\0" + struct.pack(">I", len(message)) + message
    return [Part(HEADERS, END_HEADERS, stream, block), Part(DATA, END_STREAM, stream, content)]


class Http2(Served):
    """The port of gRPC, below gRPC. A case is the frames behind the preface."""

    def __enter__(self) -> Self:
        super().__enter__()
        channel = self._stack.enter_context(grpc.insecure_channel(self.server.grpc))
        self._honest = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        return self

    def seeds(self) -> list[bytes]:
        begin = [Part(SETTINGS, 0, 0, b"")]
        infer, live = call(1, b"ModelInfer", self._question()), call(1, b"ServerLive", b"")
        head, body = infer
        several = [part for stream in (1, 3, 5) for part in call(stream, b"ServerLive", b"")]
        apart = [
            head._replace(flags=0, content=head.content[:20]), Part(CONTINUATION, END_HEADERS, 1, head.content[20:]),
            body._replace(flags=0, content=body.content[:9]), body._replace(content=body.content[9:]),
        ]  # fmt: skip
        settings = Part(SETTINGS, 0, 0, struct.pack(">HIHI", 3, 100, 4, 65_535))
        window = Part(WINDOW, 0, 0, struct.pack(">I", 2**20))
        reset = Part(RESET, 0, 1, struct.pack(">I", 8))
        ends = Part(GOAWAY, 0, 0, struct.pack(">II", 0, 0))
        priority = Part(PRIORITY, 0, 1, struct.pack(">IB", 0, 16))
        return [
            written(frames)
            for frames in (
                begin + infer, begin + live, begin + several, begin + apart, [settings, window, *infer],
                [*begin, head, reset, *call(3, b"ServerLive", b"")], [*begin, priority, *live, ends],
                [*begin, Part(PING, 0, 0, bytes(8)), *infer],
            )
        ]  # fmt: skip

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        frames = read(data)
        if not frames:
            return change_bytes(data, rng)
        place = rng.randrange(len(frames))
        frame = frames[place]
        match rng.randrange(11):
            case 0:
                frame = frame._replace(kind=rng.choice((*range(11), 255)))
            case 1:
                frame = frame._replace(flags=rng.choice((0, 1, 4, 5, 8, 9, 13, 32, 36, 44, 255)))
            case 2:
                frame = frame._replace(stream=rng.choice(STREAMS))
            case 3:
                frame = frame._replace(lie=rng.choice((-9, -1, 1, 9, 2**14, 2**24 - 1)))
            case 4:
                frames.insert(rng.randrange(len(frames) + 1), frame)
            case 5:
                del frames[place]
                return written(frames)
            case 6:
                added = Part(
                    rng.randrange(11),
                    rng.choice((0, 1, 4, 5)),
                    rng.choice(STREAMS),
                    rng.randbytes(rng.choice((0, 4, 5, 8, 9))),
                )
                frames.insert(place, added)
                return written(frames)
            case 7 if frame.kind == HEADERS:
                frame = frame._replace(content=frame.content + header(*rng.choice(NAMES)) * rng.choice((1, 1, 1, 20)))
            case 8 if frame.kind == DATA and len(frame.content) > 5:
                message = change_message(frame.content[5:], rng)
                frame = frame._replace(content=frame.content[:1] + struct.pack(">I", len(message)) + message)
            case 9 if len(frames) > 1:
                frames[place], frames[place - 1] = frames[place - 1], frames[place]
                return written(frames)
            case _:
                frame = frame._replace(content=change_bytes(frame.content, rng))
        frames[place] = frame
        return written(frames)

    def check(self, data: bytes) -> None:
        ping = written([Part(PING, 0, 0, MARK)])
        found = b""
        with self.connect(self.server.grpc) as connection, contextlib.suppress(ConnectionError, TimeoutError):
            connection.sendall(PREFACE + data + ping)
            connection.settimeout(WAIT)  # a frame that is cut off swallows the ping
            while not _ended(found) and (part := connection.recv(65_536)):
                found += part
        for frame in read(found):
            assert frame.kind <= CONTINUATION, "what comes back is no HTTP/2"

    def settle(self) -> None:
        super().settle()
        if hasattr(self, "_honest"):
            rows = [[0.25] * COMPONENTS]
            answer = self._honest(
                service_pb2.ModelInferRequest.FromString(self._question()), timeout=PATIENCE, wait_for_ready=True
            )
            self.check_logits(struct.unpack("<4f", answer.raw_output_contents[0]), rows)

    def _question(self) -> bytes:
        request = service_pb2.ModelInferRequest(model_name="made")
        request.inputs.add(name="coefficients", datatype="FP32", shape=[1, COMPONENTS])
        request.raw_input_contents.append(struct.pack(f"<{COMPONENTS}f", *[0.25] * COMPONENTS))
        return bytes(request.SerializeToString())


def _ended(data: bytes) -> bool:
    """Whether the server has read all of a case, or will read no more."""
    return any(
        frame.kind == GOAWAY or (frame.kind == PING and frame.flags == ACK and frame.content == MARK)
        for frame in read(data)
    )
