"""Training one network after the other: what a network is trained on, for how long, and which epoch is kept."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from splitveil.attack.view import Guess, Job, View


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


@dataclass(frozen=True, eq=False)
class Candidate:
    """A network that is to guess a secret, before its training.

    Attributes:
        build: makes it with fresh weights, drawn by torch's global generator.
        inputs: what it reads of a view, (N, elements) or (N, channels, height, width).
        job: what it learns.
        training: how it is trained.
    """

    build: Callable[[], nn.Module]
    inputs: Inputs
    job: Job
    training: Training

    def fresh(self) -> nn.Module:
        """The network as the job's seed draws it, the same each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.job.seed)
            return self.build()


def standardised(inputs: Inputs, train: View) -> Inputs:
    """Inputs with mean 0, deviation 1 per element (per channel for maps): an unscaled attacker looks like privacy."""
    x = inputs(train)
    axes = (0, *range(2, x.dim()))
    # In units of a power of two, which rounds nothing: squares of small numbers would be zero.
    size = torch.maximum(x.amax(axes, keepdim=True), -x.amin(axes, keepdim=True))
    exponent = torch.frexp(size).exponent.clamp_min(-126)
    in_units = torch.ldexp(x, -exponent)
    mean, deviation = in_units.mean(axes, keepdim=True), in_units.std(axes, keepdim=True)
    # What never varies (up to rounding) says nothing, and must not be blown up.
    varies = deviation > 1e-6 * mean.abs()
    mean = torch.ldexp(mean, exponent)
    scale = torch.where(varies, torch.ldexp(deviation, exponent), torch.inf)
    return lambda view: (inputs(view) - mean) / scale


def fit_network(candidate: Candidate) -> Guess:
    """Train one network per weight decay, and keep the epoch of the one that guesses best on validation."""
    job, training = candidate.job, candidate.training
    x, val_x = candidate.inputs(job.train), candidate.inputs(job.val)
    if x.dim() == 4:
        x, val_x = (maps.contiguous(memory_format=torch.channels_last) for maps in (x, val_x))
    device = job.train.public.split.device
    found: list[tuple[Score, nn.Module]] = []
    for decay in training.weight_decays:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.seed)
            net = candidate.build().to(device)
            if x.dim() == 4:  # several times faster on a CPU
                net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            found.append(_fit_one(net, x, job.secret, val_x, job.val_secret, decay, training))
    _, best = max(found, key=lambda each: each[0])
    return guess_of(best, candidate.inputs, val_x, job.val_secret)


def guess_of(net: nn.Module, inputs: Inputs, val_x: Tensor, val_secret: Tensor) -> Guess:
    """What a trained network guesses, with its logits scaled on validation."""
    net.eval().requires_grad_(False)
    temperature = _temperature(_logits(net, val_x), val_secret)
    return lambda view: (_logits(net, inputs(view)) / temperature).log_softmax(1)


Score = tuple[float, float]
"""Accuracy, then cross-entropy with its sign turned: the larger the better."""


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
    return best, net


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
    by_value = logits.T[None].contiguous()  # much faster than rows of a few values
    losses = torch.stack([nn.functional.cross_entropy(by_value / t, secret[None]) for t in grid])
    return float(grid[losses.argmin()])
