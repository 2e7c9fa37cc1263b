"""Means over test samples and seeds, and their differences, with intervals from the same resamples."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitveil.statistics import Bootstrap, Estimate, Floats, unseen_limit

TESTS = 10_000
"""Resamples of a p-value: of few ones the smallest possible p-value is too large to survive a correction."""

Bits = NDArray[np.bool_]
"""Which of the n test samples are right, (n,)."""

BySeed = Mapping[int, Bits]


@lru_cache(maxsize=4)
def resamples(n: int) -> Floats:
    """Weights of n samples, (1 + resamples, n): all samples once, then the resamples that all comparisons share."""
    return np.vstack([np.ones(n), Bootstrap(n).weights])


@lru_cache(maxsize=1)
def _many(n: int) -> Floats:
    return np.vstack([np.ones(n), Bootstrap(n, resamples=TESTS).weights])


def means(values: Sequence[NDArray[Any]]) -> Floats:
    """Mean over seeds and samples of (n,) each: the estimate, then its resamples, (1 + resamples,)."""
    return _means(values, resamples(len(values[0])))


def _means(values: Sequence[NDArray[Any]], weights: Floats) -> Floats:
    n = len(values[0])
    return over_seeds(np.stack([weights @ np.asarray(one, dtype=np.float64) / n for one in values]))


def over_seeds(scores: Floats) -> Floats:
    """Mean over the seeds of (seeds, 1 + resamples), each resample with its own draw of seeds.

    The interval so covers samples and seeds; from two or three seeds it is still too short, so plots and tables show
    the seeds' spread beside. One seed says nothing of others.
    """
    count, size = scores.shape
    draws = np.random.default_rng(0).integers(count, size=(count, size))
    draws[:, 0] = np.arange(count)
    return np.asarray(np.take_along_axis(scores, draws, axis=0).mean(0))


def estimate(scores: Floats) -> Estimate:
    """The first score with the 95 % percentile interval of the others."""
    low, high = np.quantile(scores[1:], [0.025, 0.975])
    return Estimate(scores[0], min(low, scores[0]), max(high, scores[0]))


def difference(values: Sequence[NDArray[Any]]) -> Estimate:
    """Mean of paired differences (n,) of each seed, with its interval.

    Where no sample differs, no resample does: the interval is then what n samples without a difference leave open.
    """
    if not any(np.any(one) for one in values):
        open_ = unseen_limit(len(values[0]))
        return Estimate(0.0, -open_, open_)
    return estimate(means(values))


def p_value(values: Sequence[NDArray[Any]]) -> float:
    """Two-sided p-value against 0 of the mean of paired differences (n,) of each seed, by the bootstrap."""
    scores = _means(values, _many(len(values[0])))
    tail = min(int((scores[1:] <= 0).sum()), int((scores[1:] >= 0).sum()))
    return min(1.0, 2 * (1 + tail) / len(scores))


def gap(first: BySeed, second: BySeed) -> Estimate | None:
    """Mean of first less second over the samples and their common seeds, paired; None without a common seed."""
    differences = [first[seed].astype(float) - second[seed] for seed in first if seed in second]
    return difference(differences) if differences else None
