"""A model from a file of torch.export, as a module whose layers go by the names that they had in the original."""

import logging
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from splitveil.errors import ModelError
from splitveil.models.dice import drawing_nodes

_ATEN = torch.ops.aten
_HOW = "torch.export.export(model.eval(), (images,), dynamic_shapes=({0: torch.export.Dim('batch')},))"


def load_exported(path: Path) -> fx.GraphModule:
    """The model in a file that ``torch.export.save`` has written, in evaluation mode.

    Its graph names, for each operation, the modules of the original that it came from, so that `SplitModel` cuts
    it at those names. Fully connected layers and convolutions are modules again. PyTorch reads such a file with
    pickle, which may run code: load files of your own only.

    Args:
        path: of a model that takes one float32 tensor of images (B, C, H, W) for any B, and gives one tensor.

    Raises:
        ModelError: the file is missing or damaged, or the model is of another kind; the sentence says how to export.
    """
    program = _read(path)
    _check(path, program)
    source = program.module(check_guards=False)
    graph = _copied(source.graph)
    _restore_layers(source, graph)
    graph.lint()
    module = fx.GraphModule(source, graph, class_name=_class_name(source.graph))
    (images,) = (node for node in source.graph.nodes if node.op == "placeholder")
    # As `Table1Net` says it; a size that may vary is None.
    module.__dict__["input_shape"] = tuple(s if isinstance(s, int) else None for s in images.meta["val"].shape[1:])
    return module.eval()


def without_examples(path: Path) -> bytes:
    """What ``torch.export.save`` would have written without the images that the model was exported with.

    A file keeps them, and of a slice such as ``images[:2]`` all the images that lie behind it.

    Raises:
        ModelError: as `load_exported` does of a file that cannot be read.
    """
    program, file = _read(path), BytesIO()
    program.example_inputs = None
    torch.export.save(program, file)
    return file.getvalue()


def _read(path: Path) -> torch.export.ExportedProgram:
    if not path.is_file():
        raise ModelError(f"there is no file {path}; name one that torch.export.save has written")
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # of a file that it cannot read, torch logs the whole traceback
    try:
        return torch.export.load(path)
    except Exception as error:  # torch raises whatever its readers meet in a damaged file
        if _is_pickled(path):
            raise ModelError(f"{path} was written by torch.save; export the model by torch.export: {_HOW}") from error
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{path} cannot be read as a model of torch.export ({reason}); save it with torch.export.save, by the "
            f"version of PyTorch that is installed here ({torch.__version__})"
        ) from error
    finally:
        logger.setLevel(level)


def _is_pickled(path: Path) -> bool:
    """Whether a file is one of torch.save; nothing in it is read."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/data.pkl") for name in archive.namelist())


def _check(path: Path, program: torch.export.ExportedProgram) -> None:
    """Raises `ModelError` unless it maps a batch of images of any length to one tensor, in evaluation mode."""
    signature = program.graph_signature
    if len(signature.user_inputs) != 1 or len(signature.user_outputs) != 1:
        raise ModelError(
            f"{path} takes {len(signature.user_inputs)} inputs and gives {len(signature.user_outputs)} outputs; "
            "export a model that takes images alone and gives logits alone"
        )
    (images,) = (node for node in program.graph.nodes if node.name == signature.user_inputs[0])
    example = images.meta.get("val")
    if not isinstance(example, torch.Tensor) or example.dim() != 4 or example.dtype != torch.float32:
        raise ModelError(f"{path} does not take float32 images (B, C, H, W); export it with such an example: {_HOW}")
    if isinstance(example.shape[0], int):
        raise ModelError(
            f"{path} was exported for batches of exactly {example.shape[0]}; export it for any number of images: {_HOW}"
        )
    drawn = drawing_nodes(program.graph_module)
    if signature.buffers_to_mutate or "dropout" in drawn:
        raise ModelError(f"{path} was exported in training mode; call model.eval() first: {_HOW}")
    if drawn:
        raise ModelError(
            f"{path} draws random numbers ({drawn[0]!r}), so its answer is not a function of the image; switch that "
            f"off in evaluation mode, and export it again: {_HOW}"
        )


def _class_name(graph: fx.Graph) -> str:
    stacks = (node.meta.get("nn_module_stack") or {} for node in graph.nodes)
    kinds = [str(kind) for stack in stacks for path, kind in stack.values() if not path]
    return kinds[0].rpartition(".")[2] if kinds and kinds[0].rpartition(".")[2].isidentifier() else "ExportedModel"


def _copied(graph: fx.Graph) -> fx.Graph:
    """The same graph with one tensor in and out, where each reshape asks its own tensor for the length of the batch.

    torch.export asks the images once, and that number would have to cross every cut.
    """
    copy = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "output":
            (answer,) = node.args[0]
            copy.output(copies[answer])
        elif node.op == "placeholder":
            copies[node] = copy.placeholder(node.name)
        else:
            copies[node] = copy.node_copy(node, _length_from_its_own(node, copy, copies))
            stack = node.meta.get("nn_module_stack") or {}
            copies[node].meta = {"nn_module_stack": {key: (path, str(kind)) for key, (path, kind) in stack.items()}}
    copy.eliminate_dead_code()
    return copy


def _length_from_its_own(node: fx.Node, copy: fx.Graph, copies: dict[fx.Node, fx.Node]) -> Callable[[fx.Node], fx.Node]:
    """How to find the copy of an argument of ``node``."""

    def take(argument: fx.Node) -> fx.Node:
        if argument.target is _ATEN.sym_size.int and argument.args[1] == 0:
            for other in node.all_input_nodes:
                if _same_length(other, argument):
                    return copy.call_function(_ATEN.sym_size.int, (copies[other], 0))
        return copies[argument]

    return take


def _same_length(node: fx.Node, length: fx.Node) -> bool:
    value = node.meta.get("val")
    # As text, because comparing two symbols would make torch decide, and record, whether they are equal.
    return isinstance(value, torch.Tensor) and value.dim() > 0 and str(value.shape[0]) == str(length.meta.get("val"))


def _restore_layers(root: nn.Module, graph: fx.Graph) -> None:
    """Make calls of `Linear` and `Conv2d` of the plain products, so that their layers can be found and factorised."""
    for node in list(graph.nodes):
        if node.target in (_ATEN.linear.default, _ATEN.conv2d.default) and (name := _owner(root, node)):
            layer = _layer(root.get_submodule(name), node)
            parent, _, child = name.rpartition(".")
            setattr(root.get_submodule(parent), child, layer)
            weights = node.all_input_nodes[1:]
            node.op, node.target, node.args = "call_module", name, (node.args[0],)
            for weight in weights:
                if not weight.users:
                    graph.erase_node(weight)


def _owner(root: nn.Module, node: fx.Node) -> str | None:
    """The module whose own weight and bias, and nothing else of it, the product reads."""
    weights = [argument for argument in node.args[1:3] if isinstance(argument, fx.Node)]
    owners = {str(weight.target).rpartition(".")[0] for weight in weights if weight.op == "get_attr"}
    if len(owners) != 1 or "" in owners or node.kwargs:
        return None
    (name,) = owners
    wanted = {str(weight.target) for weight in weights}
    held = {f"{name}.{key}" for key in root.get_submodule(name).state_dict()}
    parameters = {key for key, _ in root.named_parameters(remove_duplicate=False)}
    return name if wanted == held and wanted <= parameters else None


def _layer(held: Any, node: fx.Node) -> nn.Module:
    weight, bias = held.weight, getattr(held, "bias", None)
    layer: nn.Linear | nn.Conv2d
    # On the meta device nothing is allocated or drawn for weights that are replaced at once.
    if node.target is _ATEN.linear.default:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    else:
        given: list[Any] = [*node.args[3:], *(1, 0, 1, 1)[max(0, len(node.args) - 3) :]]
        stride, padding, dilation, groups = given
        layer = nn.Conv2d(
            weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), _pair(stride), _pair(padding),
            _pair(dilation), groups, bias is not None, device="meta",
        )  # fmt: skip
    layer.weight, layer.bias = weight, bias
    return layer


def _pair(sizes: Any) -> tuple[int, int]:
    pair = tuple(sizes) if isinstance(sizes, list | tuple) else (sizes,)
    return int(pair[0]), int(pair[-1])
