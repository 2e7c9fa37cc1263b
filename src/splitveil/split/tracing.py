"""A model as a graph of operations, with all that it does on the way: hooks, changes in place, writes into slices.

The graph is torch.fx's. torch.export makes functional graphs, in which no operation changes a tensor, but it needs 2 to
12 seconds for a network that torch.fx traces in 0.03 (ResNet-18, MobileNetV3, ViT-B/16, Swin-T), replaces modules by
operations of evaluation mode, which cannot be trained, and hides linear layers behind reshapes of a fixed size. So
torch.fx traces, here with what it leaves out, `effects` orders what changes in place, and `checking` compares.
"""

import inspect
import operator
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from splitveil.errors import SplitError

_DEVICES = ("cpu", "cuda")  # whose autocast is watched: those that splitveil runs on
_SHAPE_METHODS = ("size", "dim", "numel", "ndimension", "nelement", "stride")
_SHAPE_ATTRIBUTES = ("shape", "ndim", "dtype", "device", "layout", "is_cuda")
_SHAPE_FUNCTIONS = (
    torch.numel, torch.ops.aten.sym_size.int, torch.ops.aten.sym_numel.default, torch.ops.aten.sym_stride.int,
    torch.ops.aten.dim.default,
)  # fmt: skip
IN_PLACE = (  # operators that change a tensor, by their names in `operator`
    "iadd", "isub", "imul", "imatmul", "itruediv", "ifloordiv", "imod", "ipow", "ilshift", "irshift", "iand", "ior",
    "ixor",
)  # fmt: skip
_ARITHMETIC_HOMES = ("_operator", "builtins", "math")


@dataclass(frozen=True)
class Traced:
    """A graph, and the objects that it names.

    Attributes:
        graph: one placeholder, and an output that is one node.
        model: what was traced.
        constants: tensors that the model made while it was traced, by name.
    """

    graph: fx.Graph
    model: nn.Module
    constants: dict[str, Any]

    def find(self, target: str) -> Any:
        """The module or tensor that a node names."""
        if target in self.constants:
            return self.constants[target]
        found: Any = self.model
        for part in target.split("."):
            found = getattr(found, part)
        return found


def trace(model: nn.Module) -> Traced:
    """A model's operations; raises `SplitError` where it is no function of one tensor that torch.fx can follow."""
    _require_plain(model)
    # What is a graph already is taken as it is, since tracing it again would lose the modules' names.
    traced = Traced(deepcopy(model.graph), model, {}) if isinstance(model, fx.GraphModule) else _followed(model)
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise SplitError(_takes(model, len(inputs)))
    answer = next(node for node in traced.graph.nodes if node.op == "output").args[0]
    if not isinstance(answer, fx.Node):
        raise SplitError(
            f"{type(model).__name__} answers with a {type(answer).__name__.removeprefix('immutable_')}; a model to be "
            "cut gives one tensor, so wrap it in a module that returns the logits alone"
        )
    return traced


def is_size(node: fx.Node) -> bool:
    """Whether a node reads no more of a tensor than its shape, type or device, or computes with such numbers only."""
    if "is_size" not in node.meta:
        node.meta["is_size"] = _is_size(node)
    return bool(node.meta["is_size"])


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Afterwards the model's attributes and buffers, and torch's random numbers, are as they were before."""
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    held = [(module.__dict__, dict(module.__dict__)) for module in modules]
    tables = [table for module in modules for table in (module._parameters, module._buffers, module._modules)]
    entries = [(table, dict(table)) for table in tables]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for live, saved in [*held, *entries]:
            live.clear()
            live.update(saved)
        with torch.no_grad():
            for buffer, saved_buffer in buffers:
                if not _same(buffer, saved_buffer):
                    buffer.copy_(saved_buffer)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _require_plain(model: nn.Module) -> None:
    name = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise SplitError(f"{name} is a TorchScript program, which has no inside to cut; give the module it was made of")
    for path, module in model.named_modules():
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel) and module.device_ids:
            raise SplitError(f"{path or name} spreads its batches over devices; give the module that it holds: .module")
        if "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None):
            raise SplitError(
                f"{path or name} was compiled by torch.compile, and its two parts would not answer as the whole to the "
                "last bit; give the module as it was before"
            )


def _takes(model: nn.Module, count: int) -> str:
    return (
        f"a model to be cut takes one tensor, but {type(model).__name__} takes {count}; "
        "wrap it in a module that takes the images alone"
    )


def _followed(model: nn.Module) -> Traced:
    required = _required_arguments(model)
    if required is not None and required != 1:
        raise SplitError(_takes(model, required))
    tracer = _Tracer()
    try:
        with undisturbed(model):
            for module in model.modules():
                # They act on gradients alone, and do not understand what stands for a tensor here.
                module.__dict__["_backward_hooks"] = OrderedDict()
            graph = tracer.trace(_Call(model))
    except SplitError:
        raise
    except Exception as error:  # torch.fx raises whatever the traced code does
        reason = " ".join(str(error).split())[:200]
        raise SplitError(
            f"torch.fx cannot trace {type(model).__name__} ({reason}); a model to be cut must not branch on the values "
            "of its input. torch.export follows more: save it as a .pt2 file, and name that (docs/own-model.md)"
        ) from error
    constants = {
        str(node.target): getattr(tracer.root, str(node.target))
        for node in graph.nodes
        if node.op == "get_attr" and hasattr(tracer.root, str(node.target))
    }
    return Traced(graph, model, constants)


def _required_arguments(model: nn.Module) -> int | None:
    try:
        parameters = inspect.signature(type(model).forward).parameters.values()
    except (TypeError, ValueError):
        return None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][1:]
    given = len([p for p in positional if p.default is p.empty])
    given += len([p for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty])
    return max(1, given) if positional or any(p.kind is p.VAR_POSITIONAL for p in parameters) else given


class _Call(nn.Module):
    """Calls a model, so that what surrounds its ``forward`` is traced: hooks, a ``__call__`` of its own, defaults."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


class _Tracer(fx.Tracer):
    """Names everything as the model does, and records changes in place."""

    def __init__(self) -> None:
        super().__init__()
        self._autocast = _autocast_state()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m is self.root.model or isinstance(m, nn.DataParallel):
            return False
        return isinstance(m, torch.jit.ScriptModule) or super().is_leaf_module(m, module_qualified_name)

    def path_of_module(self, mod: nn.Module) -> str:
        return _own_name(super().path_of_module(mod))

    def get_fresh_qualname(self, prefix: str) -> str:
        index = 0
        while any(hasattr(holder, f"{prefix}{index}") for holder in (self.root, self.root.model)):
            index += 1
        return f"{prefix}{index}"

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        if kind.startswith("call") and _autocast_state() != self._autocast:
            raise SplitError(
                f"{type(self.root.model).__name__} turns torch.autocast on inside, which torch.fx does not record; "
                "save the model as a .pt2 file, and name that (docs/own-model.md)"
            )
        return super().create_node(kind, _own_name(target) if kind == "get_attr" else target, *args, **kwargs)


def _own_name(name: str) -> str:
    """The model's name of what `_Call` holds as ``model.…``."""
    return "" if name == "model" else name.removeprefix("model.")


def _autocast_state() -> tuple[object, ...]:
    return tuple((torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in _DEVICES)


class _Proxy(fx.Proxy):
    """A tensor while the model is traced; ``x[i] = y`` and ``x += y`` change it, which torch.fx does not record."""

    def __getattr__(self, k: str) -> fx.proxy.Attribute:
        return _Attribute(self, k)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "data":
            raise TypeError("an assignment to the data of a tensor cannot be traced")
        super().__setattr__(name, value)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


class _Attribute(_Proxy, fx.proxy.Attribute):
    """An attribute of a tensor, or a method of it that is about to be called."""


def _in_place(name: str) -> Any:
    def method(self: _Proxy, other: Any) -> fx.Proxy:
        # Numbers do not change in place: `n += 1` gives n a new value.
        plain = {"iand": "and_", "ior": "or_"}.get(name, name.removeprefix("i"))
        target = getattr(operator, plain if is_size(self.node) else name)
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return method


for _name in IN_PLACE:
    setattr(_Proxy, f"__{_name}__", _in_place(_name))


def _is_size(node: fx.Node) -> bool:
    if node.op == "call_function" and node.target in _SHAPE_FUNCTIONS:
        return True
    if node.op == "call_method" and node.target in _SHAPE_METHODS:
        return True
    if node.target is getattr and node.args[1] in _SHAPE_ATTRIBUTES:
        return True
    sources = node.all_input_nodes
    if not sources or not all(is_size(source) for source in sources):
        return False
    if node.op == "call_function":
        is_symbolic = getattr(node.target, "__name__", "").startswith("sym_")  # torch.sym_max and its like
        return is_symbolic or getattr(node.target, "__module__", None) in _ARITHMETIC_HOMES
    return node.op == "call_method"
