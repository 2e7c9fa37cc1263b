"""A graph as its file has it: operators, constants, one input and one output; nothing else is taken."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitveil.bundle.memory import Content
from splitveil.bundle.onnx.call import DTYPES, MOST_AXES
from splitveil.bundle.onnx.operators import OPERATORS, Kind
from splitveil.bundle.onnx.protobuf import BYTES, FLOAT, INT, TEXT, Field, Schema, read
from splitveil.errors import GraphError

LARGEST_GRAPH = 2**31 - 1  # bytes; Protocol Buffers have no longer messages
OPSETS = (17, 18)
"""Versions of the operators. 18 is what `splitveil export` writes; 17 differs in a few, which are then refused."""
IR_VERSIONS = range(8, 11)  # of the file format: those of these opsets, up to the one that the exporter writes
MOST_NODES = 20_000  # that ONNX Runtime optimises within seconds; the largest vision transformers have 3,000
FLOAT32 = 1

# The fields that the exporter writes, by their numbers in onnx.proto. All others are refused; texts say why.
_ELSEWHERE = "it refers to data in another file, which a bundle must not"
_SUBGRAPH = "it has a subgraph, which could run for ever"
_FUNCTION = "it has functions, which a bundle must not"
_SPARSE = "it has a sparse tensor, which a bundle must not"
_TENSOR: Schema = {
    1: Field("dims", INT, repeated=True), 2: Field("data_type", INT, required=True), 8: Field("name", TEXT),
    9: Field("raw_data", BYTES, required=True), 13: _ELSEWHERE, 14: _ELSEWHERE,
}  # fmt: skip
_ATTRIBUTE: Schema = {
    1: Field("name", TEXT, required=True), 2: Field("f", FLOAT), 3: Field("i", INT), 4: Field("s", BYTES),
    5: Field("t", _TENSOR), 7: Field("floats", FLOAT, repeated=True), 8: Field("ints", INT, repeated=True),
    9: Field("strings", BYTES, repeated=True), 20: Field("type", INT, required=True),
    6: _SUBGRAPH, 11: _SUBGRAPH, 21: _FUNCTION, 22: _SPARSE, 23: _SPARSE,
}  # fmt: skip
_NODE: Schema = {
    1: Field("input", TEXT, repeated=True), 2: Field("output", TEXT, repeated=True, required=True),
    3: Field("name", TEXT), 4: Field("op_type", TEXT, required=True), 5: Field("attribute", _ATTRIBUTE, repeated=True),
}  # fmt: skip
_DIMENSION: Schema = {1: Field("dim_value", INT), 2: Field("dim_param", TEXT)}
_SHAPE: Schema = {1: Field("dim", _DIMENSION, repeated=True)}
_TENSOR_TYPE: Schema = {1: Field("elem_type", INT, required=True), 2: Field("shape", _SHAPE, required=True)}
_VALUE: Schema = {
    1: Field("name", TEXT, required=True),
    2: Field("type", {1: Field("tensor_type", _TENSOR_TYPE, required=True)}, required=True),
}
_GRAPH: Schema = {
    1: Field("node", _NODE, repeated=True, required=True), 2: Field("name", TEXT, required=True),
    5: Field("initializer", _TENSOR, repeated=True), 11: Field("input", _VALUE, repeated=True),
    12: Field("output", _VALUE, repeated=True), 15: _SPARSE,
}  # fmt: skip
_OPSET: Schema = {1: Field("domain", TEXT), 2: Field("version", INT, required=True)}
_MODEL: Schema = {
    1: Field("ir_version", INT, required=True), 2: Field("producer_name", TEXT), 3: Field("producer_version", TEXT),
    7: Field("graph", _GRAPH, required=True), 8: Field("opset_import", _OPSET, repeated=True, required=True),
    25: _FUNCTION,
}  # fmt: skip

Attribute = float | int | str | list[float] | list[int] | list[str] | NDArray[Any]
# The field of each kind of an attribute, and its number under `type`.
_FIELDS: Mapping[Kind, tuple[str, int]] = {
    Kind.FLOAT: ("f", 1), Kind.INT: ("i", 2), Kind.STRING: ("s", 3), Kind.TENSOR: ("t", 4), Kind.FLOATS: ("floats", 6),
    Kind.INTS: ("ints", 7), Kind.STRINGS: ("strings", 8),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Node:
    """One operation: its place in the file, and names of what it takes and gives, "" where something is left out."""

    place: str
    operator: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True, slots=True)
class Model:
    """A graph whose values are all defined exactly once, before they are used.

    Attributes:
        constants: by name; views of the file's bytes.
        nodes: in the order of the file.
        input, output: their names.
    """

    constants: Mapping[str, NDArray[Any]]
    nodes: Sequence[Node]
    input: str
    output: str


def read_model(content: Content, inside: Sequence[int], outside: Sequence[int]) -> Model:
    """The graph in a file.

    Args:
        content: of the file.
        inside, outside: shapes of one row of its input and of its output, both float32.

    Raises:
        GraphError: it has something that `splitveil export` does not write, or other shapes.
    """
    if len(content) > LARGEST_GRAPH:
        raise GraphError("file", f"it has {len(content)} bytes, and at most {LARGEST_GRAPH} are read")
    found = read(_MODEL, content, "model")
    if found["ir_version"] not in IR_VERSIONS:
        raise GraphError("model.ir_version", f"it is {found['ir_version']}, not {IR_VERSIONS[0]} to {IR_VERSIONS[-1]}")
    opsets = [(opset.get("domain", ""), opset["version"]) for opset in found["opset_import"]]
    if opsets not in [[("", version)] for version in OPSETS]:
        raise GraphError("model.opset_import", f"it is not one of ONNX's own opsets {' and '.join(map(str, OPSETS))}")
    graph = found["graph"]
    if len(graph["node"]) > MOST_NODES:
        raise GraphError("model.graph.node", f"there are {len(graph['node'])}, and at most {MOST_NODES} are run")
    source = _end(graph["input"], inside, "model.graph.input")
    target = _end(graph["output"], outside, "model.graph.output")
    constants: dict[str, NDArray[Any]] = {}
    for index, tensor in enumerate(graph["initializer"]):
        place, name = f"model.graph.initializer[{index}]", tensor.get("name", "")
        if not name or name in constants or name == source:
            raise GraphError(place, f"its name {name!r} is empty or taken")
        constants[name] = _array(tensor, place)
    nodes = [_node(node, opsets[0][1], f"model.graph.node[{index}]") for index, node in enumerate(graph["node"])]
    _check_names(nodes, {source, *constants}, target)
    return Model(constants, nodes, source, target)


def _end(values: Sequence[dict[str, Any]], row: Sequence[int], place: str) -> str:
    """The name of a graph's input or output."""
    if len(values) != 1:
        raise GraphError(place, f"there are {len(values)}, not one")
    tensor = values[0]["type"]["tensor_type"]
    dims = tensor["shape"]["dim"]
    shape = tuple(dim.get("dim_value", "batch") for dim in dims)
    if any(len(dim) != 1 for dim in dims) or tensor["elem_type"] != FLOAT32 or shape != ("batch", *row):
        given, wanted = (", ".join(map(str, lengths)) for lengths in (shape, ("batch", *row)))
        raise GraphError(place, f"it is not what its bundle says it is, float32 of ({wanted}), but of ({given})")
    if not values[0]["name"]:
        raise GraphError(place, "it has no name")
    return str(values[0]["name"])


def _array(tensor: dict[str, Any], place: str) -> NDArray[Any]:
    dims, kind, data = tensor["dims"], DTYPES.get(tensor["data_type"]), tensor["raw_data"]
    if kind is None:
        raise GraphError(place, f"a tensor of type {tensor['data_type']} is not written")
    if len(dims) > MOST_AXES or any(dim < 0 for dim in dims):
        raise GraphError(place, f"a tensor has no shape {dims[:20]}")
    if math.prod(dims) * np.dtype(kind).itemsize != len(data):
        raise GraphError(place, f"{len(data)} bytes are no tensor of shape {dims} and type {np.dtype(kind)}")
    if kind == "|b1" and any(byte > 1 for byte in data):
        raise GraphError(place, "a truth value is neither 0 nor 1")
    return np.frombuffer(data, kind).reshape(dims)


def _node(node: dict[str, Any], opset: int, place: str) -> Node:
    name = node["op_type"]
    operator = OPERATORS.get(name)
    if operator is None or opset < operator.since:
        raise GraphError(place, f"the operator {name} of opset {opset} is not among those that a bundle may hold")
    for what, (least, most) in (("input", operator.inputs), ("output", operator.outputs)):
        if not least <= len(node[what]) <= most:
            raise GraphError(f"{place}.{what}", f"{name} has {least} to {most}, not {len(node[what])}")
    if any(not given for given in node["input"][: operator.inputs[0]]):
        raise GraphError(f"{place}.input", f"{name} lacks one that it needs")
    attributes: dict[str, Attribute] = {}
    for index, given in enumerate(node["attribute"]):
        inner, key = f"{place}.attribute[{index}]", given["name"]
        if key in attributes or key not in operator.attributes:
            raise GraphError(inner, f"{name} has no attribute {key!r}, or it stands twice")
        attributes[key] = _attribute(given, operator.attributes[key], inner)
    if missing := operator.required - attributes.keys():
        raise GraphError(place, f"{name} lacks its attribute {sorted(missing)[0]}")
    return Node(place, name, node["input"], node["output"], attributes)


def _attribute(given: dict[str, Any], kind: Kind, place: str) -> Attribute:
    field, number = _FIELDS[kind]
    filled = {key for key, value in given.items() if key not in ("name", "type") and value != []}
    if given["type"] != number or not filled <= {field} or field not in given:
        raise GraphError(place, f"it is not of the type {kind.value}, or has values of several types")
    value = given[field]
    if kind is Kind.TENSOR:
        return _array(value, f"{place}.t")
    if kind in (Kind.STRING, Kind.STRINGS):
        texts = [_word(word, place) for word in ([value] if kind is Kind.STRING else value)]
        return texts[0] if kind is Kind.STRING else texts
    return value  # type: ignore[no-any-return]


def _word(word: memoryview, place: str) -> str:
    if len(word) > 100 or not all(32 <= byte < 127 for byte in word):
        raise GraphError(place, "a word has more than 100 letters, or other letters than ASCII's")
    return str(word, "ascii")


def _check_names(nodes: Sequence[Node], defined: set[str], target: str) -> None:
    made: set[str] = set()
    for node in nodes:
        for name in node.inputs:
            if name and name not in defined:
                raise GraphError(node.place, f"its input {name!r} is not defined before it")
        for name in node.outputs:
            if name in defined:
                raise GraphError(node.place, f"its output {name!r} is defined twice")
            if name:
                made.add(name)
                defined.add(name)
        if not any(node.outputs):
            raise GraphError(node.place, "it has no output with a name")
    if target not in made:
        raise GraphError("model.graph.output", f"no node gives {target!r}")
