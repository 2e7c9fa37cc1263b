"""A model cut in two at one tensor: the client's half, the server's half, and the server's first linear map."""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy

import torch
from torch import Tensor, fx, nn

from splitveil.errors import NoLinearLayerError, ShapeError, SplitError
from splitveil.message import Obfuscator

LinearLayer = nn.Linear | nn.Conv2d
_ATEN = torch.ops.aten  # the operations that models from torch.export consist of


class SplitModel:
    """A model cut at the input of one of its layers, and put into evaluation mode.

         x ─► client ─► z ═╪═► server ─► logits          server(client(x)) equals model(x), bit for bit

    Both halves share their parameters with ``model``, so later training shows in them.

    Args:
        model: any module with one tensor in and one tensor out that ``torch.fx`` can trace, or `load_exported` gave.
        at: the paper's number of a cut (1 to 6 for `Table1Net`; layer i's *input* crosses), or a module's name.

    Raises:
        SplitError: there is no such place, the model cannot be traced, or not exactly one tensor crosses there
            (the message names those that do).
    """

    def __init__(self, model: nn.Module, at: int | str) -> None:
        self.model = model.eval()
        self.at = at
        self.layer_name = layer_name(model, at)
        graph = _trace(model)
        self._cut = _cut_node(graph, self.layer_name)
        below = _ancestors(self._cut)
        _require_one_crossing(graph, self._cut, below, at)
        self.client = _client(model, graph, self._cut, below)
        self.server = _above(model, graph, [self._cut])

    @property
    def server_layer(self) -> LinearLayer | tuple[LinearLayer, ...]:
        """The linear layer that reads the feature; a tuple where several do (their matrices are to be stacked).

        Raises:
            NoLinearLayerError: the feature also goes on by a path that is not linear or is the identity.
        """
        layers = tuple(self._layer(node) for node in self._readers())
        return layers[0] if len(layers) == 1 else layers

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def resume(self, outputs: tuple[Tensor, ...]) -> Tensor:
        """Logits from the outputs of `server_layer` without their biases, one tensor per layer.

        This is the way on for a message that yields the layer's pre-activation but no feature (patch operator).
        """
        readers = self._readers()
        if len(outputs) != len(readers):
            raise ShapeError(f"the server's first map has {len(readers)} layers, but {len(outputs)} outputs came")
        # Contiguous as the layer's own output, since a model's code may view() it.
        biased = [_add_bias(self._layer(node), y).contiguous() for node, y in zip(readers, outputs, strict=True)]
        return _above(self.server, self.server.graph, readers)(*biased)  # type: ignore[no-any-return]

    def answer(self, veil: Obfuscator, message: Tensor) -> Tensor:
        """Logits (B, n_classes) from an obfuscated message (B, *veil.message.shape), for any operator."""
        if veil.message.carries == "pre-activation":
            return self.resume(veil.finish(message))
        return self.server(veil.decode(message))  # type: ignore[no-any-return]

    def _layer(self, node: fx.Node) -> LinearLayer:
        layer = self.server.get_submodule(str(node.target))
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        return layer

    def _readers(self) -> list[fx.Node]:
        """The server's nodes that read z, looking through reshapes and what evaluation mode turns off."""
        place = f"the feature at {self.at!r}"
        pending = list(next(iter(self.server.graph.nodes)).users)
        readers: list[fx.Node] = []
        while pending:
            node = pending.pop(0)
            module = self.server.get_submodule(str(node.target)) if node.op == "call_module" else None
            if isinstance(module, nn.Linear | nn.Conv2d):
                readers.append(node)
            elif _is_transparent(node, module):
                pending.extend(node.users)
            elif _asks_shape(node):
                continue
            else:
                kind = type(module).__name__ if module else node.name
                raise NoLinearLayerError(
                    f"{place} goes into {kind!r}, which is not a fully connected or convolutional layer (an "
                    "activation, a normalisation, or a residual connection that passes it on whole), so there is "
                    "no null space here; cut at the input of a linear layer instead"
                )
        if not readers:
            raise NoLinearLayerError(f"{place} is the model's output: no layer of the server reads it")
        return readers


def possible_cuts(model: nn.Module) -> list[str]:
    """Names of the modules at whose input the model can be cut, from the input on; one name for each tensor.

    Raises:
        SplitError: the model cannot be traced.
    """
    graph = _trace(model)
    order = {node: place for place, node in enumerate(graph.nodes)}
    found: dict[int, str] = {}
    for name in _module_names(model):
        try:
            cut = _cut_node(graph, name)
            _require_one_crossing(graph, cut, _ancestors(cut), name)
        except SplitError:
            continue
        found.setdefault(order[cut], name)
    return [found[place] for place in sorted(found)]


def layer_name(model: nn.Module, at: int | str) -> str:
    """The module's name that a cut's number or name stands for; digits in a string count as a number.

    Raises:
        SplitError: the number or the name does not exist; the message lists what does.
    """
    names = _module_names(model)
    if isinstance(at, str) and (at in names or at in _operation_names(model)):
        return at
    if isinstance(at, str) and not at.isdecimal():
        raise SplitError(f"the model has no module {at!r}; choose one of: {', '.join(possible_cuts(model))}")
    points = tuple(getattr(model, "cut_points", ()))
    if not points:
        raise SplitError(
            f"{type(model).__name__} has no numbered cuts; give a module's name: {', '.join(possible_cuts(model))}"
        )
    if not 1 <= int(at) <= len(points):
        raise SplitError(f"there is no cut {at}: {type(model).__name__} has cuts 1 to {len(points)}")
    return str(points[int(at) - 1])


def _module_names(model: nn.Module) -> list[str]:
    names = [name for name, _ in model.named_modules() if name]
    if isinstance(model, fx.GraphModule):
        # Modules without parameters are no more than a note on what was traced.
        traced = [path for node in model.graph.nodes for path in _module_paths(node)]
        names = list(dict.fromkeys([*traced, *names]))
    return names


def _module_paths(node: fx.Node) -> list[str]:
    """The modules, from the outermost in, that a node was traced in."""
    stack = node.meta.get("nn_module_stack") or {}
    return [path for path, _ in stack.values() if path and not path.startswith("_empty_nn_module_stack")]


def _operation_names(model: nn.Module) -> list[str]:
    return [node.name for node in model.graph.nodes] if isinstance(model, fx.GraphModule) else []


def _trace(model: nn.Module) -> fx.Graph:
    try:
        # What is a graph already is taken as it is, since tracing it again would lose the modules' names.
        graph = deepcopy(model.graph) if isinstance(model, fx.GraphModule) else fx.Tracer().trace(model)
    except Exception as error:  # torch.fx raises whatever the traced code does
        raise SplitError(
            f"torch.fx cannot trace {type(model).__name__} ({error}); "
            "a model to be cut must not branch on the values of its input"
        ) from error
    live = _ancestors(_output(graph))
    for node in reversed(graph.nodes):
        if node not in live and node.op != "placeholder":
            graph.erase_node(node)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise SplitError(f"a model to be cut takes one tensor, but {type(model).__name__} takes {len(inputs)}")
    return graph


def _cut_node(graph: fx.Graph, name: str) -> fx.Node:
    """The one tensor that enters the module ``name``."""
    inside = [node for node in graph.nodes if _is_within(node, name)] or [n for n in graph.nodes if n.name == name]
    if not inside:
        raise SplitError(f"the model never calls {name!r}, so nothing can be cut there")
    if len([node for node in inside if node.op == "call_module" and node.target == name]) > 1:
        raise SplitError(f"the model calls {name!r} more than once, so a cut there is ambiguous; choose another")
    from_input = _descendants(node for node in graph.nodes if node.op == "placeholder")
    entering: list[fx.Node] = list(
        dict.fromkeys(
            source for node in inside for source in node.all_input_nodes
            if source in from_input and source not in inside
        )
    )  # fmt: skip
    if len(entering) != 1:
        raise SplitError(f"{len(entering)} tensors enter {name!r}: {_names(entering)}; cut where exactly one crosses")
    return entering[0]


def _is_within(node: fx.Node, name: str) -> bool:
    return name in _module_paths(node) or (node.op == "call_module" and str(node.target) == name)


def _require_one_crossing(graph: fx.Graph, cut: fx.Node, below: set[fx.Node], at: int | str) -> None:
    from_input = _descendants(node for node in graph.nodes if node.op == "placeholder")
    crossing = [
        node for node in graph.nodes
        if node in below and node in from_input and any(user not in below for user in node.users)
    ]  # fmt: skip
    if crossing != [cut]:
        raise SplitError(
            f"{len(crossing)} tensors cross a cut at {at!r}: {_names(crossing)}; cut where exactly one does"
        )


def _names(nodes: Iterable[fx.Node]) -> str:
    return ", ".join(repr(node.name) for node in nodes)


def _closure(start: Iterable[fx.Node], neighbours: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    seen: set[fx.Node] = set()
    pending = list(start)
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending.extend(neighbours(node))
    return seen


def _output(graph: fx.Graph) -> fx.Node:
    output: fx.Node = next(node for node in graph.nodes if node.op == "output")
    return output


def _ancestors(node: fx.Node, stop: Sequence[fx.Node] = ()) -> set[fx.Node]:
    return _closure([node], lambda n: () if n in stop else n.all_input_nodes)


def _descendants(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    return _closure(nodes, lambda n: n.users)


def _client(model: nn.Module, graph: fx.Graph, cut: fx.Node, below: set[fx.Node]) -> fx.GraphModule:
    half = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in below:
            copies[node] = half.node_copy(node, lambda n: copies[n])
    half.output(copies[cut])
    return fx.GraphModule(model, half)


def _above(root: nn.Module, graph: fx.Graph, cuts: list[fx.Node]) -> fx.GraphModule:
    """What makes the output of the values at ``cuts``, which become its inputs in this order."""
    half = fx.Graph()
    copies = {node: half.placeholder(f"z{index}") for index, node in enumerate(cuts)}
    # What does not depend on the image (parameters read directly) may stand on both sides.
    needed = _ancestors(_output(graph), stop=cuts)
    for node in graph.nodes:
        if node in needed and node not in copies:
            copies[node] = half.node_copy(node, lambda n: copies[n])
    return fx.GraphModule(root, half)


def _is_transparent(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node only reshapes (B, …) to (B, n), or does nothing in evaluation mode."""
    if module is not None:
        is_flatten = isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1
        return is_flatten or isinstance(module, nn.Identity | nn.Dropout | nn.Dropout2d)
    if node.target in (torch.flatten, "flatten", _ATEN.flatten.using_ints):
        arguments = [*node.args[1:], *node.kwargs.values()]
        return arguments == [1] or arguments == [1, -1]
    if node.target in ("view", "reshape", torch.reshape, _ATEN.view.default, _ATEN.reshape.default):
        shape = node.args[1:] if len(node.args) > 2 else node.args[-1]
        return isinstance(shape, tuple | list) and len(shape) == 2 and bool(shape[1] == -1)
    return bool(node.target in (nn.functional.dropout, "contiguous", _ATEN.dropout.default))


def _asks_shape(node: fx.Node) -> bool:
    """Whether a node reads a tensor's shape and none of its content."""
    return node.target in ("size", _ATEN.sym_size.int) or (node.target is getattr and node.args[1] == "shape")


def _add_bias(layer: LinearLayer, y: Tensor) -> Tensor:
    if layer.bias is None:
        return y
    return y + (layer.bias if isinstance(layer, nn.Linear) else layer.bias[:, None, None])
