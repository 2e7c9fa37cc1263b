"""Which operations of a graph change a tensor in place, and what has to run before what because of that.

A graph of torch.fx orders operations by the values that they pass on. An operation that changes a tensor in place
also stands in an order with all that read the tensor, or a view of it, before and after:

     conv ──► relu_(conv)          the result of relu_ is unused, but mid reads conv *after* relu_
        └───────────────► mid

Whether two tensors may share memory is judged without running the model, and in doubt they do: that orders more than
need be, and never less.
"""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import fx, nn

from splitveil.split.tracing import IN_PLACE, is_size

# Composite operations whose result is always new; others may hand their input on, as dropout does in evaluation.
_NEW = {
    "linear", "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "matmul", "softmax",
    "log_softmax", "layer_norm", "group_norm", "batch_norm", "instance_norm", "rms_norm", "max_pool1d", "max_pool2d",
    "avg_pool1d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "relu6", "selu", "square",
    "scaled_dot_product_attention", "std", "var", "multiply", "divide", "true_divide", "subtract", "concat",
    "concatenate", "interpolate", "normalize",
}  # fmt: skip
_NEW_OPERATORS = {"add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "neg", "invert", "eq", "ne", "lt",
                  "le", "gt", "ge", "and_", "or_", "xor"}  # fmt: skip
_NEW_MODULES = {
    f"torch.nn.modules.{home}"
    for home in ("conv", "batchnorm", "instancenorm", "normalization", "pooling", "activation", "rnn", "sparse")
}
_HARMLESS = {"requires_grad_", "share_memory_"}


@dataclass(frozen=True)
class Effects:
    """What runs before what because of changes in place.

    Attributes:
        after: for each node, those that changed what it reads or changes; they run before it.
        before: for each node that changes something, those that read it unchanged; they run before it.
        changed: for each node, the groups of tensors, which may share memory, that it changes.
        group: of each node's result.
    """

    after: dict[fx.Node, list[fx.Node]] = field(default_factory=lambda: defaultdict(list))
    before: dict[fx.Node, list[fx.Node]] = field(default_factory=lambda: defaultdict(list))
    changed: dict[fx.Node, set[fx.Node]] = field(default_factory=lambda: defaultdict(set))
    group: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def sources(self, node: fx.Node) -> Iterator[fx.Node]:
        """All nodes that run before ``node`` and matter to it."""
        yield from node.all_input_nodes
        yield from self.after.get(node, ())
        yield from self.before.get(node, ())


def effects_of(graph: fx.Graph, find: Callable[[str], Any]) -> Effects:
    """The effects in a graph; ``find`` gives the module or tensor of a name."""
    nodes = list(graph.nodes)
    writes = {node: found for node in nodes if (found := list(_written(node, find)))}
    if not writes:
        return Effects()
    groups = _Groups()
    named: dict[Any, fx.Node] = {}
    for node in nodes:
        for other in _shared(node, find):
            groups.join(node, other)
        if node.op == "get_attr":
            groups.join(node, named.setdefault(node.target, node))
    effects = Effects(group={node: groups.of(node) for node in nodes})
    for node, targets in writes.items():
        effects.changed[node] = {groups.of(target) for target in targets}
    changed = set().union(*effects.changed.values())
    last: dict[fx.Node, fx.Node] = {}
    readers: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node in nodes:
        written = effects.changed.get(node, set())
        for group in ({groups.of(source) for source in node.all_input_nodes} | written) & changed:
            if group in last:
                effects.after[node].append(last[group])
            if group in written:
                effects.before[node] += readers.pop(group, [])
                last[group] = node
            else:
                readers[group].append(node)
    return effects


def protect(graph: fx.Graph, find: Callable[[str], Any]) -> None:
    """Let a graph change copies of its inputs and of the model's own tensors, so that each call begins alike."""
    effects = effects_of(graph, find)
    changed = set().union(*effects.changed.values())
    first: dict[str, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op not in ("placeholder", "get_attr") or effects.group.get(node) not in changed:
            continue
        if node.op == "get_attr" and not isinstance(find(str(node.target)), torch.Tensor):
            continue
        key = str(node.target) if node.op == "get_attr" else node.name
        if key in first:
            node.replace_all_uses_with(first[key])
            graph.erase_node(node)
            continue
        with graph.inserting_after(node):
            first[key] = graph.call_method("clone", (node,))
        node.replace_all_uses_with(first[key], delete_user_cb=lambda user, key=key: user is not first[key])


class _Groups:
    """Sets of nodes whose results may share memory."""

    def __init__(self) -> None:
        self._parent: dict[fx.Node, fx.Node] = {}

    def of(self, node: fx.Node) -> fx.Node:
        while (parent := self._parent.get(node, node)) is not node:
            node = parent
        return node

    def join(self, a: fx.Node, b: fx.Node) -> None:
        self._parent[self.of(a)] = self.of(b)


def _nodes_in(argument: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(argument, lambda node: found.append(node))
    return found


def _written(node: fx.Node, find: Callable[[str], Any]) -> Iterator[fx.Node]:
    """The nodes whose results ``node`` may change."""
    if node.op in ("placeholder", "get_attr", "output") or is_size(node):
        return
    yield from _nodes_in(node.kwargs.get("out"))
    if node.op == "call_module":
        if _changes_its_input(find(str(node.target))):
            yield from node.all_input_nodes
    elif isinstance(node.target, torch._ops.OpOverload):
        for schema, value in _arguments(node):
            if schema.alias_info is not None and schema.alias_info.is_write:
                yield from _nodes_in(value)
    elif isinstance(node.target, torch._ops.HigherOrderOperator):
        if any(_holds_changes(find(str(n.target))) for n in node.all_input_nodes if n.op == "get_attr"):
            yield from node.all_input_nodes
    elif _changes_its_first(node):
        yield from _nodes_in(node.args[:1] or tuple(node.kwargs.values()))
    elif node.op == "call_function" and not _is_torchs(node.target):
        yield from node.all_input_nodes  # a function of the user's own, which may do anything


def _changes_its_input(module: nn.Module) -> bool:
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return (
        bool(getattr(module, "inplace", False))
        or not type(module).__module__.startswith("torch.")
        or any(not str(getattr(hook, "__module__", "")).startswith("torch.") for hook in hooks)
    )


def _holds_changes(module: Any) -> bool:
    """Whether a graph within a graph (as torch.export makes of ``torch.no_grad``) changes anything."""
    if not isinstance(module, fx.GraphModule):
        return False
    return any(list(_written(node, module.get_submodule)) for node in module.graph.nodes if node.op != "call_module")


def _changes_its_first(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name.startswith("__") or getattr(node.target, "__module__", "") == "_operator":
        return name.strip("_") in (*IN_PLACE, "setitem")
    return (name.endswith("_") and name not in _HARMLESS) or _is_asked_to(node)


def _is_asked_to(node: fx.Node) -> bool:
    """Whether a function is called with ``inplace=True``."""
    if "inplace" in node.kwargs:
        return bool(node.kwargs["inplace"])
    position = _place_of_inplace(node.target) if node.op == "call_function" else None
    return position is not None and position < len(node.args) and bool(node.args[position])


@cache
def _place_of_inplace(function: Any) -> int | None:
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("inplace") if "inplace" in names else None


def _is_torchs(function: Any) -> bool:
    home = str(getattr(function, "__module__", None) or "torch")  # built-in functions of torch have no module
    return home.partition(".")[0] in ("torch", "_operator", "builtins", "math")


def _shared(node: fx.Node, find: Callable[[str], Any]) -> Iterable[fx.Node]:
    """The nodes whose memory the result of ``node`` may share."""
    if node.op in ("placeholder", "get_attr", "output") or is_size(node):
        return ()
    if node.op == "call_module":
        return node.all_input_nodes if _may_hand_on(find(str(node.target))) else ()
    if isinstance(node.target, torch._ops.OpOverload):
        if any(result.alias_info for result in node.target._schema.returns):
            return [n for schema, value in _arguments(node) if schema.alias_info for n in _nodes_in(value)]
        return () if _is_new(node.target._schema.name.rpartition("::")[2]) else node.all_input_nodes
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if _changes_its_first(node) or "out" in node.kwargs:
        return node.all_input_nodes
    if getattr(node.target, "__module__", "") == "_operator":
        return () if name in _NEW_OPERATORS else node.all_input_nodes
    return () if _is_torchs(node.target) and _is_new(name.strip("_")) else node.all_input_nodes


def _may_hand_on(module: nn.Module) -> bool:
    homes = {kind.__module__ for kind in type(module).__mro__}
    is_new = isinstance(module, nn.Linear | nn.Bilinear) or bool(homes & _NEW_MODULES)
    return not is_new or _changes_its_input(module)


def _arguments(node: fx.Node) -> Iterator[tuple[Any, Any]]:
    """The declared arguments of an operation of ATen that were given, each with its value."""
    for index, schema in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if index < len(node.args):
            yield schema, node.args[index]
        elif schema.name in node.kwargs:
            yield schema, node.kwargs[schema.name]


@cache
def _is_new(name: str) -> bool:
    """Whether ATen's operations of a name always put their result into new memory."""
    if name in _NEW:
        return True
    packet: Any = getattr(torch.ops.aten, name, None)
    overloads = [getattr(packet, overload) for overload in packet.overloads()] if hasattr(packet, "overloads") else []
    plain = [op for op in overloads if not any(argument.is_out for argument in op._schema.arguments)]
    return bool(plain) and not any(
        any(result.alias_info for result in op._schema.returns) or _is_composite(op) for op in plain
    )


def _is_composite(operation: Any) -> bool:
    try:
        return bool(torch._C._dispatch_has_kernel_for_dispatch_key(operation.name(), "CompositeImplicitAutograd"))
    except RuntimeError:  # an overload of TorchScript's own, for numbers and lists
        return False
