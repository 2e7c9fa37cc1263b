"""Adversaries that are neural networks: the paper's, with the server's architecture, and plain perceptrons."""

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from splitveil.attack.view import Guess, View
from splitveil.errors import NoLinearLayerError
from splitveil.split import SplitModel


@dataclass(frozen=True)
class Training:
    """How an adversary's network is trained; the epoch and the weight decay are chosen on validation.

    Attributes:
        epochs: passes over the training views at most.
        least_steps: on few views the passes become more, so that this many steps are made at least.
        patience: share of the passes without a better validation accuracy after which it stops.
        learning_rate: of AdamW, falling to zero along a cosine.
        weight_decays: each is tried.
        batch_size: views per step.
    """

    epochs: int = 20
    least_steps: int = 400
    patience: float = 0.3
    learning_rate: float = 3e-3
    weight_decays: tuple[float, ...] = (1e-2, 1.0)
    batch_size: int = 256

    def passes(self, n: int) -> int:
        """Passes over n views."""
        return max(self.epochs, math.ceil(self.least_steps * self.batch_size / n))


Inputs = Callable[[View], Tensor]


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
    training: Training = Training(epochs=30, weight_decays=(0.1,))

    def fit(self, train: View, secret: Tensor, val: View, val_secret: Tensor, *, n_values: int, seed: int) -> Guess:
        """See `Attack.fit`."""
        inputs = standardised(View.vectors, train)
        width = inputs(_first(train)).shape[1]
        return fit_network(
            lambda: perceptron((width, *self.hidden), n_values, self.dropout),
            inputs, train, secret, val, val_secret, seed, self.training,
        )  # fmt: skip


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
    training: Training = Training()
    on_maps: Training = Training(epochs=15, least_steps=200, weight_decays=(1e-1,), batch_size=128)

    def fit(self, train: View, secret: Tensor, val: View, val_secret: Tensor, *, n_values: int, seed: int) -> Guess:
        """See `Attack.fit`."""
        split = train.public.split
        convolution = _first_layer(split, nn.Conv2d)
        on_maps = train.public.veil is not None and convolution is not None
        inputs = standardised(_maps if on_maps else View.vectors, train)
        example = inputs(_first(train))
        width = example.shape[1]

        def build() -> nn.Module:
            if on_maps:
                stays = train.public.veil is not None and train.public.veil.message.carries == "feature"
                return _server_like(split, _convolution(width, cast(nn.Conv2d, convolution), stays), n_values, example)
            connected = _first_layer(split, nn.Linear)
            if connected is None:
                return perceptron((width, 128, 64), n_values)
            return _server_like(split, nn.Linear(width, cast(nn.Linear, connected).out_features), n_values, example)

        training = self.on_maps if on_maps else self.training
        return fit_network(build, inputs, train, secret, val, val_secret, seed, training)


def perceptron(widths: Sequence[int], n_values: int, dropout: tuple[float, float] = (0.0, 0.0)) -> nn.Module:
    """Fully connected layers with ReLU and batch normalisation, as in the lower half of Table 1."""
    layers: list[nn.Module] = [nn.Dropout(dropout[0])]
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU(), nn.BatchNorm1d(b), nn.Dropout(dropout[1])]
    return nn.Sequential(*layers, nn.Linear(widths[-1], n_values))


def standardised(inputs: Inputs, train: View) -> Inputs:
    """Inputs with mean 0, deviation 1 per element (per channel for maps): an unscaled attacker looks like privacy."""
    x = inputs(train)
    axes = (0, *range(2, x.dim()))
    mean, deviation = x.mean(axes, keepdim=True), x.std(axes, keepdim=True)
    # What never varies (up to rounding) says nothing, and must not be blown up.
    scale = torch.where(deviation > 1e-6 * (1 + mean.abs()), deviation, torch.inf)
    return lambda view: (inputs(view) - mean) / scale


def fit_network(
    build: Callable[[], nn.Module],
    inputs: Inputs,
    train: View,
    secret: Tensor,
    val: View,
    val_secret: Tensor,
    seed: int,
    training: Training,
) -> Guess:
    """Train one network per weight decay, and keep the epoch of the one that guesses best on validation."""
    x, val_x = inputs(train), inputs(val)
    if x.dim() == 4:
        x, val_x = (maps.contiguous(memory_format=torch.channels_last) for maps in (x, val_x))
    device = train.public.split.device
    best = (-1.0, -torch.inf)
    best_net: nn.Module | None = None
    for decay in training.weight_decays:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = build().to(device)
            if x.dim() == 4:  # several times faster on a CPU
                net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            score, net = _fit_one(net, x, secret, val_x, val_secret, decay, training)
        if score > best or best_net is None:
            best, best_net = score, net
    temperature = _temperature(_logits(best_net, val_x), val_secret)  # type: ignore[arg-type]
    return lambda view: (_logits(cast(nn.Module, best_net), inputs(view)) / temperature).log_softmax(1)


Score = tuple[float, float]


def _fit_one(
    net: nn.Module, x: Tensor, secret: Tensor, val_x: Tensor, val_secret: Tensor, decay: float, training: Training
) -> tuple[Score, nn.Module]:
    optimizer = torch.optim.AdamW(net.parameters(), lr=training.learning_rate, weight_decay=decay, fused=True)
    passes = training.passes(len(x))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, passes)
    best: Score = (-1.0, -torch.inf)
    weights, waited = copy.deepcopy(net.state_dict()), 0
    for _ in range(passes):
        _epoch(net, optimizer, x, secret, training.batch_size)
        schedule.step()
        logits = _logits(net, val_x)
        accuracy = float((logits.argmax(1) == val_secret).float().mean())
        score = (accuracy, -float(nn.functional.cross_entropy(logits, val_secret)))
        waited = 0 if score > best else waited + 1
        if score > best:
            best, weights = score, copy.deepcopy(net.state_dict())
        if waited > training.patience * passes:
            break
    net.load_state_dict(weights)
    return best, net.eval()


def _epoch(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, secret: Tensor, batch_size: int) -> None:
    net.train()
    device = next(net.parameters()).device
    order = torch.randperm(len(x))
    for rows in torch.split(order, batch_size):
        if len(rows) == 1:  # batch normalisation needs two
            continue
        loss = nn.functional.cross_entropy(net(x[rows].to(device)), secret[rows].to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def _logits(net: nn.Module, x: Tensor) -> Tensor:
    net.eval()
    device = next(net.parameters()).device
    return torch.cat([net(rows.to(device)).cpu() for rows in torch.split(x, 512)])


def _temperature(logits: Tensor, secret: Tensor) -> float:
    """The division of the logits that gives the best cross-entropy on validation, so that bits are not lost."""
    grid = torch.logspace(-1, 2, 61)
    losses = torch.stack([nn.functional.cross_entropy(logits / t, secret) for t in grid])
    return float(grid[losses.argmin()])


def _first(view: View) -> View:
    return View(view.sent[:1], view.kept[:1], view.public)


def _maps(view: View) -> Tensor:
    """The decoded feature or the maps that were sent, and the length as one more channel: (N, C + 1, H, W)."""
    veil = view.public.veil
    assert veil is not None
    device = view.public.split.device
    maps = view.sent
    if veil.message.carries == "feature":
        with torch.no_grad():
            maps = torch.cat([veil.decode(rows.to(device)).cpu() for rows in torch.split(view.sent, 512)])
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
    net = copy.deepcopy(split.server)
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
        outputs = net.eval()(example.cpu()).shape[1]
    return nn.Sequential(net, nn.Linear(outputs, n_values))
