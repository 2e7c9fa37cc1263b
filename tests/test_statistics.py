"""Estimates against independent implementations, closed forms, and their own promised coverage."""

import copy
import functools
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binom, binomtest, norm
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from splitveil.statistics import (
    Bootstrap,
    Estimate,
    balanced_accuracy,
    drop_p_value,
    drop_upper_limit,
    leaked_bits,
    macro_auc,
    proportion,
    share_p_value,
    share_upper_limit,
)


@given(st.integers(1, 3000), st.data())
def test_a_proportion_has_wilsons_interval(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    found = proportion(np.arange(n) < hits)
    expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert float(found) == hits / n
    np.testing.assert_allclose(found.interval, expected, rtol=1e-9, atol=1e-12)
    assert found.interval[0] <= found <= found.interval[1]


def test_an_estimate_is_a_number_that_survives_json_and_copies() -> None:
    found = Estimate(0.25, 0.125, 0.5)
    assert found + 1 == 1.25
    assert found < 0.3
    assert f"{found:.1%}" == "25.0%"
    assert repr(found) == "Estimate(0.2500, 0.1250, 0.5000)"
    assert json.loads(json.dumps(found)) == 0.25
    assert json.loads(json.dumps(found.as_row())) == {"value": 0.25, "low": 0.125, "high": 0.5}
    for twin in (copy.copy(found), copy.deepcopy(found), pickle.loads(pickle.dumps(found))):  # noqa: S301 (our own)
        assert twin == found
        assert twin.interval == (0.125, 0.5)


def draw(seed: int, n: int, values: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n, values) and a secret in which every value occurs."""
    random = np.random.default_rng(seed)
    secret = random.permutation(np.concatenate([np.arange(values), random.integers(0, values, n - values)]))
    scores = random.normal(size=(n, values)) + 0.7 * np.eye(values)[secret]
    return np.round(scores) if ties else scores, secret


@given(st.sampled_from([40, 400]), st.integers(0, 2**32 - 1), st.integers(2, 5), st.booleans())
def test_auc_is_sklearns_with_ties_and_with_weights(n: int, seed: int, values: int, ties: bool) -> None:
    scores, secret = draw(seed, n, values, ties)  # many samples are sorted, few compared
    weights = np.random.default_rng(seed + 1).integers(1, 4, size=(3, n)).astype(float)
    expected = [
        np.mean([roc_auc_score(secret == v, scores[:, v], sample_weight=row) for v in range(values)]) for row in weights
    ]
    np.testing.assert_allclose(macro_auc(scores, secret)(weights), expected, rtol=1e-12)


def test_auc_counts_scores_of_minus_infinity_as_ties() -> None:
    scores = np.array([[-np.inf], [-np.inf], [-np.inf], [0.0]])
    secret = np.array([0, 1, 1, 0])
    below = np.where(np.isinf(scores), -1e9, scores)
    expected = roc_auc_score(secret == 0, below[:, 0])
    both = np.hstack([scores, -below])
    np.testing.assert_allclose(macro_auc(both, secret)(np.ones((1, 4))), [expected])
    many, weights = np.tile(both, (40, 1)), np.ones((1, 160))  # as many positive ones as are sorted
    np.testing.assert_allclose(macro_auc(many, np.tile(secret, 40))(weights), [expected])


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_balanced_accuracy_is_sklearns(seed: int, values: int) -> None:
    scores, secret = draw(seed, 40, values, ties=False)
    guess = scores.argmax(1)
    weights = np.random.default_rng(seed + 1).integers(1, 4, size=(3, 40)).astype(float)
    expected = [balanced_accuracy_score(secret, guess, sample_weight=row) for row in weights]
    np.testing.assert_allclose(balanced_accuracy(guess == secret, secret)(weights), expected, rtol=1e-12)


def test_scores_leave_out_a_value_that_a_resample_misses() -> None:
    secret, correct = np.array([0, 0, 1]), np.array([True, False, True])
    weights = np.array([[1.0, 1.0, 1.0], [1.0, 2.0, 0.0]])
    np.testing.assert_allclose(balanced_accuracy(correct, secret)(weights), [0.75, 1 / 3])
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    found = macro_auc(scores, secret)(weights)
    assert found[0] == 0.5
    assert np.isnan(found[1])  # nothing to compare with


def test_a_rare_value_leaves_the_interval_whole() -> None:
    secret = np.array([0] * 7 + [1])  # a third of the resamples hold one value only
    found = Bootstrap(8).score(macro_auc(np.random.default_rng(0).normal(size=(8, 2)), secret))
    assert 0 <= found.interval[0] <= found <= found.interval[1] <= 1


def test_resamples_have_the_size_of_the_set_and_depend_on_the_seed_alone() -> None:
    weights = Bootstrap(50, seed=3).weights
    assert weights.shape == (1000, 50)
    assert (weights.sum(1) == 50).all()
    assert weights.std() == pytest.approx(np.sqrt(49 / 50), rel=0.02)
    np.testing.assert_array_equal(weights, Bootstrap(50, seed=3).weights)
    assert (weights != Bootstrap(50, seed=4).weights).any()


def test_the_bootstrap_of_a_mean_is_the_normal_interval() -> None:
    x = np.random.default_rng(1).normal(2.0, 3.0, size=2000)
    found = Bootstrap(2000).mean(x)
    half = 1.96 * x.std() / np.sqrt(2000)
    assert float(found) == pytest.approx(x.mean())
    np.testing.assert_allclose(found.interval, (x.mean() - half, x.mean() + half), atol=0.15 * half)


def test_the_bootstraps_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(2)
    covered = 0
    for trial in range(300):
        low, high = Bootstrap(100, seed=trial).mean(random.exponential(1.0, size=100)).interval
        covered += low <= 1.0 <= high
    assert 0.90 <= covered / 300 <= 0.98  # skewed data cover a little less than 95 %


def test_paired_differences_are_narrower_than_separate_ones() -> None:
    random = np.random.default_rng(5)
    first = random.random(500) < 0.7
    second = first ^ (random.random(500) < 0.05)  # two attacks that mostly agree
    boot = Bootstrap(500)
    low, high = boot.mean(first.astype(float) - second).interval
    apart = [np.diff(boot.mean(which).interval)[0] for which in (first, second)]
    assert high - low < 0.6 * np.hypot(*apart)


@pytest.mark.parametrize(
    ("counts", "bits"),
    [([4, 4], 1.0), ([1] * 8, 3.0), ([5, 0, 0], 0.0), ([1, 0, 3], 2 - 0.75 * np.log2(3))],
)
def test_who_knows_the_secret_has_its_entropy(counts: list[int], bits: float) -> None:
    secret = np.repeat(np.arange(len(counts)), counts)
    certain = np.where(np.eye(len(counts))[secret] > 0, 0.0, -np.inf)
    assert leaked_bits(certain, secret)(np.ones((1, len(secret)))) == pytest.approx([bits], abs=1e-12)


def test_who_knows_the_frequencies_has_nothing() -> None:
    secret = np.repeat(np.arange(3), [1, 2, 5])
    prior = np.log(np.array([1, 2, 5]) / 8)
    assert leaked_bits(np.tile(prior, (8, 1)), secret)(np.ones((1, 8))) == pytest.approx([0.0], abs=1e-12)


@pytest.mark.parametrize("told", [0.999, 0.6])
def test_the_interval_of_bits_holds_the_truth_as_often_as_it_says(told: float) -> None:
    """The secret is drawn anew as well, so that its entropy is an estimate like the rest."""
    generator = np.random.default_rng(0)
    prior = np.array([0.1, 0.2, 0.3, 0.4])
    # An attack that gives the true value so much, whatever it is: its cross-entropy is known.
    truth = -(prior * np.log2(prior)).sum() + np.log2(told)
    draws, held = 200, 0
    for seed in range(draws):
        secret = generator.choice(4, size=300, p=prior)
        log_probabilities = np.log(np.where(np.eye(4)[secret] > 0, told, (1 - told) / 3))
        low, high = Bootstrap(300, seed=seed).score(leaked_bits(log_probabilities, secret)).interval
        held += low <= truth <= high
    assert 0.88 * draws < held <= 0.99 * draws


@given(st.integers(1, 4000), st.data())
def test_the_exact_limit_of_a_share_is_clopper_and_pearsons(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    limit = data.draw(st.floats(0.0, 1.0))
    assert share_p_value(hits, n, limit) == pytest.approx(binom.cdf(hits, n, limit), rel=1e-8, abs=1e-12)
    expected = beta.ppf(0.99, hits + 1, n - hits) if hits < n else 1.0
    found = share_upper_limit(hits, n, 0.01)
    assert expected - 1e-9 <= found <= expected + 1.1e-5


@functools.cache
def every_p_value(n: int, limit: float) -> np.ndarray:
    """(lost, gained, p-value) of every outcome, (outcomes, 3)."""
    counts = [(lost, gained) for lost in range(n + 1) for gained in range(n + 1 - lost)]
    return np.array([(lost, gained, drop_p_value(n, lost, gained, limit)) for lost, gained in counts])


def chance_of_rejecting(n: int, limit: float, level: float, drop: float, rate: float) -> float:
    """Exactly, over all outcomes, under a true drop and a true rate of discordance."""
    lost, gained, p = every_p_value(n, limit)[:, [0, 1, 2]].T
    total = lost + gained
    chance = binom.pmf(total, n, rate) * binom.pmf(lost, total, (1 + drop / rate) / 2 if rate else 0.5)
    return float(chance[p <= level].sum())


@pytest.mark.parametrize("limit", [-0.1, 0.0, 0.03, 0.1, 0.4])
@pytest.mark.parametrize("n", [12, 30])
def test_the_drops_p_value_is_valid_whatever_the_rate_of_discordance(n: int, limit: float) -> None:
    largest = 0.0
    for rate in np.linspace(abs(limit), 1, 60):
        for drop in {limit, (limit + rate) / 2}:
            for level in (0.2, 0.05, 0.01, 0.001):
                chance = chance_of_rejecting(n, limit, level, drop, rate)
                assert chance <= level
                largest = max(largest, chance / level)
    assert largest > 0.5  # valid, but not by never rejecting


@pytest.mark.parametrize(
    ("lost", "gained", "limit"), [(3, 2, 0.1), (0, 0, 0.05), (1, 6, 0.0), (9, 4, 0.25), (0, 8, -0.1)]
)
def test_the_drops_p_value_is_the_largest_over_an_exact_interval_of_the_rate(
    lost: int, gained: int, limit: float
) -> None:
    n, d = 40, lost + gained
    low, high = beta.ppf(5e-5, d, n - d + 1) if d else 0.0, beta.ppf(1 - 5e-5, d + 1, n - d)
    counts = np.array([(total, one) for total in range(n + 1) for one in range(total + 1)])
    total, one = counts.T
    evidence = (n * limit - 2 * one + total) / np.sqrt(total + n * abs(limit) / 2 + 1)
    extreme = evidence >= (n * limit - lost + gained) / np.sqrt(d + n * abs(limit) / 2 + 1) - 1e-9
    chances = [
        (binom.pmf(total, n, rate) * binom.pmf(one, total, (1 + limit / rate) / 2))[extreme].sum()
        for rate in np.linspace(max(low, abs(limit), 1e-9), high, 400)
    ]
    assert drop_p_value(n, lost, gained, limit) == pytest.approx(max(chances) + 1e-4, rel=2e-3)


def tango_p_value(n: int, lost: int, gained: int, limit: float) -> float:
    """The score test of a paired difference (Tango 1998), which holds approximately."""
    b = -lost - gained + (2 * n - lost + gained) * limit
    rate = (np.sqrt(b * b + 8 * n * gained * limit * (1 - limit)) - b) / (4 * n)
    return float(norm.cdf((lost - gained - n * limit) / np.sqrt(n * (2 * rate + limit * (1 - limit)))))


@pytest.mark.parametrize(
    ("n", "lost", "gained"), [(1500, 10, 8), (1500, 30, 15), (3556, 60, 40), (3556, 200, 170), (1500, 5, 9)]
)
def test_the_drops_limit_is_about_as_tight_as_the_approximate_one(n: int, lost: int, gained: int) -> None:
    level, estimate = 0.05 / 6, (lost - gained) / n
    grid = np.linspace(estimate, estimate + 0.05, 5001)
    approximate = next(limit for limit in grid if tango_p_value(n, lost, gained, limit) <= level)
    found = drop_upper_limit(n, lost, gained, level)
    assert 0.94 <= (found - estimate) / (approximate - estimate) <= 1.06
    assert drop_p_value(n, lost, gained, found) <= level < drop_p_value(n, lost, gained, found - 2e-5)


def test_without_a_discordant_pair_the_drops_limit_is_that_of_a_share() -> None:
    assert drop_upper_limit(1500, 0, 0, 0.05) == pytest.approx(share_upper_limit(0, 1500, 0.05), rel=0.02)


@given(st.integers(1, 400), st.data())
def test_the_drops_p_value_is_a_p_value_for_any_counts(n: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, n))
    gained = data.draw(st.integers(0, n - lost))
    limit = data.draw(st.floats(-0.99, 1.0))
    p = drop_p_value(n, lost, gained, limit)
    assert 0 < p <= 1
    if lost - gained >= n * limit:
        assert p == 1  # what is seen at the limit proves nothing
    elif lost:  # a pair that was not lost is better evidence, but for the interval of the nuisance parameter
        assert drop_p_value(n, lost - 1, gained + 1, limit) <= p + 1e-9
