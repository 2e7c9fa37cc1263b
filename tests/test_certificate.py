"""The certificate: no optimal guesser exceeds it, its exact values, where it is vacuous, and Fano's average form."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import splitveil as sv
from splitveil.certificate import Certificate
from splitveil.errors import CertificateError
from splitveil.message import Message

ROUNDING = 1e-9


@st.composite
def joints(draw: Any) -> tuple[np.ndarray, np.ndarray]:
    """Priors p(s) and a randomised encoder p(m|s), some of it deterministic, drawn from flat to very uneven."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    secrets, messages = draw(st.integers(2, 7)), draw(st.integers(1, 4))
    evenness = draw(st.sampled_from([0.05, 0.5, 1.0, 20.0]))
    priors = random.dirichlet(np.full(secrets, evenness))
    encoder = random.dirichlet(np.full(messages, evenness), size=secrets)
    if draw(st.booleans()):  # the encoder that hides as little as it can
        encoder = np.eye(messages)[np.argsort(np.argsort(-priors)) % messages]
    return priors / priors.sum(), encoder / encoder.sum(1, keepdims=True)


def best_guess(priors: np.ndarray, encoder: np.ndarray) -> float:
    """The chance that the optimal guesser is right: for every message it names the likeliest secret."""
    return float((priors[:, None] * encoder).max(0).sum())


def repeated(encoder: np.ndarray, queries: int) -> np.ndarray:
    """p(m_1 … m_q | s) of independent queries."""
    found = encoder
    for _ in range(queries - 1):
        found = (found[:, :, None] * encoder[:, None, :]).reshape(len(encoder), -1)
    return found


@given(joints(), st.integers(1, 4))
def test_no_guesser_exceeds_the_bound(joint: tuple[np.ndarray, np.ndarray], queries: int) -> None:
    priors, encoder = joint
    certificate = Certificate(messages=encoder.shape[1])
    best = best_guess(priors, repeated(encoder, queries))
    of_all = certificate.guess_bound(priors=priors, queries=queries)
    of_largest = certificate.guess_bound(priors.max(), queries=queries)
    assert best <= of_all + ROUNDING
    assert of_all <= of_largest + ROUNDING
    assert best <= 2 ** certificate.leakage_bits(queries) * priors.max() + ROUNDING


@given(joints(), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_no_guesser_exceeds_it_where_the_number_of_queries_tells_something(
    joint: tuple[np.ndarray, np.ndarray], queries: int, seed: int
) -> None:
    priors, encoder = joint
    number = np.random.default_rng(seed).dirichlet(np.full(queries + 1, 0.3), size=len(priors))  # p(i queries | s)
    parts = [number[:, :1], *(number[:, [i]] * repeated(encoder, i) for i in range(1, queries + 1))]
    certificate = Certificate(messages=encoder.shape[1])
    best = best_guess(priors, np.concatenate(parts, axis=1))
    assert best <= certificate.guess_bound(priors=priors, queries=queries, varies=True) + ROUNDING
    assert best <= certificate.guess_bound(priors.max(), queries=queries, varies=True) + ROUNDING


@given(joints(), st.integers(1, 3))
def test_no_guesser_exceeds_fano_s_bound(joint: tuple[np.ndarray, np.ndarray], queries: int) -> None:
    priors, encoder = joint
    shares = priors @ encoder
    entropy = max(0.0, -sum(share * math.log2(share) for share in shares if share > 0))
    bound = Certificate(encoder.shape[1]).fano_bound(priors, entropy_bits=entropy, queries=queries)
    assert best_guess(priors, repeated(encoder, queries)) <= bound + ROUNDING


@pytest.mark.parametrize("priors", [[0.1] * 10, [0.4, 0.3, 0.15, 0.1, 0.05]])
def test_an_encoder_that_hides_nothing_reaches_it(priors: list[float]) -> None:
    shares = np.array(priors)
    for messages in range(1, len(shares) + 1):
        encoder = np.eye(messages)[np.minimum(np.arange(len(shares)), messages - 1)]
        assert Certificate(messages).guess_bound(priors=shares) == pytest.approx(best_guess(shares, encoder))


@given(st.integers(1, 10**6), st.integers(1, 30), st.floats(1e-300, 1))
def test_more_messages_queries_or_prior_never_lower_it(messages: int, queries: int, prior: float) -> None:
    certificate = Certificate(messages)
    here = certificate.guess_bound(prior, queries=queries)
    assert prior <= here <= 1
    assert here <= Certificate(messages + 1).guess_bound(prior, queries=queries)
    assert here <= certificate.guess_bound(prior, queries=queries + 1)
    assert here <= certificate.guess_bound(prior, queries=queries, varies=True)
    assert here <= certificate.guess_bound(min(1.0, 2 * prior), queries=queries)
    assert certificate.leakage_bits(queries) <= certificate.leakage_bits(queries, varies=True)
    assert certificate.leakage_bits(queries) <= certificate.leakage_bits(queries + 1)


def test_exact_values() -> None:
    eight = sv.Certificate(messages=8)
    assert eight.bits == 3
    assert eight.guess_bound(prior=1 / 100, queries=1) == 0.08
    assert eight.guess_bound(1 / 100, queries=2) == 0.64
    assert eight.guess_bound(1 / 100, queries=3) == 1
    assert eight.guess_bound(priors=[0.01] * 100, queries=2) == pytest.approx(0.64)
    assert eight.guess_bound(priors=[0.5, 0.3, *[0.02] * 10]) == pytest.approx(0.92)
    assert Certificate(2).guess_bound(priors=[0.1, 0.2, 0.3, 0.4]) == pytest.approx(0.7)
    assert Certificate(2).guess_bound(0.4) == 0.8
    assert Certificate(1).guess_bound(0.4, queries=10**9) == 0.4
    # 1 + 8, and 1 + 2 + 4 + 8 transcripts, the empty one among them; nine of one message, from none to eight.
    assert eight.guess_bound(1 / 100, varies=True) == 0.09
    assert Certificate(2).guess_bound(1 / 100, queries=3, varies=True) == 0.15
    assert Certificate(1).guess_bound(1 / 100, queries=8, varies=True) == 0.09
    assert eight.leakage_bits(5) == 15
    assert Certificate(2).leakage_bits(3, varies=True) == math.log2(15)


@pytest.mark.parametrize(
    ("messages", "values"), [(2, 2), (3, 2), (100, 100), (128, 100), (2, 1)], ids=lambda value: str(value)
)
def test_where_it_is_vacuous(messages: int, values: int) -> None:
    certificate, priors = Certificate(messages), [1 / values] * values
    assert certificate.vacuous(1 / values)
    assert certificate.vacuous(priors=priors)
    assert certificate.guess_bound(priors=priors) == 1
    assert "proves nothing" in certificate.in_words(1 / values)
    assert "proves nothing" in certificate.in_words(priors=[*priors, 0.0])  # a value that never occurs is none


def test_where_it_says_something() -> None:
    for messages, values in ((1, 2), (99, 100), (8, 100)):
        certificate = Certificate(messages)
        assert not certificate.vacuous(1 / values)
        assert not certificate.vacuous(priors=[1 / values] * values)
        assert certificate.guess_bound(1 / values) == pytest.approx(messages / values)
        assert "proves nothing" not in certificate.in_words(1 / values)
    words = Certificate(8).in_words(priors=[0.01] * 100, queries=2)
    for part in ("8 different messages", "(3 bits each)", "sees 2 messages", "at most 0.64", "beside 0.01", "Timing"):
        assert part in words
    assert "sees at most one message" in Certificate(8).in_words(0.01, varies=True)


def test_big_numbers_do_not_overflow() -> None:
    huge = Certificate(10**20_000)
    assert huge.guess_bound(5e-324) == huge.guess_bound(priors=[1e-5] * 100_000) == 1
    assert Certificate(2).guess_bound(5e-324, queries=1000) == 2.0**-74
    assert Certificate(2).guess_bound(5e-324, queries=1074) == 1
    assert Certificate(2).guess_bound(5e-324, queries=2**62, varies=True) == 1
    assert huge.bits == pytest.approx(20_000 * math.log2(10))
    assert huge.leakage_bits(10**9) == pytest.approx(2e13 * math.log2(10))
    assert Certificate(2).leakage_bits(1000, varies=True) == pytest.approx(1001)
    assert Certificate(2).leakage_bits(5000, varies=True) == pytest.approx(5001)
    assert Certificate(3).leakage_bits(5000, varies=True) == pytest.approx(5000 * math.log2(3) + math.log2(1.5))
    assert "2^66438.6 different" in huge.in_words(0.5)
    assert repr(huge) == "Certificate(messages=2^66438.6)"
    assert repr(Certificate(8)) == "Certificate(messages=8)"
    assert huge.entropy_limit([3, 4]) <= huge.bits


def test_the_certificate_of_an_obfuscator_s_messages() -> None:
    finite = Message(shape=(3,), dtype="int64", levels=(4, 2, 3))
    assert Certificate.of(finite) == Certificate(24)
    with pytest.raises(CertificateError, match="no finite bound"):
        Certificate.of(Message(shape=(3,)))
    with pytest.raises(CertificateError, match="length of these messages"):
        Certificate.of(Message(shape=(3,), dtype="int64", levels=(4, 2, 3), fixed_length=False))


NO_PRIORS: list[Any] = [[], [0.5], [0.5, 0.6], [-0.5, 1.5], [math.nan, 1.0], ["a"], [None], 0.5]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"prior": 0.5, "priors": [0.5, 0.5]}, {"prior": 0}, {"prior": -1}, {"prior": 1.1}, {"prior": math.nan},
     {"prior": "x"}, {"prior": 0.5, "queries": 0}, {"prior": 0.5, "queries": 1.5}, {"prior": 0.5, "queries": True},
     {"prior": 0.5, "queries": 2**63}, *({"priors": priors} for priors in NO_PRIORS)],
)  # fmt: skip
def test_what_is_no_chance_or_count_is_refused(arguments: dict[str, Any]) -> None:
    for call in (Certificate(2).guess_bound, Certificate(2).vacuous, Certificate(2).in_words):
        with pytest.raises(CertificateError) as caught:
            call(**arguments)
        assert isinstance(caught.value, sv.SplitveilError)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("messages", [0, -1, 2.0, "8", None, True])
def test_what_is_no_number_of_messages_is_refused(messages: Any) -> None:
    with pytest.raises(CertificateError, match="number of different messages"):
        Certificate(messages)


def test_numpy_s_integers_are_numbers_of_messages() -> None:
    assert Certificate(np.int64(8)) == Certificate(8)
    assert Certificate(np.int64(2**62)).leakage_bits(np.int32(4)) == 248


@pytest.mark.parametrize("evenness", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("n", [1, 2, 30, 1000])
def test_the_entropy_s_limit_is_missed_no_more_often_than_it_says(evenness: float, n: int) -> None:
    random = np.random.default_rng(0)
    below = missed = 0
    for _ in range(200):
        shares = random.dirichlet(np.full(16, evenness))
        entropy = -sum(share * math.log2(share) for share in shares if share > 0)
        counts = random.multinomial(n, shares)
        seen = counts[counts > 0] / n
        below += -float((seen * np.log2(seen)).sum()) < entropy
        limit = Certificate(16).entropy_limit(counts, level=0.2)
        assert limit <= 4
        missed += limit < entropy - ROUNDING
    assert below > 100  # the plug-in estimate is too low more often than not: it is no limit
    assert missed <= 0.2 * 200


def test_the_entropy_s_limit_gets_near_with_many_queries() -> None:
    counts = [10**9, 10**9, 10**9, 10**9]
    assert 2 <= Certificate(16).entropy_limit(counts) < 2.01
    assert Certificate(16).entropy_limit([*counts, *[0] * 12, 0, 0]) == Certificate(16).entropy_limit(counts)
    assert Certificate(16).entropy_limit(counts, level=1e-9) > Certificate(16).entropy_limit(counts)
    # By hand: entropy 1, bias log2(1 + 15/1000), and 9.966 · sqrt(2 · 2.996 / 1000).
    assert Certificate(16).entropy_limit([500, 500]) == pytest.approx(1 + 0.02148 + 0.77143, abs=1e-4)


@pytest.mark.parametrize(
    ("counts", "level"),
    [([], 0.05), ([0], 0.05), ([1, 1, 1], 0.05), ([-1, 2], 0.05), ([0.5], 0.05), ([1], 0), ([1], 1), ([1], math.nan)],
)
def test_what_bounds_no_entropy_is_refused(counts: Any, level: float) -> None:
    with pytest.raises(CertificateError):
        Certificate(2).entropy_limit(counts, level=level)


def test_fano_s_bound() -> None:
    even = [1 / 64] * 64
    assert Certificate(1).fano_bound(even, entropy_bits=0) == pytest.approx(1 / 64, abs=1e-4)
    assert Certificate(64).fano_bound(even, entropy_bits=6) == 1
    assert Certificate(2).fano_bound(even, entropy_bits=6) == Certificate(2).fano_bound(even, entropy_bits=1)
    assert Certificate(2).fano_bound(even, entropy_bits=1, queries=6) == 1
    bounds = [Certificate(64).fano_bound(even, entropy_bits=bits) for bits in (0.0, 0.5, 1, 2, 5, 6)]
    assert all(low < high for low, high in itertools.pairwise(bounds))
    assert Certificate(2).fano_bound([1.0, 0.0], entropy_bits=0) == 1
    for arguments in ({"entropy_bits": -1}, {"entropy_bits": math.nan}, {"entropy_bits": 1, "queries": 0}):
        with pytest.raises(CertificateError):
            Certificate(2).fano_bound(even, **arguments)  # type: ignore[arg-type]
