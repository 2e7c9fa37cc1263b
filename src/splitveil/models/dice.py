"""Operations of a model that draw random numbers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


def generator_states() -> tuple[bytes, ...]:
    """Where torch's generators of random numbers stand; other states mean that something was drawn."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states.append(torch.cuda.get_rng_state())
    return tuple(state.numpy().tobytes() for state in states)


def drawing_operation(run: Callable[[], object]) -> str:
    """The name of the first operation in ``run`` that draws random numbers."""
    calls = _Calls()
    drawing = _Drawing(calls)
    # Only where something was drawn, because these modes load a compiler, which takes more than a second.
    with calls, drawing:
        run()
    return drawing.found[0] if drawing.found else "torch's generator"


def draws(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation of ATen, with these arguments, draws random numbers."""
    if not isinstance(function, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in function.tags:
        return False
    names = [argument.name for argument in function._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if any(given.get(name) is False for name in ("train", "training")):
        return False
    # Attention and recurrent layers draw for their dropout alone, and rrelu in training.
    shares = [name for name in ("dropout_p", "dropout") if name in names]
    return all(given.get(name, 0.0) != 0.0 for name in shares) and ("training" not in names or "training" in given)


def drawing_nodes(module: fx.GraphModule) -> list[str]:
    """Names of the operations in a graph of ATen's, and in the graphs within it, that draw random numbers."""
    graphs = [inner.graph for inner in module.modules() if isinstance(inner, fx.GraphModule)]
    nodes = [node for graph in graphs for node in graph.nodes if node.op == "call_function"]
    return [_name(node.target) for node in nodes if draws(node.target, node.args, node.kwargs)]


def _name(function: Any) -> str:
    if isinstance(function, torch._ops.OpOverload):
        return function._schema.name.rpartition("::")[2].rstrip("_")
    return str(getattr(function, "__name__", function)).rstrip("_")


class _Calls(TorchFunctionMode):
    """Remembers what torch was last asked for by the model's own code, such as ``dropout``."""

    current: str | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        self.current = _name(func)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.current = None


class _Drawing(TorchDispatchMode):
    """Notes the operations that draw."""

    def __init__(self, calls: _Calls) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls = calls
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        if draws(func, args, kwargs or {}):
            self.found.append(self._calls.current or _name(func))
        return func(*args, **(kwargs or {}))
