"""A model cut in two at one tensor: the client's half, the server's half, and the server's first linear map."""

import torch
from torch import Tensor, fx, nn

from splitveil.errors import NoLinearLayerError, ShapeError
from splitveil.message import Obfuscator
from splitveil.models import sample_images
from splitveil.split.checking import check, hides_nothing
from splitveil.split.cutting import Cut, Program, after, closure, examples_of, layer_name, program_of
from splitveil.split.tracing import Traced, is_size

LinearLayer = nn.Linear | nn.Conv2d
_ATEN = torch.ops.aten  # the operations that models from torch.export consist of


class SplitModel:
    """A model cut at the input of one of its layers, and put into evaluation mode.

         x ─► client ─► z ═╪═► server ─► logits          server(client(x)) equals model(x), bit for bit

    Both halves share their parameters with ``model``, so later training shows in them. They leave its buffers, and
    the tensors that they are given, as they were, even where the model changes them. Where the shape of the images is
    known, the halves are run against the model at once (`verify`).

    Args:
        model: any module with one tensor in and one tensor out that ``torch.fx`` can trace, or `load_exported` gave.
        at: the paper's number of a cut (1 to 6 for `Table1Net`; layer i's *input* crosses), or a module's name.
        example: images (B, C, H, W) to check the halves with; random ones of the model's ``input_shape`` (C, H, W)
            where not given. Without either, the first fit checks them.
        verify: whether to check the halves now.

    Raises:
        SplitError: there is no such place, the model cannot be traced, not exactly one tensor crosses there (the
            message names those that do), or the halves do not answer as the model does.
    """

    def __init__(self, model: nn.Module, at: int | str, *, example: Tensor | None = None, verify: bool = True) -> None:
        self.model = model.eval()
        self.at = at
        self.layer_name = layer_name(model, at)
        self._examples = examples_of(model) if example is None else example
        program = program_of(model, self._examples)
        cut = Cut.at(program, self.layer_name)
        self.client = cut.client(program)
        self.server = cut.server(program)
        if verify and self._examples is not None and not hides_nothing(model):
            check(self.model, self.client, self.server, self._examples, self.at)

    def verify(self, images: Tensor) -> None:
        """Run both halves against the model: on these images, in batches of 1, 2, 3 and 7, and on random ones.

        Args:
            images: (B, C, H, W), at least one; the first seven are taken.

        Raises:
            SplitError: the halves answer otherwise than the model, or the model answers otherwise from call to call;
                the message names the place.
        """
        check(self.model, self.client, self.server, images, self.at)
        if self._examples is None or self._examples.shape[1:] != images.shape[1:]:
            self._examples = sample_images(images.shape[1:], 7)
            check(self.model, self.client, self.server, self._examples, self.at)

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
        examples = None if self._examples is None else self._features(self._examples)
        program = Program.of(Traced(self.server.graph, self.server, {}), examples)
        before = closure(readers, program.effects.sources)
        return after(program, readers, before)(*biased)  # type: ignore[no-any-return]

    def answer(self, veil: Obfuscator, message: Tensor) -> Tensor:
        """Logits (B, n_classes) from an obfuscated message (B, *veil.message.shape), for any operator."""
        if veil.message.carries == "pre-activation":
            return self.resume(veil.finish(message))
        return self.server(veil.decode(message))  # type: ignore[no-any-return]

    def _features(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.client(images.to(self.device))  # type: ignore[no-any-return]

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
            elif is_size(node):
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
    return bool(node.target in (nn.functional.dropout, "contiguous", "clone", _ATEN.dropout.default))


def _add_bias(layer: LinearLayer, y: Tensor) -> Tensor:
    if layer.bias is None:
        return y
    return y + (layer.bias if isinstance(layer, nn.Linear) else layer.bias[:, None, None])
