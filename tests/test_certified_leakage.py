"""The certificate holds against every attack: none is right more often than the number of messages permits."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import splitveil as sv
from splitveil.attack import ATTACKS, FINITE, Frequencies, Job, Perceptron, Public, Training, View, fit_all
from splitveil.certificate import Certificate
from splitveil.data import Dataset
from splitveil.measure import view
from splitveil.message import Message
from splitveil.statistics import proportion

N = 600
QUICK = (Perceptron("linear", hidden=(), dropout=(0.0, 0.0), training=Training(epochs=8, weight_decays=(0.1,))),)
FALLING = torch.tensor([0.3, 0.22, 0.16, 0.11, 0.08, 0.06, 0.04, 0.03])
EVEN = torch.full((10,), 0.1)
SKEWED = torch.tensor([0.7, 0.3])


class Finite:
    """An obfuscator of digits, of which only the message's facts matter."""

    name = "finite"

    def __init__(self, *levels: int) -> None:
        self.message = Message((len(levels),), dtype="int64", levels=levels)

    def decode(self, message: Tensor) -> Tensor:
        return message.float()


def spent(secret: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """A codebook of n messages that spends all of them on the secret's likeliest values, which come first."""
    return torch.where(secret < n, secret, torch.randint(0, n, secret.shape, generator=generator))


def wasted(secret: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """The same, where three messages stand for each of the first values."""
    return spent(secret, n // 3, generator) * 3 + torch.randint(0, 3, secret.shape, generator=generator)


def leaky(secret: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """A random codebook of a noisy secret."""
    told = torch.randint(0, n, (50,), generator=generator)[secret]
    random = torch.randint(0, n, secret.shape, generator=generator)
    return torch.where(torch.rand(secret.shape, generator=generator) < 0.5, told, random)


def blind(secret: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Messages that have nothing to do with the secret."""
    return torch.randint(0, n, secret.shape, generator=generator)


# The share of the secret's values, the digits' levels, the encoder, and whether it attains the bound.
Encoder = Callable[[Tensor, int, torch.Generator], Tensor]
PROBLEMS: list[tuple[Tensor, tuple[int, ...], Encoder, bool]] = [
    (FALLING, (3,), spent, True),
    (FALLING, (2, 2), spent, True),
    (FALLING, (6,), wasted, False),
    (EVEN, (4, 2), leaky, False),
    (SKEWED, (1,), blind, False),
]


def views(priors: Tensor, levels: tuple[int, ...], encoder: Encoder, seed: int) -> tuple[list[View], list[Tensor]]:
    """Train, val and test, with their secrets."""
    torch.manual_seed(0)
    public = Public(sv.SplitModel(sv.Table1Net((1, 16, 16), 3), at=4), Finite(*levels))
    generator = torch.Generator().manual_seed(seed)
    secret = torch.multinomial(priors, 3 * N, replacement=True, generator=generator)
    index = encoder(secret, public.veil.message.distinct, generator)
    digits = torch.from_numpy(np.stack(np.unravel_index(index.numpy(), levels), axis=1))
    return [View(each, torch.full((N,), len(levels)), public) for each in digits.split(N)], list(secret.split(N))


@pytest.mark.parametrize("attack", [*ATTACKS, *FINITE], ids=lambda each: each.name)
def test_no_attack_exceeds_the_certificate(attack):
    """And those codebooks that spend everything on the secret attain it, so that a lower bound would be false."""
    problems = [(*problem, *views(*problem[:3], seed)) for seed, problem in enumerate(PROBLEMS)]
    jobs = [Job(seen[0], secret[0], seen[1], secret[1], len(priors), 0) for priors, _, _, _, seen, secret in problems]
    guesses = fit_all(attack, jobs)
    for guess, (priors, levels, _, attains, seen, secret) in zip(guesses, problems, strict=True):
        certificate = Certificate.of(seen[2].public.veil.message)
        right = guess(seen[2]).argmax(1) == secret[2]
        found, bound = proportion(right.numpy()), certificate.guess_bound(priors=priors.tolist())
        assert found.interval[0] <= bound, levels
        # Of these very samples, whose shares are known, the bound is no matter of chance.
        shares = torch.bincount(secret[2], minlength=len(priors)) / N
        exact = certificate.guess_bound(priors=shares.tolist())
        assert found <= exact + 1e-6, levels
        if attains:
            assert found > exact - 0.02, levels
            assert found.interval[0] > Certificate(certificate.messages - 1).guess_bound(priors=priors.tolist())


@settings(max_examples=60)
@given(
    levels=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    n_values=st.integers(2, 12),
    noise=st.floats(0, 1),
    seed=st.integers(0, 2**31 - 1),
)
def test_counting_never_exceeds_the_certificate_of_the_very_samples(levels, n_values, noise, seed):
    """For any joint distribution, with the shares of the samples on which it is scored."""
    generator = torch.Generator().manual_seed(seed)
    priors = torch.rand(n_values, generator=generator) ** 3 + 0.01

    def encoder(secret: Tensor, n: int, generator: torch.Generator) -> Tensor:
        told = torch.randint(0, n, (n_values,), generator=generator)[secret]
        random = torch.randint(0, n, secret.shape, generator=generator)
        return torch.where(torch.rand(secret.shape, generator=generator) < noise, random, told)

    seen, secret = views(priors, levels, encoder, seed)
    guess = Frequencies().fit(seen[0], secret[0], seen[1], secret[1], n_values=n_values, seed=0)
    counts = Counter(secret[2].tolist())
    bound = Certificate.of(seen[2].public.veil.message).guess_bound(priors=[each / N for each in counts.values()])
    assert float((guess(seen[2]).argmax(1) == secret[2]).double().mean()) <= bound + 1e-9


class Spent:
    """At cut 1, where the feature is the image: sends which of the first bands on its right is bright, else the first.

    Attributes:
        n: how many messages there are.
    """

    name = "spent"

    def __init__(self, n: int) -> None:
        self.message = Message((1,), dtype="int64", levels=(n,))
        self.n = n

    def encode(self, z: Tensor) -> Tensor:
        band = torch.stack([z[:, 0, 4 * i : 4 * i + 4, 8:].mean((1, 2)) for i in range(4)], dim=1).argmax(1)
        return torch.where(band < self.n, band, 0)[:, None]

    def decode(self, message: Tensor) -> Tensor:
        return torch.zeros(len(message), 1, 16, 16)


@pytest.fixture(scope="module")
def banded() -> Dataset:
    """Images with a hidden bright band of 4 on the right, and a target on the left."""
    generator = np.random.default_rng(0)
    x = generator.integers(0, 80, (1500, 1, 16, 16)).astype(np.uint8)
    y, secret = generator.integers(0, 2, 1500), generator.choice(4, 1500, p=(0.4, 0.3, 0.2, 0.1))
    for image, target, hidden in zip(x, y, secret, strict=True):
        image[0, 8 * target : 8 * target + 8, :8] += 150
        image[0, 4 * hidden : 4 * hidden + 4, 8:] += 150
    return Dataset.from_arrays(x, y, {"band": secret}, name="banded")


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_measured_leakage_attains_the_certificate_and_no_more(banded, n):
    """Through bytes and the front door, for a codebook that is spent on the secret."""
    torch.manual_seed(0)
    split = sv.SplitModel(sv.Table1Net(banded.input_shape, banded.n_classes), at=1)
    assert view(split, Spent(n), banded.test)[0].sent.dtype == torch.int64
    found = sv.leakage(split, Spent(n), banded, hidden="band", attacks=QUICK)
    shares = torch.bincount(banded.test.hidden["band"], minlength=4) / len(banded.test)
    bound = Certificate(messages=n).guess_bound(priors=shares.tolist())
    assert "frequencies" in found.validation
    assert found.attack <= bound + 1e-6
    assert found.attack == pytest.approx(bound, abs=0.01)  # all of it is spent on the secret
