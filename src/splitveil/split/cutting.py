"""Where a graph can be cut, and its parts before and after a cut."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from splitveil.errors import SplitError
from splitveil.models import declared_shape, sample_images
from splitveil.split.effects import Effects, effects_of, protect
from splitveil.split.sizes import Sizes
from splitveil.split.tracing import Traced, is_size, trace

_EXAMPLES = 7  # images to run a model on: the largest batch that is checked


@dataclass(frozen=True)
class Program:
    """A traced model without what its answer does not depend on.

    Attributes:
        traced: the graph, and what it names.
        effects: of changes in place.
        sizes: of its tensors.
        images: the nodes that depend on what the images show, and not on their shape alone.
    """

    traced: Traced
    effects: Effects
    sizes: Sizes
    images: frozenset[fx.Node]

    @classmethod
    def of(cls, traced: Traced, examples: Tensor | None) -> "Program":
        """A graph, less what does not matter to its output; ``examples`` are inputs, where their shape is known."""
        graph = traced.graph
        effects = effects_of(graph, traced.find)
        live = closure([output_of(graph)], effects.sources)
        for node in reversed(graph.nodes):
            if node not in live and node.op != "placeholder":
                graph.erase_node(node)
        users: dict[fx.Node, list[fx.Node]] = {node: list(node.users) for node in graph.nodes}
        for node in graph.nodes:
            for source in effects.after.get(node, ()):
                users[source].append(node)
        for node in graph.nodes:  # what is written into a tensor is in it, under every name that it has
            changed = effects.changed.get(node, ())
            users[node] += [other for other in graph.nodes if changed and effects.group[other] in changed]
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        images = closure(inputs, lambda node: (user for user in users[node] if not is_size(user)))
        return cls(traced, effects, Sizes(traced, examples), frozenset(images))


def program_of(model: nn.Module, examples: Tensor | None = None) -> Program:
    """A model, ready to be cut; raises `SplitError` where it cannot be traced."""
    return Program.of(trace(model), examples if examples is not None else examples_of(model))


def examples_of(model: nn.Module) -> Tensor | None:
    """Images (7, C, H, W) that a model takes, where it says their shape."""
    channels, height, width = declared_shape(model)
    if channels is None or height is None or width is None:
        return None
    return sample_images((channels, height, width), _EXAMPLES)


@dataclass(frozen=True)
class Cut:
    """One tensor that parts a program.

    Attributes:
        node: the tensor that crosses.
        before: the nodes that the client runs.
    """

    node: fx.Node
    before: set[fx.Node]

    @classmethod
    def at(cls, program: Program, name: str) -> "Cut":
        """The cut at the input of a module; raises `SplitError` where not exactly one tensor crosses there."""
        graph, effects = program.traced.graph, program.effects
        inside = [node for node in graph.nodes if _is_within(node, name)] or [n for n in graph.nodes if n.name == name]
        if not inside:
            raise SplitError(f"the model never calls {name!r}, so nothing can be cut there")
        if len([node for node in inside if node.op == "call_module" and node.target == name]) > 1:
            raise SplitError(f"the model calls {name!r} more than once, so a cut there is ambiguous; choose another")
        within = set(inside)
        entering = list(
            dict.fromkeys(
                source for node in inside for source in node.all_input_nodes
                if source in program.images and source not in within
            )
        )  # fmt: skip
        if len(entering) != 1:
            raise SplitError(
                f"{len(entering)} tensors enter {name!r}: {_names(entering)}; cut where exactly one crosses"
            )
        (node,) = entering
        # The tensor as the module finds it, with all that has changed it in place before.
        changes = [
            source for reader in inside if node in reader.all_input_nodes for source in effects.after.get(reader, ())
            if effects.group[node] in effects.changed[source] and source not in within
        ]  # fmt: skip
        cut = cls(node, closure([node, *changes], effects.sources))
        cut._require_one_crossing(program, name)
        return cut

    def _require_one_crossing(self, program: Program, name: str) -> None:
        effects, graph = program.effects, program.traced.graph
        crossing = [
            node for node in graph.nodes
            if node in self.before and node in program.images and not is_size(node)
            and any(user not in self.before and not is_size(user) for user in node.users)
        ]  # fmt: skip
        if crossing != [self.node]:
            raise SplitError(
                f"{len(crossing)} tensors cross a cut at {name!r}: {_names(crossing)}; cut where exactly one does"
            )
        own = effects.group.get(self.node)
        for node in graph.nodes:
            for source in effects.after.get(node, ()) if node not in self.before else ():
                if source in self.before & program.images and effects.changed[source] != {own}:
                    raise SplitError(
                        f"{source.name!r} changes a tensor in place before a cut at {name!r} that is read after it; "
                        "cut elsewhere"
                    )
        unknown = [node for node in self.sizes(program) if not program.sizes.knows(node, [self.node])]
        if unknown:
            raise SplitError(
                f"a size of the images ({_names(unknown)}) crosses a cut at {name!r} beside the feature; give the "
                "model an attribute input_shape = (channels, height, width), or save it as a .pt2 file "
                "(docs/own-model.md)"
            )

    def sizes(self, program: Program) -> list[fx.Node]:
        """The shapes of the client's tensors that the server asks for."""
        return _foreign_sizes(program, [self.node], self.before)

    def client(self, program: Program) -> fx.GraphModule:
        """What makes the tensor that crosses."""
        half = fx.Graph()
        copies: dict[fx.Node, Any] = {}
        for node in program.traced.graph.nodes:
            if node in self.before:
                copies[node] = half.node_copy(node, lambda n: copies[n])
        half.output(copies[self.node])
        return _module(program.traced, half)

    def server(self, program: Program) -> fx.GraphModule:
        """What makes the answer of the tensor that crosses."""
        return after(program, [self.node], self.before)


def after(program: Program, cuts: list[fx.Node], before: set[fx.Node]) -> fx.GraphModule:
    """What makes the output of the values at ``cuts``, which become its inputs in this order.

    Raises:
        SplitError: it needs a size that is not known here.
    """
    half = fx.Graph()
    stand_ins = {node: half.placeholder(f"z{index}") for index, node in enumerate(cuts)}
    copies: dict[fx.Node, Any] = dict(stand_ins)
    for node in _foreign_sizes(program, cuts, before):
        copies[node] = program.sizes.again(node, half, stand_ins)
        if copies[node] is None:
            raise SplitError(f"a size of the images ({node.name!r}) is not known after {_names(cuts)}; cut elsewhere")
    needed = _needed(program, cuts, before)
    for node in program.traced.graph.nodes:
        if node in needed and node not in copies:
            copies[node] = half.node_copy(node, lambda n: copies[n])
    return _module(program.traced, half)


def _needed(program: Program, cuts: list[fx.Node], before: set[fx.Node]) -> set[fx.Node]:
    """What the answer needs; what does not depend on what the images show may stand on both sides."""
    done = before & program.images

    def sources(node: fx.Node) -> Iterable[fx.Node]:
        if node in cuts or _is_foreign(node, cuts, done):
            return ()
        return (source for source in program.effects.sources(node) if source in cuts or source not in done)

    return closure([output_of(program.traced.graph)], sources)


def _foreign_sizes(program: Program, cuts: list[fx.Node], before: set[fx.Node]) -> list[fx.Node]:
    needed, done = _needed(program, cuts, before), before & program.images
    return [node for node in program.traced.graph.nodes if node in needed and _is_foreign(node, cuts, done)]


def _is_foreign(node: fx.Node, cuts: list[fx.Node], done: set[fx.Node]) -> bool:
    """Whether a node asks for the size of a tensor that only the client has."""
    return is_size(node) and any(source in done and source not in cuts for source in node.all_input_nodes)


def _module(traced: Traced, half: fx.Graph) -> fx.GraphModule:
    protect(half, traced.find)
    # A stand-in for the model, because the constants of the trace are no attributes of it.
    root = nn.Module()
    root.__dict__.update(vars(traced.model) | traced.constants)
    return fx.GraphModule(root, half)


def possible_cuts(model: nn.Module) -> list[str]:
    """Names of the modules at whose input the model can be cut, from the input on; one name for each tensor.

    Raises:
        SplitError: the model cannot be traced.
    """
    program = program_of(model)
    order = {node: place for place, node in enumerate(program.traced.graph.nodes)}
    found: dict[int, str] = {}
    for name in _module_names(model):
        try:
            cut = Cut.at(program, name)
        except SplitError:
            continue
        found.setdefault(order[cut.node], name)
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


def _is_within(node: fx.Node, name: str) -> bool:
    return name in _module_paths(node) or (node.op == "call_module" and str(node.target) == name)


def _names(nodes: Iterable[fx.Node]) -> str:
    return ", ".join(repr(node.name) for node in nodes)


def closure(start: Iterable[fx.Node], neighbours: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    """All nodes that can be reached."""
    seen: set[fx.Node] = set()
    pending = list(start)
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending.extend(neighbours(node))
    return seen


def output_of(graph: fx.Graph) -> fx.Node:
    """The node that gives a graph's output."""
    output: fx.Node = next(node for node in graph.nodes if node.op == "output")
    return output
