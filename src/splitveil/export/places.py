"""Where an exported graph leaves the model: the first operation that gives another value than torch."""

import ast
import re
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx

from splitveil.bundle.runtime import ort
from splitveil.export.graphs import Converted
from splitveil.soundness.rows import ROUNDING, apart, span
from splitveil.soundness.walk import values_of

_NODE = re.compile(r"Name:'([^']+)'")


def first_difference(converted: Converted, x: Tensor) -> str | None:
    """The operation with which the graph begins to differ from torch, on inputs (B, …); None where it is not found.

    Every value that goes by one name in both is compared, from the first to the last.
    """
    traced = converted.program.exported_program.module(check_guards=False)
    device = next((p.device for p in traced.parameters()), x.device)
    values = values_of(traced, x.to(device))
    expected = {node.name: (node, given[0].cpu()) for node, given in values.items() if given}
    graph = _copy(converted.program.model_proto)
    named = {name for node in graph.graph.node for name in node.output}
    there = [name for name in expected if name in named]
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in there)
    names = [*there, converted.program.model_proto.graph.output[0].name]
    found = dict(zip(names, _run(graph, names, x), strict=True))
    last = expected[list(expected)[-1]]
    for name in names:
        node, value = expected.get(name, last)
        if _differ(value, found[name]):
            return described(node)
    return None


def failing(converted: Converted, error: BaseException) -> str | None:
    """The operation that ONNX Runtime names where a graph does not run; None where it names none."""
    text = str(error.__cause__ or error)
    match = _NODE.search(text)
    nodes = {node.name: node for node in converted.program.model_proto.graph.node}
    if match is None or match[1] not in nodes:
        return None
    facts = {entry.key: entry.value for entry in nodes[match[1]].metadata_props}
    scopes = _list(facts.get("pkg.torch.onnx.name_scopes"))
    kinds = _list(facts.get("pkg.torch.onnx.class_hierarchy"))
    module = next((path for path in reversed(scopes[:-1]) if path), None)
    kind = kinds[-2].rpartition(".")[2] if len(kinds) > 1 else None
    operation = _operation(kinds[-1]) if kinds else nodes[match[1]].op_type
    return operation if module is None or kind is None else f"{operation} in {_outside(module)!r} ({kind})"


def fixing(converted: Converted) -> str | None:
    """The operation with which the length of a batch became fixed in torch's exporter; None where none did."""
    for node in converted.program.exported_program.graph.nodes:
        if node.op == "call_function" and _varies(node) is False and any(map(_varies, node.all_input_nodes)):
            return described(node)
    return None


def _varies(node: fx.Node) -> bool | None:
    """Whether the shape of what a node gives holds the length of the batch as a variable; None without tensors."""
    value = node.meta.get("val")
    tensors = [each for each in (value if isinstance(value, tuple | list) else [value]) if isinstance(each, Tensor)]
    return any(not isinstance(size, int) for each in tensors for size in each.shape) if tensors else None


def described(node: fx.Node) -> str:
    """An operation of torch.export's, with the layer that it is part of."""
    stack = [(path, kind) for path, kind in (node.meta.get("nn_module_stack") or {}).values() if path]
    operation = _operation(str(node.target))
    if not stack:
        return operation
    path, kind = stack[-1]
    return f"{operation} in {_outside(path)!r} ({str(kind if isinstance(kind, str) else kind.__name__).split('.')[-1]})"


def _outside(path: str) -> str:
    """A layer's name as the user knows it, without the half that it lies in."""
    return re.sub(r"^(client|server|split\.server)\.", "", path)


def _operation(target: str) -> str:
    return ".".join(target.split(".")[:2]) if target.startswith("aten.") else target


def _differ(torch_value: Tensor, value: np.ndarray[Any, Any]) -> bool:
    there = torch.from_numpy(np.asarray(value))
    if there.shape != torch_value.shape:
        return there.numel() == torch_value.numel()  # a view of another shape says nothing
    return apart(torch_value.double(), there.double(), span(torch_value.double())) > ROUNDING


def _run(graph: onnx.ModelProto, names: list[str], x: Tensor) -> list[np.ndarray[Any, Any]]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray[Any, Any]] = session.run(names, {graph.graph.input[0].name: x.cpu().numpy()})
    return found


def _copy(model: Any) -> onnx.ModelProto:
    copied: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    return copied


def _list(text: str | None) -> list[str]:
    try:
        found = ast.literal_eval(text or "[]")
    except (ValueError, SyntaxError):
        return []
    return [str(each) for each in found] if isinstance(found, list) else []
