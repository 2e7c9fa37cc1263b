"""Many small networks as one: plain chains of layers on vectors, their parameters stacked along the members."""

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx, nn

PARAMETRIC = (nn.Linear, nn.BatchNorm1d)


def chain(net: nn.Module) -> list[nn.Module] | None:
    """The layers of a network, where it is a plain chain of them that a `Stack` can hold; else None."""
    layers = [each for each in _layers(net) if not (isinstance(each, nn.Dropout) and each.p == 0)]
    weights = [id(parameter) for layer in layers for parameter in layer.parameters()]
    return layers if all(map(_stackable, layers)) and len(set(weights)) == len(weights) else None


def _layers(net: nn.Module) -> Iterator[nn.Module]:
    """A network's layers in order; itself where it is no chain."""
    if isinstance(net, nn.Sequential):
        for each in net:
            yield from _layers(each)
    elif isinstance(net, fx.GraphModule) and _is_line(net.graph):
        yield from (net.get_submodule(str(node.target)) for node in list(net.graph.nodes)[1:-1])
    else:
        yield net


def _is_line(graph: fx.Graph) -> bool:
    nodes = list(graph.nodes)
    calls = all(node.op == "call_module" and not node.kwargs for node in nodes[1:-1])
    return calls and all(after.args == (before,) for before, after in itertools.pairwise(nodes))


def _stackable(layer: nn.Module) -> bool:
    match layer:
        case nn.Linear():
            return layer.bias is not None
        case nn.BatchNorm1d():
            return layer.affine and layer.track_running_stats and layer.momentum is not None
        case nn.Dropout():
            return layer.p <= 0.9
        case _:
            return isinstance(layer, nn.ReLU)


def architecture(layers: Sequence[nn.Module]) -> tuple[object, ...]:
    """What members of one stack have in common: all but the number of inputs and outputs, and the weights."""
    last = max((i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear)), default=0)
    described: list[object] = []
    for i, layer in enumerate(layers):
        match layer:
            case nn.Linear():
                described.append((nn.Linear, None if i == last else layer.out_features))
            case nn.BatchNorm1d():
                described.append((nn.BatchNorm1d, layer.eps, layer.momentum))
            case nn.Dropout():
                described.append((nn.Dropout, layer.p))
            case _:
                described.append(type(layer))
    return tuple(described)


class Stack:
    """Chains of one `architecture`, run together: inputs (E, elements, B) to logits (E, values, B), E members.

    Samples lie along the last axis, so that a batch's mean and deviation are those of rows in memory. Members with
    fewer inputs or outputs are padded with zeros, which no gradient moves.

    Args:
        chains: layers of each member, with their first weights.
        dtype: of what hidden layers compute; weights stay float32.

    Attributes:
        parameters: (E, parameters), a leaf that requires its gradient.
        statistics: running means and variances of the batch normalisations, (E, numbers).
    """

    def __init__(self, chains: Sequence[Sequence[nn.Module]], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._layers = chains[0]
        members = [_parameters(layers) for layers in chains]
        self._shapes = [_largest(same) for same in zip(*members, strict=True)]
        self._widths = [len(buffer) for buffer in _buffers(self._layers)]
        self.parameters = torch.stack([_row(each, self._shapes) for each in members]).requires_grad_()
        self.statistics = torch.stack([torch.cat([torch.zeros(0), *_buffers(layers)]) for layers in chains])

    def to(self, device: torch.device) -> "Stack":
        """Itself, on a device."""
        self.parameters = self.parameters.detach().to(device).requires_grad_()
        self.statistics = self.statistics.to(device)
        return self

    def logits(self, x: Tensor, masks: Sequence[Tensor] | None = None) -> Tensor:
        """Logits (E, values, B) of inputs (E, elements, B), as float32.

        Args:
            x: inputs.
            masks: one for each dropout, see `dropouts`; where there are none, the networks are in evaluation mode.
        """
        sizes = [math.prod(shape) for shape in self._shapes]
        weights = (
            block.view(len(block), *shape)
            for block, shape in zip(torch.split(self.parameters, sizes, 1), self._shapes, strict=True)
        )
        statistics = iter(torch.split(self.statistics, self._widths, 1))
        drops = iter(masks or ())
        for layer in self._layers:
            match layer:
                case nn.Linear():
                    weight, bias = (next(weights).to(x.dtype) for _ in range(2))
                    x = torch.baddbmm(bias[..., None], weight, x)
                    x = x if layer is self._layers[-1] else x.to(self.dtype)
                case nn.BatchNorm1d():
                    both = (next(weights), next(weights), next(statistics), next(statistics))
                    x = (_evaluated if masks is None else _normalised)(x, layer, *both)
                case nn.Dropout():
                    x = x if masks is None else x * next(drops).to(x.dtype)
                case _:
                    x = x.relu_()
        return x.float()

    def dropouts(self, elements: int) -> list[tuple[int, float]]:
        """Width and share of each dropout, for inputs of so many elements."""
        found, width = [], elements
        for layer in self._layers:
            if isinstance(layer, nn.Linear):
                width = layer.out_features
            elif isinstance(layer, nn.Dropout):
                found.append((width, layer.p))
        return found

    @torch.no_grad()
    def unstack(self, parameters: Tensor, statistics: Tensor, layers: Sequence[nn.Module]) -> None:
        """Write one member's parameters and statistics into its layers."""
        blocks = torch.split(parameters.cpu(), [math.prod(shape) for shape in self._shapes])
        for own, block, shape in zip(_parameters(layers), blocks, self._shapes, strict=True):
            own.copy_(block.view(shape)[tuple(slice(n) for n in own.shape)])
        for buffer, values in zip(_buffers(layers), torch.split(statistics.cpu(), self._widths), strict=True):
            buffer.copy_(values)


def keep_mask(shape: tuple[int, int], share: float, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """A dropout's factors: 0 for about the share, to a 256th; random bytes, since single draws would take longest."""
    words = torch.empty(-(-math.prod(shape) // 8), dtype=torch.int64, device=generator.device)
    drawn = words.random_(-(2**63), None, generator=generator).view(torch.uint8)
    dropped = round(256 * share)
    return (drawn[: math.prod(shape)].view(shape) >= dropped).to(dtype).mul_(256 / (256 - dropped))


def _normalised(x: Tensor, layer: nn.BatchNorm1d, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Batch normalisation of each member; as group normalisation with a group per row, which is one fast kernel."""
    members, width, batch = x.shape
    rows = members * width
    y, found, inverse = torch.native_group_norm(
        x.reshape(1, rows, batch), weight.reshape(rows), bias.reshape(rows), 1, rows, batch, rows, layer.eps
    )
    with torch.no_grad():
        unbiased = (inverse.view_as(var).float() ** -2 - layer.eps) * batch / (batch - 1)
        assert layer.momentum is not None
        mean.lerp_(found.view_as(mean).float(), layer.momentum)
        var.lerp_(unbiased, layer.momentum)
    return y.view(x.shape)


def _evaluated(x: Tensor, layer: nn.BatchNorm1d, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    scale = weight * (var + layer.eps).rsqrt()
    return (x * scale[..., None].to(x.dtype)).add_((bias - mean * scale)[..., None].to(x.dtype))


def _parameters(layers: Sequence[nn.Module]) -> list[Tensor]:
    return [tensor for layer in layers if isinstance(layer, PARAMETRIC) for tensor in (layer.weight, layer.bias)]


def _buffers(layers: Sequence[nn.Module]) -> list[Tensor]:
    norms = (layer for layer in layers if isinstance(layer, nn.BatchNorm1d))
    return [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None]


def _largest(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(map(max, zip(*(tensor.shape for tensor in tensors), strict=True)))


@torch.no_grad()
def _row(tensors: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> Tensor:
    """Parameters side by side, each padded to its shape."""
    blocks = []
    for tensor, shape in zip(tensors, shapes, strict=True):
        block = torch.zeros(shape)
        block[tuple(slice(n) for n in tensor.shape)] = tensor
        blocks.append(block.flatten())
    return torch.cat(blocks)
