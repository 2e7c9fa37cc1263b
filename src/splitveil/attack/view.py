"""What an adversary may read, and the one call that every attack answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from splitveil.message import Obfuscator
from splitveil.split import SplitModel

COLUMNS = 1024
"""Values of all digits together, up to which each has a column in `View.vectors`."""


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

    def at(self, rows: Tensor) -> "View":
        """Some of the messages, by their indices."""
        features = None if self.features is None else self.features[rows]
        return View(self.sent[rows], self.kept[rows], self.public, features)

    @property
    def length(self) -> Tensor:
        """The frames' lengths as a share of the longest possible one, (N,)."""
        return self.kept / max(self.sent.shape[1], 1)

    @property
    def levels(self) -> tuple[int, ...] | None:
        """Of digits, how many values each takes; None where real numbers are read, whatever the obfuscator sends."""
        veil = self.public.veil
        return None if veil is None or self.sent.is_floating_point() else veil.message.levels

    def numbers(self) -> Tensor:
        """Everything sent, digits as plain numbers, as one row per message, the length last: (N, elements + 1)."""
        sent = self._real()
        return torch.cat([sent.flatten(1), self.length[:, None].to(sent)], dim=1)

    def vectors(self) -> Tensor:
        """`numbers`, and beside digits what weighted sums can read: (N, elements + 1 + columns).

        A digit may be a name and no quantity, so each of its values has a column of zeros and ones; where these were
        more than `COLUMNS`, the decoded feature takes their place.
        """
        numbers = self.numbers()
        if self.levels is None:
            return numbers
        if sum(self.levels) > COLUMNS:
            return torch.cat([numbers, self.decoded().flatten(1)], dim=1)
        columns = [one_hot(digit, level) for digit, level in zip(self.sent.T, self.levels, strict=True)]
        return torch.cat([numbers, *(each.to(numbers) for each in columns)], dim=1)

    @torch.no_grad()
    def decoded(self) -> Tensor:
        """Features (N, *feature) that the messages decode to; what was sent where there is no such feature."""
        veil, device = self.public.veil, self.public.split.device
        if veil is None or veil.message.carries != "feature":
            return self._real()
        return torch.cat([veil.decode(rows.to(device)).cpu() for rows in torch.split(self.sent, 512)])

    def _real(self) -> Tensor:
        return self.sent if self.sent.is_floating_point() else self.sent.float()


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
