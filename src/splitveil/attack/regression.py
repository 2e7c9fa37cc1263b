"""From messages to numbers: the strongest of a linear map and a network, chosen on validation."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from splitveil.attack.components import leading
from splitveil.attack.networks import Training, standardised
from splitveil.attack.view import View

PENALTIES = (1e-4, 1e-2, 1e-1, 1.0, 1e2)
"""Of ridge regression, as multiples of the number of rows; inputs are standardised."""
WIDEST = 2048
"""Inputs of the linear map; of wider messages it reads the leading principal components."""
EXACT = 1e-3
"""Share of the targets' variance that a linear map may leave, for a perceptron not to be tried."""

Regressor = Callable[[View], Tensor]


def regress(
    train: View, targets: Tensor, val: View, val_targets: Tensor, *, training: Training, seed: int
) -> Regressor:
    """Learn targets from messages by ridge regression and by a perceptron; least squared error on validation counts.

    Args:
        train: messages.
        targets: what to find, (N, numbers).
        val: more messages; penalty, epoch and kind are chosen on them.
        val_targets: their targets.
        training: of the perceptron; it has no weight decay.
        seed: of the perceptron and of the components.
    """
    mean = targets.mean(0)
    scale = (targets - mean).square().mean().sqrt().clamp_min(1e-12)
    y, val_y = (targets - mean) / scale, (val_targets - mean) / scale
    found = [_ridge(train, y, val, val_y, seed)]
    if found[0][0] > EXACT:  # there is something left to learn
        found.append(_network(train, y, val, val_y, training, seed))
    best = min(found, key=lambda each: each[0])[1]
    return lambda view: best(view) * scale + mean


def _ridge(train: View, y: Tensor, val: View, val_y: Tensor, seed: int) -> tuple[float, Regressor]:
    inputs = leading(standardised(View.vectors, train), train, WIDEST, seed)
    x, val_x = inputs(train), inputs(val)
    gram, product = x.T @ x, x.T @ y
    identity = torch.eye(x.shape[1])
    maps = [torch.linalg.solve(gram + penalty * len(x) * identity, product) for penalty in PENALTIES]
    errors = [float((val_x @ each - val_y).square().mean()) for each in maps]
    least = min(errors)
    best = maps[errors.index(least)]
    return least, lambda view: inputs(view) @ best


def _network(
    train: View, y: Tensor, val: View, val_y: Tensor, training: Training, seed: int
) -> tuple[float, Regressor]:
    inputs = standardised(View.vectors, train)
    x, val_x = inputs(train), inputs(val)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Layer normalisation instead of batch normalisation: a batch may be a single row.
        net = nn.Sequential(
            nn.Linear(x.shape[1], 256), nn.ReLU(), nn.LayerNorm(256),
            nn.Linear(256, 512), nn.ReLU(), nn.LayerNorm(512), nn.Linear(512, y.shape[1]),
        )  # fmt: skip
        optimizer = torch.optim.Adam(net.parameters(), lr=training.learning_rate)
        passes = training.passes(len(x))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, passes)
        least, weights, waited = torch.inf, copy.deepcopy(net.state_dict()), 0
        for _ in range(passes):
            for rows in torch.split(torch.randperm(len(x)), training.batch_size):
                loss = nn.functional.mse_loss(net(x[rows]), y[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            schedule.step()
            with torch.no_grad():
                error = float((net(val_x) - val_y).square().mean())
            waited = 0 if error < least else waited + 1
            if error < least:
                least, weights = error, copy.deepcopy(net.state_dict())
            if waited > training.patience * passes:
                break
    net.load_state_dict(weights)
    net.requires_grad_(False)
    return least, lambda view: net(inputs(view))
