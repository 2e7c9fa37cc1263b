"""What the baselines on a plainly trained model share: their starting point, and the tuning of a network on tensors."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from splitveil.baselines.defence import Undefended
from splitveil.errors import BaselineError, OperatorError
from splitveil.message import Obfuscator
from splitveil.split import SplitModel
from splitveil.train import Precision, predict, products

EPOCHS = 10
"""Passes over the training part when the server's half is fine-tuned: the same for every baseline."""
_RATE = 1e-3
_BATCH = 128
_VALIDATION_SEED = 1


class FeatureVeil:
    """What obfuscators share whose messages decode to a feature."""

    def finish(self, message: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG002 (the interface's)
        """Never offered; raises `OperatorError`."""
        raise OperatorError("these messages carry a feature; decode one and run the server on it")


@dataclass(frozen=True, eq=False)
class Start:
    """The split model that a defence may change, and the features that its client's half gives.

    Attributes:
        split: of a copy of the undefended model.
        train: features of the training part, (N, *feature).
        val: features of the validation part.
    """

    split: SplitModel
    train: Tensor
    val: Tensor

    @classmethod
    def of(cls, undefended: Undefended) -> "Start":
        """Copy the model, cut it, and run the client's half once; raises `SplitError` as `SplitModel` does."""
        split = SplitModel(deepcopy(undefended.model), undefended.at)
        data = undefended.data
        return cls(split, predict(split.client, data.train), predict(split.client, data.val))

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one feature."""
        return tuple(self.train.shape[1:])

    @property
    def size(self) -> int:
        """Numbers in one feature, n."""
        return math.prod(self.feature_shape)


def whole(name: str, value: object, least: int = 1) -> None:
    """Raise `BaselineError` unless a setting is a whole number of at least ``least``."""
    if type(value) is not int or value < least:
        raise BaselineError(f"{name} must be a whole number of at least {least}, not {value!r}")


def positive(name: str, value: object) -> None:
    """Raise `BaselineError` unless a setting is a finite number above zero."""
    if type(value) not in (int, float) or not 0 < float(value) < math.inf:  # type: ignore[arg-type]
        raise BaselineError(f"{name} must be a finite number above 0, not {value!r}")


def at_most(m: int, most: int, what: str) -> None:
    """Raise `BaselineError` where more components are to be kept than there are."""
    if m > most:
        raise BaselineError(f"m={m} is more than the {most} {what} here; choose a smaller m")


def finetune(undefended: Undefended, start: Start, veil: Obfuscator) -> dict[str, Any]:
    """Train the server's half of ``start.split`` in place to answer from decoded messages.

    The features stay as they are; a random obfuscator encodes them anew in every epoch. The best epoch on
    validation is kept, and the untuned server counts as epoch 0, so validation accuracy never falls.

    Returns:
        ``epoch`` kept, ``val_accuracy`` of it, and ``val_untuned``.
    """
    fixed = None if veil.message.random else _decoded(veil, start.train)
    return train_network(
        start.split.server, lambda: _decoded(veil, start.train) if fixed is None else fixed,
        _validation(veil, start.val), undefended, epochs=EPOCHS,
    )  # fmt: skip


def answer_accuracy(undefended: Undefended, start: Start, veil: Obfuscator) -> float:
    """Share of the validation part that the server's half, as it is, answers rightly from messages."""
    return _accuracy(start.split.server.eval(), _validation(veil, start.val), undefended.data.val.y)


def train_network(
    network: nn.Module,
    inputs: Callable[[], Tensor],
    val: Tensor,
    undefended: Undefended,
    *,
    epochs: int,
    soft: Tensor | None = None,
) -> dict[str, Any]:
    """Train a network in place to find the target in tensors, and keep the best epoch on validation.

    Args:
        network: maps ``inputs`` to logits (N, n_classes); left in evaluation mode.
        inputs: called once per epoch for the training part's tensors (N, …).
        val: tensors of the validation part.
        undefended: its labels, seed, precision and progress.
        epochs: passes; Adam's rate falls from 1e-3 to zero along a cosine.
        soft: probabilities (N, n_classes) to learn beside the labels, with equal weight.

    Returns:
        ``epoch`` kept (0: as it was), ``val_accuracy`` of it, and ``val_untuned``.
    """
    data, recipe = undefended.data, undefended.recipe
    optimizer = torch.optim.Adam(network.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    untuned = _accuracy(network.eval(), val, data.val.y)
    best, kept, state = untuned, 0, deepcopy(network.state_dict())
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        for epoch in range(1, epochs + 1):
            _epoch(network.train(), inputs(), data.train.y, soft, optimizer, recipe.precision)
            schedule.step()
            found = _accuracy(network.eval(), val, data.val.y)
            if found > best:
                best, kept, state = found, epoch, deepcopy(network.state_dict())
            if undefended.progress:
                undefended.progress(epoch, epochs, f"validation {found:.1%}")
    network.load_state_dict(state)
    return {"epoch": kept, "val_accuracy": best, "val_untuned": untuned}


def _epoch(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    soft: Tensor | None,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
) -> None:
    device = next(network.parameters()).device
    for rows in torch.split(torch.randperm(len(x)), _BATCH):
        if len(rows) < 2:  # batch normalisation needs two
            continue
        with products(device, precision):
            logits = network(x[rows].to(device))
        loss = nn.functional.cross_entropy(logits.float(), y[rows].to(device))
        if soft is not None:
            loss = loss + nn.functional.cross_entropy(logits.float(), soft[rows].to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def _accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    device = next(network.parameters()).device
    logits = torch.cat([network(rows.to(device)).cpu() for rows in torch.split(x, 512)])
    return float((logits.argmax(1) == y).double().mean())


@torch.no_grad()
def _decoded(veil: Obfuscator, z: Tensor) -> Tensor:
    return torch.cat([veil.decode(veil.encode(rows)) for rows in torch.split(z, 512)])


def _validation(veil: Obfuscator, z: Tensor) -> Tensor:
    """Decoded messages, the same ones on every call."""
    with torch.random.fork_rng():
        torch.manual_seed(_VALIDATION_SEED)
        return _decoded(veil, z)
