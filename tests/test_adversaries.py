"""Trees, neighbours and de-censoring: beyond the calibration that every attack passes in test_attack.py."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import splitveil as sv
from splitveil.attack import Decensoring, GradientBoosting, Job, NearestNeighbours, Perceptron, Public, Training, View
from splitveil.attack.components import leading, mixed

attacks = pytest.mark.parametrize("attack", [GradientBoosting(), NearestNeighbours()], ids=lambda each: each.name)
QUICK = Training(epochs=5, least_steps=100, weight_decays=(0.1,))


def views(sent: Tensor, features: Tensor | None = None) -> list[View]:
    """Thirds: train, val, test; the last without features."""
    torch.manual_seed(0)
    public = Public(sv.SplitModel(sv.Table1Net((1, 16, 16), 3), at=4), None)
    whole = View(sent, torch.full((len(sent),), sent.shape[1]), public, features)
    third = len(sent) // 3
    parts = [slice(i, i + third) for i in (0, third, 2 * third)]
    cut = [
        View(whole.sent[rows], whole.kept[rows], public, None if features is None else features[rows]) for rows in parts
    ]
    return [*cut[:2], replace(cut[2], features=None)]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@attacks
def test_values_that_training_never_saw_have_finite_log_probabilities(attack):
    """Even where validation holds them."""
    secret = torch.arange(300) % 3
    secret[100:200][::5] = 4
    train, val, test = views(randn(300, 4) + 5 * secret[:, None].float())
    found = attack.fit(train, secret[:100], val, secret[100:200], n_values=6, seed=0)(test)
    assert found.shape == (100, 6)
    assert found.isfinite().all()
    torch.testing.assert_close(found.exp().sum(1), torch.ones(100))
    assert (found.argmax(1) == secret[200:]).float().mean() > 0.9


@attacks
def test_what_a_line_cannot_part_is_found(attack):
    x = randn(1500, 4)
    secret = (x[:, 0] * x[:, 1] > 0).long()
    train, val, test = views(x)
    found = attack.fit(train, secret[:500], val, secret[500:1000], n_values=2, seed=0)(test)
    assert (found.argmax(1) == secret[1000:]).float().mean() > 0.8


@attacks
def test_noise_costs_no_more_bits_than_the_prior(attack):
    secret = torch.randint(0, 4, (1500,), generator=torch.Generator().manual_seed(1))
    train, val, test = views(randn(1500, 8))
    found = attack.fit(train, secret[:500], val, secret[500:1000], n_values=4, seed=0)(test)
    loss = torch.nn.functional.nll_loss(found, secret[1000:])
    assert loss < torch.log(torch.tensor(4.0)) + 0.03


@attacks
def test_constant_wide_messages_are_attacked_without_a_warning(attack):
    secret = torch.arange(300) % 2
    train, val, test = views(torch.zeros(300, 200))
    assert attack.fit(train, secret[:100], val, secret[100:200], n_values=2, seed=0)(test).isfinite().all()


@attacks
def test_settings_are_chosen_on_validation(attack):
    """Three labels in ten are wrong: one neighbour, or a tree that fits every sample, repeats the mistakes."""
    x = randn(1500, 3)
    true = (x[:, 0] > 0).long()
    told = torch.where(torch.rand(1500, generator=torch.Generator().manual_seed(4)) < 0.3, 1 - true, true)
    train, val, test = views(x)
    found = attack.fit(train, told[:500], val, told[500:1000], n_values=2, seed=0)(test)
    assert (found.argmax(1) == true[1000:]).float().mean() > 0.85


def test_secrets_with_many_values_get_fewer_rounds():
    secret = torch.arange(900) % 60
    train, val, test = views(randn(900, 3))
    attack = GradientBoosting(trees=60, least_rounds=1, settings=((2, 0.1),))
    one = attack.fit(train, secret[:300], val, secret[300:600], n_values=60, seed=0)(test)
    same = replace(attack, rounds=1).fit(train, secret[:300], val, secret[300:600], n_values=60, seed=0)(test)
    assert torch.equal(one, same)


def test_only_wide_inputs_are_brought_down_and_the_strongest_direction_stays():
    x = randn(300, 40)
    x[:, 7] *= 50
    train, _, _ = views(x)
    inputs = View.vectors
    assert leading(inputs, train, 41, 0) is inputs
    reduced = leading(inputs, train, 2, 0)(train)
    assert reduced.shape == (100, 2)
    assert torch.corrcoef(torch.stack([reduced[:, 0], train.sent[:, 7]]))[0, 1].abs() > 0.999


def test_a_mixture_is_a_distribution_between_the_two():
    found = mixed(torch.tensor([[1.0, 0.0]]), torch.tensor([0.25, 0.75]), 0.4)
    torch.testing.assert_close(found.exp(), torch.tensor([[0.7, 0.3]]))


def decensoring_case() -> tuple[Tensor, Tensor, Tensor]:
    """Raw features whose product's sign is the secret, and messages that are a rotation of them with little noise."""
    raw = randn(2400, 2)
    angle = torch.tensor(0.7)
    turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    return raw, raw @ turn + 0.01 * randn(2400, 2, seed=1), (raw[:, 0] * raw[:, 1] > 0).long()


def test_decensoring_classifies_the_feature_that_it_restores():
    """A classifier that only knows raw features would be right about half of the rotated messages."""
    raw, sent, secret = decensoring_case()
    train, val, test = views(sent, raw)
    seen = []

    class Spy(Perceptron):
        def fit(self, train, *arguments, **more):
            seen.append((train, arguments[1]))
            return super().fit(train, *arguments, **more)

    attack = Decensoring(classifier=Spy(training=QUICK, dropout=(0.0, 0.0)))
    found = attack.fit(train, secret[:800], val, secret[800:1600], n_values=2, seed=0)(test)
    assert (found.argmax(1) == secret[1600:]).float().mean() > 0.9
    ((with_raw, validated),) = seen
    mean, scale = raw[:800].mean(0), raw[:800].std(0)
    torch.testing.assert_close(with_raw.sent, (raw[:800] - mean) / scale)  # it learns from raw features alone
    torch.testing.assert_close(validated.sent, (raw[800:1600] - mean) / scale)


def test_decensoring_trains_once_for_all_messages_of_the_same_features():
    raw, sent, secret = decensoring_case()
    train, val, test = views(sent, raw)
    fitted = []

    class Spy(Perceptron):
        def fit(self, train, *arguments, **more):
            fitted.append(train)
            return super().fit(train, *arguments, **more)

    attack = Decensoring(classifier=Spy(training=QUICK, dropout=(0.0, 0.0)))
    first = Job(train, secret[:800], val, secret[800:1600], 2, 0)
    half = [replace(view, sent=view.sent[:, :1]) for view in (train, val, test)]  # the same features, another message
    second = replace(first, train=half[0], val=half[1])
    other = replace(first, secret=1 - secret[:800], val_secret=1 - secret[800:1600])
    guesses = attack.fit_many([first, second, other])
    assert len(fitted) == 2
    alone = [attack.fit_many([job])[0] for job in (first, second, other)]
    for together, single, view in zip(guesses, alone, (test, half[2], test), strict=True):
        torch.testing.assert_close(together(view), single(view))


def test_decensoring_without_raw_features_reads_what_was_sent():
    _, sent, secret = decensoring_case()
    train, val, test = views(sent)
    classifier = Perceptron(training=QUICK)
    found, plain = (
        each.fit(train, secret[:800], val, secret[800:1600], n_values=2, seed=0)(test)
        for each in (Decensoring(classifier=classifier), classifier)
    )
    assert torch.equal(found, plain)


def test_decensoring_reads_the_length_of_the_message():
    secret = torch.arange(1200) % 4
    train, val, test = (
        replace(view, kept=part + 1)
        for view, part in zip(views(torch.zeros(1200, 8), torch.zeros(1200, 5)), secret.split(400), strict=True)
    )
    attack = Decensoring(classifier=Perceptron(training=QUICK))
    found = attack.fit(train, secret[:400], val, secret[400:800], n_values=4, seed=0)(test)
    assert (found.argmax(1) == secret[800:]).float().mean() > 0.95
