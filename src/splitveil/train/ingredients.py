"""What the paper's recipe adds to a training step: removal of signal content, DeCov, and a variational feature."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from math import log
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from splitveil.errors import ModelError
from splitveil.linear import left_vectors
from splitveil.train.recipe import Recipe

LEAST_LOG_VARIANCE, MOST_LOG_VARIANCE = -10.0, 4.0
"""Limits of a head's log σ², so that no step can blow the noise up."""


class Addition(Protocol):
    """What a training adds to every step, beside the loss of the answer."""

    @property
    def heads(self) -> nn.ModuleList:
        """What the optimiser trains along with the model, and what is thrown away in the end."""
        ...

    def step(self, number: int, rows: Tensor) -> AbstractContextManager[list[Tensor]]:
        """Entered around the forward pass of a step; the list holds the penalties when it is left.

        The gradients of the penalties, and the step of the optimiser, come after that.

        Args:
            number: of the step, counted over all epochs from 0.
            rows: of the training part that make up the batch, (B,), in the batch's order.
        """
        ...


class GaussianHead(nn.Module):
    """log σ² of q(z | x) = N(μ, σ²), element by element from μ itself: w·μ + b.

    One weight and one bias for every element keep the head far cheaper than the layers around it at every cut; a
    full matrix at cut 2 would be larger than the whole network.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n))
        self.bias = nn.Parameter(torch.full((n,), -4.0))  # little noise at first: σ = 0.14

    def forward(self, mean: Tensor) -> Tensor:
        """Log variances (B, n) of means (B, n)."""
        return torch.clamp(self.weight * mean + self.bias, LEAST_LOG_VARIANCE, MOST_LOG_VARIANCE)


class Ingredients:
    """The paper's additions (section 4.3), one cut at a time, each at its weight in the recipe.

    Step t removes signal content at cut 1 + t mod C, and shapes the feature at cut 2 + t mod (C − 1), for a model
    with C cuts. Nothing of it remains in the model.

    Args:
        model: with numbered cuts (`cut_points`) that each begin with a fully connected or convolutional layer.
        recipe: with the weights.
        x: one image or more, to learn the features' sizes from.

    Raises:
        ModelError: the model has no such cuts, but the recipe needs them.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, x: Tensor) -> None:
        self._recipe = recipe
        self._removes = recipe.removal > 0
        self._shapes = recipe.decov > 0 or recipe.variational > 0
        self._blocks = _cut_blocks(model) if self._removes or self._shapes else []
        sizes = _feature_sizes(model, self._blocks, x) if recipe.variational > 0 else []
        self.heads = nn.ModuleList(GaussianHead(n) for n in sizes[1:])

    @contextmanager
    def step(self, number: int, rows: Tensor) -> Iterator[list[Tensor]]:  # noqa: ARG002 (the interface's)
        """While entered, the model trains with what belongs to this step; penalties appear in the list yielded."""
        penalties: list[Tensor] = []
        with ExitStack() as hooks:
            if self._removes:
                layer = _first_layer(self._blocks[number % len(self._blocks)])
                hooks.enter_context(layer.register_forward_hook(self._removed))
            if self._shapes:
                turn = number % (len(self._blocks) - 1)
                block = self._blocks[1 + turn]
                hook = block.register_forward_pre_hook(lambda _, inputs: self._shaped(turn, inputs[0], penalties))
                hooks.enter_context(hook)
            yield penalties

    def _removed(self, layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The layer's output, where a share of the samples has lost all but a prefix of its components."""
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        # The first samples, since the batch is in random order; all statistics of the batch see both kinds.
        hit = round(self._recipe.removal * len(output))
        # Weights that have exploded have no decomposition; the loss that comes of them stops the training.
        if not hit or not bool(torch.isfinite(layer.weight).all()):
            return output
        return torch.cat([remove(layer, output[:hit], _prefixes(hit, layer)).to(output.dtype), output[hit:]])

    def _shaped(self, turn: int, z: Tensor, penalties: list[Tensor]) -> Tensor:
        last = z.movedim(1, -1)  # images lie channels last in memory: this way nothing is copied
        flat = last.flatten(1).float()
        with torch.autocast(z.device.type, enabled=False):  # penalties are sums of many squares
            if self._recipe.decov > 0:
                penalties.append(self._recipe.decov * decov(flat))
            if self._recipe.variational == 0:
                return z
            log_variance: Tensor = self.heads[turn](flat)
            penalties.append(self._recipe.variational * gaussian_divergence(flat, log_variance))
            noisy: Tensor = flat + torch.randn_like(flat) * torch.exp(log_variance / 2)
        return noisy.reshape(last.shape).movedim(-1, 1).to(z.dtype)


def remove(layer: nn.Linear | nn.Conv2d, output: Tensor, kept: Tensor) -> Tensor:
    """What the layer's output W z + b becomes where sample i keeps ``kept[i]`` components of its signal content.

    W z' = U diag(mask) Uᵀ W z with W = U S Vᵀ: two small products on the output, wherever z came from. A convolution is
    taken as a patch operator: its decomposition costs next to nothing, so that it can follow the weights in every
    step, where the dense one would take seconds. U is a constant to the gradient.

    Args:
        layer: fully connected, or a convolution with one group.
        output: of the layer, (B, m) or (B, m, H, W).
        kept: components to keep, (B,), each from 0 to the number of the layer's components.
    """
    U = left_vectors(layer.weight.detach().flatten(1))
    mask = (torch.arange(U.shape[1], device=output.device) < kept[:, None]).to(output.dtype)
    bias = torch.zeros_like(U[:, 0]) if layer.bias is None else layer.bias
    if isinstance(layer, nn.Linear):
        return functional.linear(functional.linear(output - bias, U.mT) * mask, U, bias)
    filters, back = U.mT[:, :, None, None], U[:, :, None, None]
    a = functional.conv2d(output - bias[:, None, None], filters)
    return functional.conv2d(a * mask[:, :, None, None], back, bias)


def decov(z: Tensor) -> Tensor:
    """The DeCov penalty ½(‖C‖² − ‖diag C‖²) of features (B, n), divided by n (paper section 4.3; Cogswell et al.).

    Divided, so that one weight serves features of 64 and of 10,000 elements. ‖C‖ comes from the B×B Gram matrix of the
    centred features, so that the n×n covariance is never formed.
    """
    centred = z - z.mean(0)
    gram = centred @ centred.mT / len(z)
    variances = centred.square().mean(0)
    return torch.sub(gram.square().sum(), variances.square().sum()).div(2 * z.shape[1])


def gaussian_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence of N(μ, σ²) from N(0, 1) in nats, mean over samples and elements (Kingma and Welling, 2013)."""
    return (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2


def _prefixes(count: int, layer: nn.Linear | nn.Conv2d) -> Tensor:
    """Components kept by each sample: from 1 to all, as likely between 1 and 2 as between 32 and 64."""
    most = min(layer.weight.flatten(1).shape)
    drawn = torch.rand(count, device=layer.weight.device) * log(most + 1)
    return drawn.exp().long().clamp(1, most)


def _cut_blocks(model: nn.Module) -> list[nn.Module]:
    points = tuple(getattr(model, "cut_points", ()))
    if len(points) < 2:
        raise ModelError(
            f"{type(model).__name__} has no numbered cuts (cut_points), which removal, decov and variational need; "
            "set them to 0"
        )
    blocks = [model.get_submodule(name) for name in points]
    for name, block in zip(points, blocks, strict=True):
        layer = _first_layer(block)
        if not (isinstance(layer, nn.Linear) or _is_plain_convolution(layer)):
            raise ModelError(f"the cut {name!r} does not begin with a fully connected layer or a plain convolution")
    return blocks


def _is_plain_convolution(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"


def _first_layer(block: nn.Module) -> nn.Module:
    return next(module for module in block.modules() if not list(module.children()))


@torch.no_grad()
def _feature_sizes(model: nn.Module, blocks: list[nn.Module], x: Tensor) -> list[int]:
    """Elements of the feature at each cut."""
    sizes: list[int] = []
    with ExitStack() as hooks:
        for block in blocks:
            hook = block.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0][0].numel()))
            hooks.enter_context(hook)
        model.eval()(x)
    return sizes
