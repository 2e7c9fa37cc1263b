"""Graphs mutated by structure, and what must hold of each that is accepted.

A case is a graph that is changed where its encoding has a structure: fields doubled, dropped, moved, given another
number, wire type or value, put into others; numbers and tags written with more bytes than they need; data in other
files, in every spelling. `check` gives what our reader accepts to two others, those of onnx and ONNX Runtime.
"""

import contextlib
import os
import random
import tempfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from splitveil.bundle import Graph
from splitveil.bundle.onnx import check_graph
from splitveil.errors import BundleError, GraphError

from .target import Target, change_bytes

SECRET = b"secret of a file"  # 16 bytes, which are four floats
FOLDER = Path(tempfile.gettempdir()) / f"fuzz_graph_{os.getuid()}"
INPUT, OUTPUT = (2, 4, 4), (3,)  # shapes of a row of every seed

# The numbers of fields that hold messages, by message; what is not here is a leaf.
MODEL, GRAPH, NODE, ATTRIBUTE, TENSOR, VALUE, TYPE, TENSOR_TYPE, SHAPE, DIMENSION, OPSET = range(11)
INNER = {
    MODEL: {7: GRAPH, 8: OPSET}, GRAPH: {1: NODE, 5: TENSOR, 11: VALUE, 12: VALUE}, NODE: {5: ATTRIBUTE},
    ATTRIBUTE: {5: TENSOR, 6: GRAPH}, TENSOR: {}, VALUE: {2: TYPE}, TYPE: {1: TENSOR_TYPE}, TENSOR_TYPE: {2: SHAPE},
    SHAPE: {1: DIMENSION}, DIMENSION: {}, OPSET: {},
}  # fmt: skip


class Part(NamedTuple):
    """A field: its number, wire type and value, a number, bytes, or the parts of a message."""

    number: int
    wire: int
    value: "int | bytes | list[Part]"
    kind: int | None = None
    spare: int = 0  # bytes that the tag has too many


def varint(value: int, spare: int = 0) -> bytes:
    """A number, with so many bytes too many."""
    value %= 2**64
    found = bytearray()
    while value >= 128 or spare:
        found.append(value % 128 | 128)
        if value < 128:
            spare -= 1
        value //= 128
    return bytes([*found, value])


def parts(data: bytes, kind: int, messages_in: Mapping[int, Mapping[int, int]] = INNER) -> list[Part]:
    """A valid message taken apart, and the messages that are in it."""
    found, at = [], 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        tag = number()
        if tag % 8 == 0:
            found.append(Part(tag >> 3, 0, number()))
            continue
        length = 4 if tag % 8 == 5 else number()
        value, at = data[at : at + length], at + length
        inner = messages_in[kind].get(tag >> 3)
        found.append(Part(tag >> 3, tag % 8, value if inner is None else parts(value, inner, messages_in), inner))
    return found


def joined(message: list[Part]) -> bytes:
    """The bytes of a message."""
    found = b""
    for part in message:
        found += varint(part.number << 3 | part.wire, part.spare)
        value = joined(part.value) if isinstance(part.value, list) else part.value
        if isinstance(value, int):
            found += varint(value)
        else:
            found += varint(len(value)) + value if part.wire == 2 else value
    return found


def external(spare: int = 0, location: bytes = b"token") -> list[Part]:
    """What makes a tensor lie in another file."""
    entry = [Part(1, 2, b"location", spare=spare), Part(2, 2, location, spare=spare)]
    length = [Part(1, 2, b"length"), Part(2, 2, b"16")]
    return [Part(13, 2, entry, spare=spare), Part(13, 2, length), Part(14, 0, 1, spare=spare)]


def messages(parts_: list[Part], kind: int) -> list[tuple[list[Part], int]]:
    """All messages in a message, itself first."""
    found = [(parts_, kind)]
    for part in parts_:
        if isinstance(part.value, list) and part.kind is not None:
            found += messages(part.value, part.kind)
    return found


LEAVES = (0, 1, 2, 3, 7, 8, 9, 16, 17, 18, 64, 127, 128, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)
WORDS = (
    b"", b"batch", b"Loop", b"If", b"Expand", b"Tile", b"Gather", b"MatMul", b"Identity", b"Dropout", b"Constant",
    b"RandomNormalLike", b"NonZero", b"ConstantOfShape", b"Add", b"Concat", b"axis", b"token", b"location",
    b"ai.onnx.ml", b"image", b"\xff\xfe", b"a\0b", b"x" * 2000,
)  # fmt: skip


def mutate(model: list[Part], rng: random.Random) -> None:
    """One change somewhere in a model."""
    everywhere = messages(model, MODEL)
    message, kind = rng.choice(everywhere)
    place = rng.randrange(len(message)) if message else None
    other = rng.choice(everywhere)[0]
    choice = rng.randrange(12)
    if choice == 0 and kind in (TENSOR, ATTRIBUTE, NODE, GRAPH, MODEL):
        message += external(
            rng.choice((0, 0, 1, 3, 8)), rng.choice((b"token", b"./token", b"../token", b"/etc/passwd"))
        )
        if kind == TENSOR and rng.random() < 0.7:
            message[:] = [part for part in message if part.number != 9]
    elif choice == 1:
        wire = rng.randrange(6)
        value = {0: rng.choice(LEAVES), 1: bytes(8), 2: rng.choice(WORDS), 3: b"", 4: b"", 5: bytes(4)}[wire]
        message.append(Part(rng.choice((*range(1, 27), 100, 2**29 - 1)), wire, value))
    elif place is None:
        message.append(Part(1, 2, rng.choice(WORDS)))
    elif choice == 2:
        message.insert(rng.randrange(len(message) + 1), deepcopy(message[place]))
    elif choice == 3:
        del message[place]
    elif choice == 4:
        rng.shuffle(message)
    elif choice == 5:
        message[place] = message[place]._replace(number=rng.choice((*range(1, 27), message[place].number + 2**28)))
    elif choice == 6:
        message[place] = message[place]._replace(spare=rng.choice((1, 2, 3, 4, 8, 9)))
    elif choice == 7 and other:
        message[place] = deepcopy(rng.choice(other))
    elif choice == 8:
        value = joined([Part(1, 2, b"")]) + joined(message[:1]) if rng.random() < 0.3 else rng.choice(WORDS)
        message[place] = Part(message[place].number, 2, value)
    elif choice == 9 and isinstance(message[place].value, int):
        message[place] = message[place]._replace(value=rng.choice(LEAVES))
    elif choice == 10 and isinstance(message[place].value, bytes):
        data = bytearray(message[place].value)
        if data:
            data[rng.randrange(len(data))] = rng.randrange(256)
        message[place] = message[place]._replace(
            value=bytes(data[: rng.choice((len(data), len(data), len(data) // 2))])
        )
    else:
        message[place] = Part(message[place].number, 2, [message[place]], message[place].kind)


@cache
def seeds() -> tuple[bytes, ...]:
    """Graphs of many operators, all from (B, 2, 4, 4) to (B, 3)."""
    random_ = np.random.default_rng(0)
    node, array = helper.make_node, lambda *shape: random_.normal(size=shape).astype(np.float32)
    last = [node("Reshape", ["z", "flat"], ["row"]), node("MatMul", ["row", "w"], ["logits"])]
    common = {"flat": np.array([-1, 32]), "w": array(32, 3)}
    middles: list[tuple[list[onnx.NodeProto], dict[str, np.ndarray]]] = [
        ([node("Conv", ["image", "k", "b"], ["y"], pads=[1] * 4, kernel_shape=[3, 3]), node("Relu", ["y"], ["z"])],
         {"k": array(2, 2, 3, 3), "b": array(2)}),
        ([node("Cast", ["image"], ["d"], to=TensorProto.DOUBLE), node("Add", ["d", "o"], ["s"]),
          node("Cast", ["s"], ["z"], to=TensorProto.FLOAT)], {"o": array(1, 2, 1, 1).astype(np.float64)}),
        ([node("Shape", ["image"], ["s"], start=0, end=1), node("Concat", ["s", "rest"], ["t"], axis=0),
          node("Expand", ["c", "t"], ["e"]), node("Add", ["image", "e"], ["z"])],
         {"rest": np.array([2, 4, 4]), "c": array(1, 2, 4, 4)}),
        ([node("Slice", ["image", "from", "to", "axes"], ["p"]), node("Tile", ["p", "times"], ["z"])],
         {"from": np.array([0]), "to": np.array([2]), "axes": np.array([2]), "times": np.array([1, 1, 2, 1])}),
        ([node("Transpose", ["image"], ["t"], perm=[0, 1, 3, 2]), node("Softmax", ["t"], ["a"], axis=-1),
          node("MatMul", ["a", "image"], ["z"])], {}),
        ([node("MaxPool", ["image"], ["m"], kernel_shape=[2, 2], strides=[2, 2]), node("Pad", ["m", "pads"], ["z"])],
         {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
        ([node("ArgMax", ["image"], ["i"], axis=1, keepdims=1), node("Gather", ["table", "i"], ["g"], axis=0),
          node("Squeeze", ["g", "one"], ["q"]), node("Concat", ["q", "q"], ["z"], axis=1)],
         {"table": array(2, 1), "one": np.array([4])}),
    ]  # fmt: skip
    found = []
    for nodes, constants in middles:
        graph = helper.make_graph(
            [*nodes, *last], "made",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *INPUT])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", *OUTPUT])],
            [numpy_helper.from_array(value, key) for key, value in {**common, **constants}.items()],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        found.append(model.SerializeToString(deterministic=True))
    return tuple(found)


def case(rng: random.Random) -> bytes:
    """A graph with up to three changes."""
    model = parts(rng.choice(seeds()), MODEL)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        mutate(model, rng)
    content = joined(model)
    if rng.random() < 0.03:
        content = content[: rng.randrange(len(content) + 1)] + rng.randbytes(rng.randrange(3))
    return content


def check(content: bytes) -> bool:
    """Whether a graph is accepted; raises `AssertionError` where it must not be."""
    try:
        check_graph(content, INPUT, OUTPUT)
    except GraphError:
        return False
    model = onnx.load_from_string(content)
    assert model.SerializeToString(deterministic=True) == content  # the other reader sees the same, and nothing more
    assert not model.functions
    assert {opset.domain for opset in model.opset_import} == {""}
    tensors = [*model.graph.initializer, *(attribute.t for node in model.graph.node for attribute in node.attribute)]
    assert not any(tensor.external_data or tensor.data_location for tensor in tensors)
    assert not any(a.HasField("g") or a.graphs for node in model.graph.node for a in node.attribute)
    with inside_a_folder_with_a_secret():
        try:
            graph = Graph(content, INPUT, OUTPUT)
            rows = graph.run(np.linspace(0, 1, 96, dtype=np.float32).reshape(3, *INPUT))
        except BundleError:
            return True  # what ONNX Runtime refuses, by its rules of types, does no harm
        assert rows.shape == (3, *OUTPUT)
        assert SECRET not in rows.tobytes()
    return True


@contextlib.contextmanager
def inside_a_folder_with_a_secret():
    """Where a graph that reads files would find one."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "token").write_bytes(SECRET)
    before = Path.cwd()
    os.chdir(FOLDER)
    try:
        yield
    finally:
        os.chdir(before)


class Graphs(Target):
    """`splitveil.bundle.Graph`, and its check before it."""

    def seeds(self) -> Sequence[bytes]:
        return seeds()

    def case(self, rng: random.Random) -> bytes:
        return case(rng)

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        try:
            model = parts(data, MODEL)
        except (IndexError, KeyError):  # no longer a message
            return change_bytes(data, rng)
        mutate(model, rng)
        return joined(model)

    def check(self, data: bytes) -> None:
        check(data)
