"""Numbers that the server needs and the edge does not send: shapes of tensors on the client's side of a cut.

A model that asks for ``x.shape[0]`` early and uses it late would need that number to cross. It is worked out again on
the server: the length of the batch from the feature, all else from running the model on two batches of examples.
"""

from collections.abc import Sequence
from operator import floordiv, mul
from typing import Any

import torch
from torch import Tensor, fx

from splitveil.split.tracing import Traced, is_size, undisturbed

_LENGTHS = (2, 3)  # of two batches: what grows with the batch shows, and neither is a size of its own


class Sizes:
    """What the sizes in a graph are, found by running it where examples are at hand.

    Args:
        traced: the graph.
        examples: at least three inputs of the graph; None where their shape is unknown.
    """

    def __init__(self, traced: Traced, examples: Tensor | None) -> None:
        self._traced, self._examples = traced, examples
        self._seen: list[dict[str, Any]] | None = None

    def knows(self, node: fx.Node, cuts: Sequence[fx.Node]) -> bool:
        """Whether `again` can work out what ``node`` asks of a tensor."""
        probe = fx.Graph()
        copies = {cut: probe.placeholder(f"z{index}") for index, cut in enumerate(cuts)}
        return self.again(node, probe, copies) is not None

    def again(self, node: fx.Node, half: fx.Graph, cuts: dict[fx.Node, fx.Node]) -> Any:
        """The value of ``node`` as an argument in ``half``, worked out from the tensors that cross; None if unknown.

        Args:
            node: asks for a shape, a type or a device of a tensor that does not cross.
            half: where operations are added.
            cuts: the tensors that cross, with their stand-ins in ``half``.
        """
        original, stand_in = next(iter(cuts.items()))
        asked = node.args[1] if node.target is getattr else None
        if asked == "device" or (asked == "dtype" and self._examples is None):
            return half.call_function(getattr, (stand_in, asked))
        if self._examples is None:
            return self._length(node, half, stand_in)
        if self._seen is None:
            self._seen = [self._run(length) for length in _LENGTHS]
        values = [seen.get(node.name) for seen in self._seen]
        lengths = [seen[original.name][0] for seen in self._seen if len(seen.get(original.name, ())) > 0]
        return _derived(values, lengths, half, stand_in)

    def _length(self, node: fx.Node, half: fx.Graph, stand_in: fx.Node) -> Any:
        """Without examples: the first axis of any tensor is taken for the batch, which `SplitModel.verify` checks."""
        length = half.call_method("size", (stand_in, 0))
        if node.target in ("size", torch.ops.aten.sym_size.int) and node.args[1:] == (0,):
            return length
        asks_whole = node.target == "size" or (node.target is getattr and node.args[1] == "shape")
        if asks_whole and all(user.args[1:] == (0,) for user in node.users):
            return (length,)
        return None

    def _run(self, length: int) -> dict[str, Any]:
        assert self._examples is not None
        recorder = _Recorder(self._traced)
        with torch.no_grad(), undisturbed(self._traced.model):
            recorder.run(self._examples[:length].clone())
        return recorder.seen


class _Recorder(fx.Interpreter):
    """Runs a graph, and keeps the shapes of its tensors and the values of its sizes."""

    def __init__(self, traced: Traced) -> None:
        super().__init__(traced.model, graph=traced.graph)
        self._traced = traced
        self.seen: dict[str, Any] = {}

    def fetch_attr(self, target: str) -> Any:
        return self._traced.find(target)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.seen[n.name] = tuple(value.shape)
        elif is_size(n):
            self.seen[n.name] = value
        return value


def _derived(values: Sequence[Any], lengths: Sequence[int], half: fx.Graph, stand_in: fx.Node) -> Any:
    first, second = values
    if isinstance(first, tuple) and isinstance(second, tuple) and len(first) == len(second):
        parts = tuple(_derived(pair, lengths, half, stand_in) for pair in zip(first, second, strict=True))
        return None if None in parts else parts
    if first is not None and first == second:
        return first
    if type(first) is not int or type(second) is not int or len(lengths) != len(_LENGTHS):
        return None
    if first * _LENGTHS[1] != second * _LENGTHS[0] or lengths[0] * _LENGTHS[1] != lengths[1] * _LENGTHS[0]:
        return None
    length = half.call_method("size", (stand_in, 0))
    if first == lengths[0]:
        return length
    product = half.call_function(mul, (length, first))
    return half.call_function(floordiv, (product, lengths[0]))
