"""Estimates with 95 % intervals: accuracies, paired differences, and bootstrapped scores."""

import math
from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

_Z = 1.959963984540054  # the normal distribution's 97.5 % point
_RESAMPLES = 1000

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Estimate(float):
    """A number that knows its 95 % interval; computes as the plain number that it is.

    Attributes:
        interval: lower and upper limit.
    """

    interval: tuple[float, float]

    def __new__(cls, value: float, low: float, high: float) -> "Estimate":
        """The value with the limits of its interval."""
        self = super().__new__(cls, value)
        self.interval = (float(low), float(high))
        return self

    def __repr__(self) -> str:
        low, high = self.interval
        return f"Estimate({float(self):.4f}, {low:.4f}, {high:.4f})"

    def __getnewargs__(self) -> tuple[float, float, float]:  # type: ignore[override]
        return (float(self), *self.interval)  # copies and pickles need the limits too

    def as_row(self) -> dict[str, float]:
        """For JSON: value, low, high."""
        return {"value": float(self), "low": self.interval[0], "high": self.interval[1]}


def proportion(correct: NDArray[np.bool_]) -> Estimate:
    """Share of true values, with Wilson's interval."""
    n, p = len(correct), float(np.mean(correct))
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
    # Rounding must not put an estimate of exactly 0 or 1 outside its own interval.
    return Estimate(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)))


class Bootstrap:
    """Resamples of one test set: every score on it uses the same ones, so that differences are paired.

    Args:
        n: samples in the test set.
        seed: of the resampling.
    """

    def __init__(self, n: int, seed: int = 0) -> None:
        self.n = n
        self.seed = seed

    @cached_property
    def weights(self) -> Floats:
        """How often each resample holds each sample, (resamples, n), each row summing to n."""
        generator = np.random.default_rng(self.seed)
        return generator.multinomial(self.n, np.full(self.n, 1 / self.n), size=_RESAMPLES).astype(np.float64)

    def mean(self, values: NDArray[np.generic]) -> Estimate:
        """Mean over the samples."""
        x = np.asarray(values, dtype=np.float64)
        return self.score(lambda weights: weights @ x / self.n)

    def score(self, of: Callable[[Floats], Floats]) -> Estimate:
        """Any score that is a function of the samples' weights, (R, n) to (R,); percentile interval."""
        value = float(of(np.ones((1, self.n)))[0])
        low, high = np.nanquantile(of(self.weights), [0.025, 0.975])
        return Estimate(value, min(low, value), max(high, value))


def balanced_accuracy(correct: NDArray[np.bool_], secret: Integers) -> Callable[[Floats], Floats]:
    """Mean over the secret's values of the share guessed right; as a score for `Bootstrap`."""
    values = np.unique(secret)
    is_value = (secret[:, None] == values).astype(np.float64)
    hits = is_value * np.asarray(correct, dtype=np.float64)[:, None]

    def score(weights: Floats) -> Floats:
        with np.errstate(invalid="ignore"):
            return _mean_of_known((weights @ hits) / (weights @ is_value))

    return score


def macro_auc(log_probabilities: Floats, secret: Integers) -> Callable[[Floats], Floats]:
    """Mean over the secret's values of the area under the one-against-rest curve; as a score for `Bootstrap`."""

    def score(weights: Floats) -> Floats:
        areas = [_auc(log_probabilities[:, v], secret == v, weights) for v in np.unique(secret)]
        return _mean_of_known(np.stack(areas, axis=1))

    return score


def _auc(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """Chance that a positive sample scores above a negative one, ties counting half, for each row of weights."""
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))  # of each run of ties; -inf is a score too
    weight = weights[:, order]
    above = np.add.reduceat(weight * positive[order], starts, axis=1)
    below = np.add.reduceat(weight * ~positive[order], starts, axis=1)
    wins = (above * (np.cumsum(below, axis=1) - below / 2)).sum(1)
    with np.errstate(invalid="ignore"):
        return np.asarray(wins / (above.sum(1) * below.sum(1)))


def _mean_of_known(scores: Floats) -> Floats:
    """Row means of (R, values) over what is a number: a resample may miss a rare value, or all but one."""
    known = ~np.isnan(scores)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, scores, 0.0).sum(1) / known.sum(1))


def entropy_bits(secret: Integers) -> float:
    """Plug-in entropy of a label's distribution, in bits (biased low, so leaked bits are not overstated by it)."""
    p = np.bincount(secret) / len(secret)
    return float(-(p[p > 0] * np.log2(p[p > 0])).sum())
