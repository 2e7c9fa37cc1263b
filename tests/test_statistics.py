"""Estimates against independent implementations, closed forms, and their own promised coverage."""

import copy
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from splitveil.statistics import Bootstrap, Estimate, balanced_accuracy, entropy_bits, macro_auc, proportion


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


@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.booleans())
def test_auc_is_sklearns_with_ties_and_with_weights(seed: int, values: int, ties: bool) -> None:
    scores, secret = draw(seed, 40, values, ties)
    weights = np.random.default_rng(seed + 1).integers(1, 4, size=(3, 40)).astype(float)
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
def test_entropy_is_the_closed_form(counts: list[int], bits: float) -> None:
    assert entropy_bits(np.repeat(np.arange(len(counts)), counts)) == pytest.approx(bits, abs=1e-12)
