"""What an adversary may read, and the one call that every attack answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from splitveil.message import Obfuscator
from splitveil.split import SplitModel


@dataclass(frozen=True, eq=False)
class Public:
    """What everyone knows (paper section 2.1): both halves of the model and the obfuscator, never a secret.

    Attributes:
        split: the model as it is cut.
        veil: the obfuscator; None where the adversary sees the server's answer instead of a message.
    """

    split: SplitModel
    veil: Obfuscator | None


@dataclass(frozen=True, eq=False)
class View:
    """All that an adversary may read. A new field needs a row in docs/threat-model.md.

    Attributes:
        sent: messages as decoded from the wire, (N, *message).
        kept: components that each frame held, (N,): a message's length is part of it.
        public: what everyone knows.
        features: raw features (N, *feature) of the adversary's own samples, whose images it has; None on the messages
            of others, which is what it is scored on.
    """

    sent: Tensor
    kept: Tensor
    public: Public
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.sent)

    @property
    def length(self) -> Tensor:
        """The frames' lengths as a share of the longest possible one, (N,)."""
        return self.kept / max(self.sent.shape[1], 1)

    def vectors(self) -> Tensor:
        """Everything sent, as one row per message, the length last: (N, elements + 1)."""
        return torch.cat([self.sent.flatten(1), self.length[:, None].to(self.sent)], dim=1)


Guess = Callable[[View], Tensor]
"""Log-probabilities (N, values of the secret) for a view; what a fitted attack is."""


class Attack(Protocol):
    """An adversary: learns a secret from views of its own samples, then guesses it for others."""

    @property
    def name(self) -> str:
        """Short name for tables."""
        ...

    def fit(self, train: View, secret: Tensor, val: View, val_secret: Tensor, *, n_values: int, seed: int) -> Guess:
        """Learn to guess the secret.

        Args:
            train: messages of the adversary's own samples.
            secret: their secret, (N,), 0 to n_values − 1.
            val: more of them, to choose settings on.
            val_secret: their secret.
            n_values: how many values the secret has.
            seed: of whatever is random.
        """
        ...


@dataclass(frozen=True, eq=False)
class Job:
    """What one attack is fitted to; the arguments of `Attack.fit`."""

    train: View
    secret: Tensor
    val: View
    val_secret: Tensor
    n_values: int
    seed: int


def fit_all(attack: Attack, jobs: Sequence[Job]) -> list[Guess]:
    """Fit an attack to every job: together where it has a ``fit_many``, else one after the other."""
    if fit_many := getattr(attack, "fit_many", None):
        return fit_many(jobs)  # type: ignore[no-any-return]
    return [
        attack.fit(job.train, job.secret, job.val, job.val_secret, n_values=job.n_values, seed=job.seed) for job in jobs
    ]
