"""Estimates with 95 % intervals: accuracies, paired differences, and bootstrapped scores."""

import math
from collections.abc import Callable, Sequence
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

_Z = 1.959963984540054  # the normal distribution's 97.5 % point
_RESAMPLES = 1000
_FEW = 64  # positive samples, up to which comparing each with all is faster than sorting all
_NUISANCE = 1e-4  # chance that the interval of a nuisance parameter misses it

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
        resamples: how many.
    """

    def __init__(self, n: int, seed: int = 0, resamples: int = _RESAMPLES) -> None:
        self.n = n
        self.seed = seed
        self.resamples = resamples

    @cached_property
    def weights(self) -> Floats:
        """How often each resample holds each sample, (resamples, n), each row summing to n."""
        generator = np.random.default_rng(self.seed)
        return generator.multinomial(self.n, np.full(self.n, 1 / self.n), size=self.resamples).astype(np.float64)

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
    wins = (_wins_of_few if positive.sum() <= _FEW else _wins_of_many)(scores, positive, weights)
    with np.errstate(invalid="ignore"):
        return np.asarray(wins / ((weights @ positive) * (weights @ ~positive)))


def _wins_of_few(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """Pairs that a positive sample wins, weighted, (R,): a product with every pair's outcome."""
    mine, other = scores[positive], scores[:, None]
    won = ((other < mine) + (other == mine) / 2) * ~positive[:, None]
    return np.asarray((weights[:, positive] * (weights @ won)).sum(1))


def _wins_of_many(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """The same by sorting, which does not take longer where more are positive."""
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))  # of each run of ties; -inf is a score too
    weight = weights[:, order]
    above = np.add.reduceat(weight * positive[order], starts, axis=1)
    below = np.add.reduceat(weight * ~positive[order], starts, axis=1)
    return np.asarray((above * (np.cumsum(below, axis=1) - below / 2)).sum(1))


def _mean_of_known(scores: Floats) -> Floats:
    """Row means of (R, values) over what is a number: a resample may miss a rare value, or all but one."""
    known = ~np.isnan(scores)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, scores, 0.0).sum(1) / known.sum(1))


def unseen_limit(n: int) -> float:
    """Largest share of which n samples may show nothing: Clopper and Pearson's 97.5 % limit of 0 out of n."""
    return float(1 - 0.025 ** (1 / n))


def leaked_bits(log_probabilities: Floats, secret: Integers) -> Callable[[Floats], Floats]:
    """H(secret) − cross-entropy of the log-probabilities, (N, values), in bits; as a score for `Bootstrap`.

    The entropy is the plug-in one, which is biased low, so that leaked bits are not overstated by it; each resample
    has its own.
    """
    is_value = (secret[:, None] == np.unique(secret)).astype(np.float64)
    told = log_probabilities[np.arange(len(secret)), secret]

    def score(weights: Floats) -> Floats:
        shares = weights @ is_value / weights.sum(1, keepdims=True)
        entropy = -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(1)
        return np.asarray((entropy + weights @ told / weights.sum(1)) / math.log(2))

    return score


def share_upper_limit(hits: int, n: int, level: float) -> float:
    """Exact upper limit of a binomial share, missed with chance at most ``level`` (Clopper and Pearson 1934).

    Args:
        hits: samples that count, 0 to n.
        n: independent samples, at least 1.
        level: the chance that the true share lies above.
    """
    if hits == n:
        return 1.0
    return _crossing(lambda share: share_p_value(hits, n, share) > level, hits / n, 1.0)


def share_p_value(hits: int, n: int, limit: float) -> float:
    """Exact p-value against "the true share is at least ``limit``": the chance of ``hits`` or fewer at the limit."""
    if not 0 < limit < 1:
        return 1.0 if limit <= 0 or hits == n else 0.0
    k = np.arange(hits + 1)
    factorials = _log_factorials(n)
    chances = factorials[n] - factorials[k] - factorials[n - k] + k * math.log(limit) + (n - k) * math.log1p(-limit)
    return min(1.0, float(np.exp(chances).sum()))


def drop_p_value(n: int, lost: int, gained: int, limit: float) -> float:
    """P-value against "the true drop is at least ``limit``", from a paired comparison; valid at every sample size.

    Of n independent samples, ``lost`` were right before and wrong after, ``gained`` wrong before and right after.
    The true drop is the difference of the two chances. It does not fix the distribution of the counts: the
    discordance rate ψ (the chance of either) is a nuisance. After Berger and Boos (1994) the p-value is the largest
    one over an exact confidence interval of ψ, plus the 1e-4 by which that interval may miss. Outcomes are ordered by
    (n·limit − lost + gained) / sqrt(lost + gained + n·|limit|/2 + 1), about the distance from the limit in standard
    deviations; any order would be valid, this one gives limits as tight as Tango's approximate ones (1998).

    For a given ψ the distribution is computed from the trinomial exactly, but for a mass below 1e-12. Over ψ it is
    taken on a grid, in steps of an eighth of the discordant count's standard deviation. A drop observed at the limit
    or above proves nothing, and gives 1.

    Args:
        n: samples.
        lost: samples that the change made wrong.
        gained: samples that the change made right.
        limit: the drop that is to be excluded, as a share, above −1 and below 1.
    """
    if lost - gained >= n * limit:
        return 1.0
    high = share_upper_limit(lost + gained, n, _NUISANCE / 2)
    low = 1 - share_upper_limit(n - lost - gained, n, _NUISANCE / 2)
    if high <= abs(limit):
        return _NUISANCE
    rates = _rates(n, max(low, abs(limit), 1e-6 * high), high)
    l, g = _as_extreme(n, lost, gained, limit, rates)  # noqa: E741 (lost and gained, every pair of counts)
    factorials = _log_factorials(n)
    ways = factorials[n] - factorials[l] - factorials[g] - factorials[n - l - g]
    largest = 0.0
    for rate in rates:
        up, down = (rate + limit) / 2, (rate - limit) / 2
        largest = max(
            largest, float(np.exp(ways + _power(l, up) + _power(g, down) + _power(n - l - g, 1 - rate)).sum())
        )
    return min(1.0, largest + _NUISANCE)


def drop_upper_limit(n: int, lost: int, gained: int, level: float) -> float:
    """Upper confidence limit of the drop, as a share: from here on `drop_p_value` is at most ``level``."""
    estimate = (lost - gained) / n
    return _crossing(lambda limit: drop_p_value(n, lost, gained, limit) > level, estimate, 1.0)


def _power(count: Integers, chance: float) -> Floats:
    """log of chance ** count, with 0 ** 0 = 1."""
    if chance <= 0:
        return np.where(count > 0, -np.inf, 0.0)
    return np.asarray(count * math.log(chance))


def _rates(n: int, low: float, high: float) -> Floats:
    """A grid over the discordance rate, even on the scale √ψ, on which the count's standard deviation is constant."""
    steps = 1 + math.ceil(8 * 2 * math.sqrt(n) * (math.sqrt(high) - math.sqrt(low)))
    return np.asarray(np.linspace(math.sqrt(low), math.sqrt(high), steps + 1) ** 2)


def _as_extreme(n: int, lost: int, gained: int, limit: float, rates: Floats) -> tuple[Integers, Integers]:
    """All counts (lost, gained) whose statistic is at least the observed one, but those of negligible chance."""

    def deviation(discordant: Integers) -> Floats:
        return np.asarray(np.sqrt(discordant + n * abs(limit) / 2 + 1))

    observed = (n * limit - (lost - gained)) / deviation(np.array(lost + gained))
    few, many = n * rates[0], n * rates[-1]
    d = np.arange(max(0, math.floor(few - 8 * math.sqrt(few))), min(n, math.ceil(many + 8 * math.sqrt(many) + 20)) + 1)
    most = np.floor((d + n * limit - observed * deviation(d)) / 2 + 1e-9).astype(np.int64)
    share = (1 + min(limit / rates[0], limit / rates[-1])) / 2  # the smallest chance that a discordant one is lost
    least = np.maximum(0, np.floor(d * share - 4 * np.sqrt(d))).astype(np.int64)
    sizes = np.maximum(0, np.minimum(most, d) - least + 1)
    l = np.repeat(least - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())  # noqa: E741
    return l, np.repeat(d, sizes) - l


def _crossing(inside: Callable[[float], bool], low: float, high: float) -> float:
    """Where ``inside`` turns false between low and high, rounded up by at most 1e-5."""
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) else (low, middle)
    return high


@cache
def _log_factorials(n: int) -> Floats:
    return np.append(0.0, np.cumsum(np.log(np.arange(1, n + 1))))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for all comparisons that make one claim, in the order given (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(factors * np.asarray(p_values, dtype=np.float64)[order]))
    return [float(p) for p in corrected]


def isotonic(values: Floats) -> Floats:
    """The nearest non-decreasing sequence to each row of (R, K), in least squares (max-min formula)."""
    size = values.shape[1]
    sums = np.pad(np.cumsum(values, axis=1), ((0, 0), (1, 0)))
    fitted = np.full(values.shape, -np.inf)
    for start in range(size):
        means = (sums[:, start + 1 :] - sums[:, [start]]) / np.arange(1, size - start + 1)
        least = np.minimum.accumulate(means[:, ::-1], axis=1)[:, ::-1]
        fitted[:, start:] = np.maximum(fitted[:, start:], least)
    return fitted
