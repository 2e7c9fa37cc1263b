"""Adversaries that are neural networks: the paper's, with the server's architecture, and plain perceptrons."""

import contextlib
import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from splitveil.attack.ensemble import fit_networks
from splitveil.attack.fitting import Candidate, Inputs, Training, standardised
from splitveil.attack.view import Guess, Job, View
from splitveil.errors import NoLinearLayerError
from splitveil.message import Obfuscator
from splitveil.split import SplitModel

__all__ = ["Inputs", "Perceptron", "ServerArchitecture", "Training", "perceptron", "standardised"]


@dataclass(frozen=True)
class Perceptron:
    """A multi-layer perceptron on everything that was sent, standardised; without hidden layers, a linear attack.

    Attributes:
        name: for tables.
        hidden: widths of the hidden layers.
        dropout: share of inputs, and of each hidden layer, left out in training; worth one to two points of
            validation accuracy against raw features.
        training: how to train it.
    """

    name: str = "perceptron"
    hidden: tuple[int, ...] = (256, 128)
    dropout: tuple[float, float] = (0.2, 0.5)
    training: Training = field(default_factory=lambda: Training(epochs=30, weight_decays=(0.1,)))

    def fit(self, train: View, secret: Tensor, val: View, val_secret: Tensor, *, n_values: int, seed: int) -> Guess:
        """See `Attack.fit`."""
        return self.fit_many([Job(train, secret, val, val_secret, n_values, seed)])[0]

    def fit_many(self, jobs: Sequence[Job]) -> list[Guess]:
        """See `fit_all`."""
        return fit_networks(self.candidates(jobs))

    def candidates(self, jobs: Sequence[Job]) -> list[Candidate]:
        """The networks before their training, one for each job."""
        reading = _for_each(View.vectors, jobs)
        return [self._candidate(job, inputs) for job, inputs in zip(jobs, reading, strict=True)]

    def _candidate(self, job: Job, inputs: Inputs) -> Candidate:
        width = inputs(_first(job.train)).shape[1]

        def build() -> nn.Module:
            return perceptron((width, *self.hidden), job.n_values, self.dropout)

        return Candidate(build, inputs, job, self.training)


@dataclass(frozen=True)
class ServerArchitecture:
    """The paper's adversary (section 5.1): the architecture of the server's half, with fresh weights.

    Where that begins with a convolution it reads maps: the decoded feature, or the maps that were sent. Otherwise,
    and where there are no maps (the server's answer), it reads the message as a vector.

    Attributes:
        name: for tables.
        training: how to train it on vectors.
        on_maps: how to train it on maps, which costs more.
    """

    name: str = "server-architecture"
    training: Training = field(default_factory=Training)
    on_maps: Training = field(
        default_factory=lambda: Training(epochs=15, least_steps=200, weight_decays=(1e-1,), batch_size=128)
    )

    def fit(self, train: View, secret: Tensor, val: View, val_secret: Tensor, *, n_values: int, seed: int) -> Guess:
        """See `Attack.fit`."""
        return self.fit_many([Job(train, secret, val, val_secret, n_values, seed)])[0]

    def fit_many(self, jobs: Sequence[Job]) -> list[Guess]:
        """See `fit_all`."""
        return fit_networks(self.candidates(jobs))

    def candidates(self, jobs: Sequence[Job]) -> list[Candidate]:
        """The networks before their training, one for each job."""
        reading = _for_each(_maps_or_vectors, jobs)
        return [self._candidate(job, inputs) for job, inputs in zip(jobs, reading, strict=True)]

    def _candidate(self, job: Job, inputs: Inputs) -> Candidate:
        split, veil = job.train.public.split, job.train.public.veil
        example = inputs(_first(job.train)).cpu()
        width = example.shape[1]

        def build() -> nn.Module:
            if example.dim() == 4:
                on_feature = cast(Obfuscator, veil).message.carries == "feature"
                convolution = _convolution(width, cast(nn.Conv2d, split.server_layer), on_feature)
                return _server_like(split, convolution, job.n_values, example)
            if (connected := _first_layer(split, nn.Linear)) is not None:
                linear = nn.Linear(width, cast(nn.Linear, connected).out_features)
                # Where the server reads one vector for each token, a message that is one for all does not fit.
                with contextlib.suppress(RuntimeError), torch.no_grad():
                    net = _server_like(split, linear, job.n_values, example)
                    net.eval()(example)
                    return net.train()
            return perceptron((width, 128, 64), job.n_values)

        return Candidate(build, inputs, job, self.on_maps if example.dim() == 4 else self.training)


def perceptron(widths: Sequence[int], n_values: int, dropout: tuple[float, float] = (0.0, 0.0)) -> nn.Module:
    """Fully connected layers with ReLU and batch normalisation, as in the lower half of Table 1."""
    layers: list[nn.Module] = [nn.Dropout(dropout[0])]
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU(), nn.BatchNorm1d(b), nn.Dropout(dropout[1])]
    return nn.Sequential(*layers, nn.Linear(widths[-1], n_values))


def _for_each(inputs: Inputs, jobs: Sequence[Job]) -> list[Inputs]:
    """Standardised inputs for each job, the same object for jobs with the same views."""
    known = {id(job.train): job.train for job in jobs}
    scaled = {key: standardised(inputs, train) for key, train in known.items()}
    return [scaled[id(job.train)] for job in jobs]


def _first(view: View) -> View:
    return View(view.sent[:1], view.kept[:1], view.public)


def _maps_or_vectors(view: View) -> Tensor:
    """Maps where the server's half begins with a convolution and there is a message."""
    on_maps = view.public.veil is not None and _first_layer(view.public.split, nn.Conv2d) is not None
    return _maps(view) if on_maps else view.vectors()


def _maps(view: View) -> Tensor:
    """The decoded feature or the maps that were sent, and the length as one more channel: (N, C + 1, H, W)."""
    maps = view.decoded()
    length = view.length.to(maps)[:, None, None, None].expand(-1, 1, *maps.shape[2:])
    return torch.cat([maps, length], dim=1)


def _first_layer(split: SplitModel, kind: type[nn.Module]) -> nn.Module | None:
    """The one layer of the server that reads the feature, where it is of this kind."""
    try:
        layer = split.server_layer
    except NoLinearLayerError:
        return None
    return layer if isinstance(layer, kind) else None


def _convolution(channels: int, like: nn.Conv2d, on_feature: bool) -> nn.Conv2d:
    if not on_feature:  # the maps already lie where the layer's output does
        return nn.Conv2d(channels, like.out_channels, 3, padding=1)
    return nn.Conv2d(
        channels, like.out_channels, cast(tuple[int, int], like.kernel_size), cast(tuple[int, int], like.stride),
        cast(tuple[int, int], like.padding), cast(tuple[int, int], like.dilation),
    )  # fmt: skip


def _server_like(split: SplitModel, first: nn.Module, n_values: int, example: Tensor) -> nn.Module:
    """The server with fresh weights, another first layer, and an output for each value of the secret."""
    net = copy.deepcopy(split.server).cpu()  # where all candidates are made, wherever the model is
    for module in net.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    net.set_submodule(
        next(name for name, module in split.server.named_modules() if module is split.server_layer), first
    )
    (output,) = (node for node in net.graph.nodes if node.op == "output")
    last = net.get_submodule(output.args[0].target) if output.args[0].op == "call_module" else None
    if isinstance(last, nn.Linear):
        net.set_submodule(output.args[0].target, nn.Linear(last.in_features, n_values))
        return net
    with torch.no_grad():
        outputs = net.eval()(example).shape[1]
    return nn.Sequential(net, nn.Linear(outputs, n_values))
