"""Tuning tensors on unlabelled features, so that the server's answers are kept; the best epoch is."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from splitveil.errors import ModelError, RecipeError
from splitveil.models import Logits
from splitveil.obfuscate.features import Features, check_finite, logits_of
from splitveil.split import SplitModel

Progress = Callable[[int, int, str], None]
Weights = dict[str, Tensor]
Loss = Callable[[Weights, Tensor, Tensor, bool], Tensor]
"""Mean loss of features (B, *shape) whose answers are p (B, classes); True while training."""

EPOCHS = 20
MOST_NUMBERS = 2**29
"""Numbers of features that are kept in memory at most (2 GiB); of more images some are taken, evenly spread."""
_BATCH = 128
_HELD_OUT = 10  # every so many-th feature is held out, to choose the epoch by
_STEP = 0.02  # of Adam, in units of each tensor's own root mean square, since their scales differ by orders
_SERVER_STEP = 3e-4
MIXING = 0.3
"""α of the shares Beta(α, α) by which features are mixed: mostly near one of the two, now and then by halves."""
_LEAST = 1e-12  # chance below which an answer is taken as this, since its logarithm is needed


@dataclass(frozen=True, eq=False)
class Tuned:
    """What tuning found.

    Attributes:
        weights: the tensors, on the processor.
        loss: theirs on held-out features.
    """

    weights: Weights
    loss: float


@dataclass(frozen=True, eq=False)
class Lesson:
    """Features in memory, and the server's answers to them.

    Attributes:
        z: (N, *shape), on the processor.
        answers: probabilities (N, classes), where the server runs.
        teacher: the server that gives them, as logits; it stays as it is.
    """

    z: Tensor
    answers: Tensor
    teacher: nn.Module

    @classmethod
    def of(cls, split: SplitModel, features: Features) -> "Lesson":
        """What can be learnt from unlabelled features.

        Raises:
            ModelError: features or answers are not finite.
        """
        z = check_finite(features.table(MOST_NUMBERS // features.size), "features").reshape(-1, *features.shape)
        teacher = logits_of(split, features)
        logits = [_logits(teacher, rows.to(split.device)) for rows in torch.split(z, 512)]
        return cls(z, check_finite(torch.cat(logits), "the server's answers").softmax(1), teacher)

    def as_logits(self, server: nn.Module) -> nn.Module:
        """A copy of the server that is tuned along, giving logits as the teacher does."""
        return Logits(server) if isinstance(self.teacher, Logits) else server

    def tune(
        self, start: Weights, loss: Loss, *, epochs: int, seed: int, mixing: float = MIXING,
        server: nn.Module | None = None, progress: Progress | None = None,
    ) -> Tuned:  # fmt: skip
        """Minimise a loss over tensors, on mixtures of two features each and the server's answers to these.

        The server is sure of nearly every feature that it was trained on, and they are few. Mixtures are many, and the
        answers to them are not all sure; held-out features count as they are.

        Args:
            start: the tensors to begin with.
            loss: of them.
            epochs: passes; the step falls to zero along a cosine.
            seed: of the batches, the mixtures, and what the loss draws.
            mixing: α of the mixtures' shares; 0: features as they are.
            server: a module to be tuned along, in place.
            progress: called as (epochs done, epochs in all, text).

        Returns:
            The tensors of the epoch with the smallest loss on held-out features, the start included.

        Raises:
            RecipeError: epochs is negative, or mixing out of range.
            ModelError: the loss of the start is no finite number.
        """
        if epochs < 0:
            raise RecipeError(f"epochs={epochs} cannot be; tune for 0 epochs or more")
        check_mixing(mixing)
        weights = {name: value.detach().to(self.answers.device).clone() for name, value in start.items()}
        held = torch.arange(len(self.z)) % _HELD_OUT == 0
        learnt = torch.nonzero(~held)[:, 0]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            optimizer = torch.optim.Adam(_groups(weights, server))
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(epochs, 1))
            best, kept = math.inf, None
            for epoch in range(epochs + 1):
                if epoch:
                    self._epoch(weights, loss, learnt, optimizer, mixing)
                    schedule.step()
                found = self._held_out(weights, loss, held)
                if found < best:
                    best, kept = found, _copy(weights, server)
                if progress:
                    progress(epoch, epochs, f"divergence {found:.4f}")
        if kept is None:
            raise ModelError("the server's answers from messages are no finite numbers; look at the model's weights")
        if server is not None:
            server.load_state_dict(kept[1])
        return Tuned({name: value.cpu() for name, value in kept[0].items()}, best)

    @torch.enable_grad()
    def _epoch(
        self, weights: Weights, loss: Loss, rows: Tensor, optimizer: torch.optim.Optimizer, mixing: float
    ) -> None:  # fmt: skip
        device = self.answers.device
        for batch in torch.split(rows[torch.randperm(len(rows))], _BATCH):
            z, answers = self.z[batch].to(device), self.answers[batch.to(device)]
            if mixing:
                z = _mixed(z, mixing)
                answers = _logits(self.teacher, z).softmax(1)
            value = loss(weights, z, answers, True)
            optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    @torch.no_grad()
    def _held_out(self, weights: Weights, loss: Loss, held: Tensor) -> float:
        device, total = self.answers.device, 0.0
        for batch in torch.split(torch.nonzero(held)[:, 0], 512):
            total += len(batch) * float(loss(weights, self.z[batch].to(device), self.answers[batch.to(device)], False))
        return total / int(held.sum())


def part_of(progress: Progress | None, index: int, count: int) -> Progress | None:
    """The progress of one tuning among ``count`` that take as long each."""
    if progress is None:
        return None
    return lambda done, total, text: progress(index * total + done, count * total, text)


def check_mixing(mixing: float) -> None:
    """Raises `RecipeError` unless shares can be drawn: α far below 0.01 underflows in torch, and draws halves alone."""
    if mixing and not 0.01 <= mixing <= 100:
        raise RecipeError(f"mixing={mixing} cannot be; take a number from 0.01 to 100, or 0 for features as they are")


@torch.no_grad()
def _logits(server: nn.Module, z: Tensor) -> Tensor:
    """Of a copy, because a server may work in place on what it is given."""
    logits: Tensor = server(z.clone())
    return logits


def _mixed(z: Tensor, mixing: float) -> Tensor:
    """Each feature moved towards the one before it, by a share of its own (mixup: Zhang et al. 2018)."""
    share = torch.distributions.Beta(mixing, mixing).sample((len(z), *[1] * (z.dim() - 1)))
    return z + share.to(z) * (z.roll(1, 0) - z)


def _copy(weights: Weights, server: nn.Module | None) -> tuple[Weights, Weights]:
    """What there is to be kept of an epoch."""
    state: Weights = {} if server is None else server.state_dict()
    first, second = ({name: value.detach().clone() for name, value in part.items()} for part in (weights, state))
    return first, second


def divergence(answers: Tensor, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(answers ‖ softmax(logits)) in nats, mean over rows.

    With a temperature T both are softened, softmax(log answers / T) and softmax(logits / T), and the divergence is
    taken times T², which keeps the size of its gradients (Hinton, Vinyals and Dean 2015).
    """
    soft = answers if temperature == 1 else (answers.clamp(min=_LEAST).log() / temperature).softmax(-1)
    scores = (logits / temperature).log_softmax(-1)
    return temperature**2 * nn.functional.kl_div(scores, soft, reduction="batchmean")


def _groups(weights: Weights, server: nn.Module | None) -> list[dict[str, object]]:
    groups: list[dict[str, object]] = []
    for value in weights.values():
        value.requires_grad_()
        size = float(value.detach().square().mean().sqrt()) if value.numel() else 0.0
        groups.append({"params": [value], "lr": _STEP * (size or 0.05)})
    if server is not None:
        groups.append({"params": list(server.parameters()), "lr": _SERVER_STEP})
    return groups
