"""Counting: how often each secret came with each finite message."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from splitveil.attack.components import best_weight, mixed, prior_of
from splitveil.attack.view import Guess, View
from splitveil.errors import AttackError

Posterior = Callable[[Tensor], Tensor]
"""Probabilities (N, values of the secret) for digits (N, numbers), in float64."""


@dataclass(frozen=True)
class Frequencies:
    """The secret's posterior by counts, for messages of digits; with few messages this is the optimal guesser.

    Counts of whole messages are smoothed (Dirichlet) towards the prior or towards the posterior by single digits
    (naive Bayes), whichever is better; the latter stands in for messages that are rare or were never seen. What to
    smooth towards, how strongly, and the share of the prior that is mixed in are chosen on validation.

    Attributes:
        name: for tables.
        strengths: of the smoothing, in samples, each is tried; where digits repeat each other, strong smoothing keeps
            their evidence from counting twice.
    """

    name: str = "frequencies"
    strengths: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0, 1000.0)

    def fit(
        self,
        train: View,
        secret: Tensor,
        val: View,
        val_secret: Tensor,
        *,
        n_values: int,
        seed: int,  # noqa: ARG002
    ) -> Guess:
        """See `Attack.fit`; raises `AttackError` where messages are real numbers, which hardly ever come twice."""
        levels = train.levels
        if levels is None:
            raise AttackError(
                f"the attack {self.name!r} counts finite messages, and these are of real numbers; leave it out of the "
                "suite, finite messages meet it anyway"
            )
        prior = prior_of(secret, n_values)

        def judged(posterior: Posterior) -> tuple[float, float, float, Posterior]:
            full = posterior(val.sent)
            weight, loss = best_weight(full, prior, val_secret)
            accuracy = float((mixed(full, prior, weight).argmax(1) == val_secret).float().mean())
            return accuracy, -loss, weight, posterior

        counts = _Counts(train.sent, secret, n_values)
        found = [judged(counts.towards(lambda digits: prior.expand(len(digits), -1), each)) for each in self.strengths]
        if len(levels) > 1:
            evidence = [_evidence(train.sent, levels, secret, prior, each) for each in self.strengths]
            by_digit = [judged(_by_digit(gains, prior)) for gains in evidence]
            base = max(by_digit, key=lambda each: each[:2])
            found += [base, *(judged(counts.towards(base[3], each)) for each in self.strengths)]
        _, _, weight, best = max(found, key=lambda each: each[:2])
        return lambda view: mixed(best(view.sent), prior, weight)


class _Counts:
    """How often each value of a secret came with each message, (messages + 1, values); the last is of those unseen."""

    def __init__(self, digits: Tensor, secret: Tensor, n_values: int) -> None:
        rows = _rows(digits)
        self._places = {row: place for place, row in enumerate(dict.fromkeys(rows))}
        self._counts = torch.zeros(len(self._places) + 1, n_values, dtype=torch.float64)
        places = torch.tensor([self._places[row] for row in rows])
        self._counts.index_put_((places, secret), torch.ones((), dtype=torch.float64), accumulate=True)

    def towards(self, base: Posterior, strength: float) -> Posterior:
        """The posterior by whole messages, where the base counts for so many samples of each."""

        def posterior(digits: Tensor) -> Tensor:
            counts = self._counts[[self._places.get(row, -1) for row in _rows(digits)]]
            return (counts + strength * base(digits)) / (counts.sum(1, keepdim=True) + strength)

        return posterior


def _rows(digits: Tensor) -> list[bytes]:
    return [row.tobytes() for row in digits.numpy()]


def _evidence(digits: Tensor, levels: tuple[int, ...], secret: Tensor, prior: Tensor, strength: float) -> list[Tensor]:
    """log p(digit | secret) − log p(digit) of each digit, (level, values); smoothed towards no evidence."""
    n_values, gains = len(prior), []
    for digit, level in zip(digits.T, levels, strict=True):
        counts = torch.bincount(digit * n_values + secret, minlength=level * n_values).view(level, n_values).double()
        share = (counts.sum(1, keepdim=True) + 1) / (len(digits) + level)
        gains.append(((counts + strength * share) / ((counts.sum(0) + strength) * share)).log())
    return gains


def _by_digit(gains: list[Tensor], prior: Tensor) -> Posterior:
    """The posterior by single digits, as if they were independent given the secret (naive Bayes)."""

    def posterior(digits: Tensor) -> Tensor:
        evidence = torch.stack([gain[digit] for gain, digit in zip(gains, digits.T, strict=True)]).sum(0)
        return (prior.log() + evidence).softmax(1)

    return posterior
