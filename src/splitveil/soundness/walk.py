"""Going through half a model operation by operation: what each gives, and which one does what it should not."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from splitveil.soundness.rows import ROUNDING, Dependence, apart, span

Seen = dict[fx.Node, list[Tensor]]


class Walk(fx.Interpreter):
    """Runs a graph, and shows each operation what it gave.

    Args:
        half: the graph.
        look: called with an operation and the tensors that it gave, before another one can change them.
    """

    def __init__(self, half: fx.GraphModule, look: Callable[[fx.Node, list[Tensor]], None]) -> None:
        super().__init__(half)
        self.extra_traceback = False  # else an error of ours gets a page of torch's appended
        self._look = look

    def run_node(self, n: fx.Node) -> Any:
        """The operation's value."""
        value = super().run_node(n)
        if n.op in ("call_module", "call_function", "call_method"):
            self._look(n, list(_tensors(value)))
        return value


@torch.no_grad()
def values_of(half: fx.GraphModule, x: Tensor) -> Seen:
    """Copies of all that the operations of a graph give for an input."""
    found: Seen = {}
    Walk(half, lambda node, values: found.update({node: [value.clone() for value in values]})).run(x.clone())
    return found


def culprit(half: nn.Module, found: Dependence) -> str | None:
    """The operation in half a model that makes a row's answer depend on others; None where it is not found."""
    if not isinstance(half, fx.GraphModule):
        return None
    one, other = values_of(half, found.one), values_of(half, found.other)
    lengths = len(found.one), len(found.other)
    for node, values in one.items():
        for a, b in zip(values, other.get(node, []), strict=False):
            if _differ(a, b, lengths, found.rows):
                return name_of(half, node)
    return None


def name_of(half: nn.Module, node: fx.Node) -> str:
    """An operation as its user knows it: the module with its kind, or the function and where it is called."""
    if node.op == "call_module":
        return f"{str(node.target)!r} ({type(half.get_submodule(str(node.target))).__name__})"
    function = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"{function}{place_of(node)}"


def place_of(node: fx.Node) -> str:
    """Where an operation is called, as a phrase to follow its name."""
    stack = [(path, kind) for path, kind in (node.meta.get("nn_module_stack") or {}).values() if path]
    if not stack:
        return ""
    path, kind = stack[-1]
    return f" in {path!r} ({(kind if isinstance(kind, str) else kind.__name__).rpartition('.')[2]})"


def _differ(a: Tensor, b: Tensor, lengths: tuple[int, int], rows: tuple[int, int]) -> bool:
    """Whether the part of a value that belongs to the row is not the same in both."""
    if a.dim() != b.dim():
        return True
    axes = [axis for axis in range(a.dim()) if a.shape[axis] * lengths[1] == b.shape[axis] * lengths[0]]
    if lengths[0] != lengths[1]:
        axes = [axis for axis in axes if a.shape[axis] != b.shape[axis]]
    if axes and all(a.shape[axis] == b.shape[axis] for axis in range(a.dim()) if axis != axes[0]):
        axis = next((each for each in axes if a.shape[each] == lengths[0]), axes[0])
        wide = a.shape[axis] // lengths[0]
        if wide:
            a, b = (value.narrow(axis, row * wide, wide) for value, row in zip((a, b), rows, strict=True))
    return apart(a, b, span(a)) > ROUNDING / 10


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)
