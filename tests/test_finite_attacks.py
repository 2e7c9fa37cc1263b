"""Adversaries on finite messages: every one reads digits as names, and counting is the optimal guesser."""

import pytest
import torch
from torch import Tensor

import splitveil as sv
from splitveil.attack import ATTACKS, FINITE, Attack, Frequencies, Public, View, view
from splitveil.errors import AttackError
from splitveil.measure.suite import Question, best_attacks
from splitveil.message import Message

VALUES = 4
every_attack = pytest.mark.parametrize("attack", [*ATTACKS, *FINITE], ids=lambda each: each.name)


class Digits:
    """An obfuscator of digits; each decodes to itself, as a feature."""

    name = "digits"

    def __init__(self, *levels: int) -> None:
        self.message = Message((len(levels),), dtype="int64", levels=levels)

    def decode(self, message: Tensor) -> Tensor:
        return message.float()


def public(*levels: int) -> Public:
    torch.manual_seed(0)
    return Public(sv.SplitModel(sv.Table1Net((1, 16, 16), 3), at=4), Digits(*levels))


def drawn(levels: tuple[int, ...], n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(0, level, (n,), generator=generator) for level in levels], dim=1)


def thirds(sent: Tensor, levels: tuple[int, ...]) -> list[View]:
    """Train, val and test."""
    known = public(*levels)
    return [View(each, torch.full((len(each),), len(levels)), known) for each in sent.split(len(sent) // 3)]


def guesses(attack: Attack, sent: Tensor, secret: Tensor, levels: tuple[int, ...], n_values: int = VALUES) -> Tensor:
    """Log-probabilities for the last third."""
    train, val, test = thirds(sent, levels)
    parts = secret.split(len(train))
    found = attack.fit(train, parts[0], val, parts[1], n_values=n_values, seed=0)(test)
    assert found.isfinite().all()
    torch.testing.assert_close(found.exp().sum(1), torch.ones(len(test)))
    return found


def accuracy(attack: Attack, sent: Tensor, secret: Tensor, levels: tuple[int, ...]) -> float:
    return float((guesses(attack, sent, secret, levels).argmax(1) == secret[-(len(secret) // 3) :]).float().mean())


def names(level: int, values: int = VALUES) -> Tensor:
    """A secret for each value of a digit, in no order, so that the digit's size says nothing."""
    return torch.arange(level)[torch.randperm(level, generator=torch.Generator().manual_seed(3))] % values


@every_attack
@pytest.mark.parametrize("levels", [(40,), (3, 24, 2)], ids=str)
def test_a_secret_that_names_stand_for_is_found(attack, levels):
    sent = drawn(levels, 3600)
    digit = max(range(len(levels)), key=levels.__getitem__)
    secret = names(levels[digit])[sent[:, digit]]
    assert accuracy(attack, sent, secret, levels) > 0.95


@every_attack
def test_noise_stays_at_chance(attack):
    levels = (6, 3, 5)
    secret = drawn((VALUES,), 3600, seed=1)[:, 0]
    assert abs(accuracy(attack, drawn(levels, 3600), secret, levels) - 1 / VALUES) < 0.06


@pytest.mark.parametrize("levels", [(500,), (8, 8, 8, 8, 8, 8)], ids=str)
def test_counting_noise_costs_no_more_bits_than_the_prior(levels):
    """As many different messages as there are samples, or more."""
    secret = drawn((VALUES,), 3600, seed=1)[:, 0]
    found = guesses(Frequencies(), drawn(levels, 3600), secret, levels)
    assert torch.nn.functional.nll_loss(found, secret[2400:]) < torch.log(torch.tensor(4.0)) + 0.03


def test_counting_is_the_optimal_guesser():
    """Of a known joint distribution: its posterior, its guess for every message, and so its accuracy."""
    generator = torch.Generator().manual_seed(5)
    joint = torch.distributions.Dirichlet(torch.full((24,), 0.5))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        chances = joint.sample().view(6, VALUES)
    pairs = torch.multinomial(chances.flatten(), 60_000, replacement=True, generator=generator)
    sent, secret = pairs[:, None] // VALUES, pairs % VALUES
    found = guesses(Frequencies(), sent, secret, (6,))
    true = chances / chances.sum(1, keepdim=True)
    messages = sent[40_000:, 0]
    assert (found.exp() - true[messages]).abs().max() < 0.03
    gap = true.topk(2, dim=1).values
    clear = (gap[:, 0] - gap[:, 1] > 0.03)[messages]
    assert clear.float().mean() > 0.8
    assert torch.equal(found.argmax(1)[clear], true.argmax(1)[messages][clear])
    right = (found.argmax(1) == secret[40_000:]).float().mean()
    assert right == pytest.approx(float(chances.max(1).values.sum()), abs=0.014)  # four standard deviations


def test_counting_finds_what_no_digit_says_alone():
    levels = (5, 4)
    sent = drawn(levels, 3600)
    secret = (sent[:, 0] + sent[:, 1]) % VALUES
    assert accuracy(Frequencies(), sent, secret, levels) > 0.95


def test_messages_that_were_never_seen_are_guessed_by_their_digits():
    """Twelve digits that each say a little: no message comes twice."""
    secret = drawn((2,), 3600, seed=1)[:, 0]
    levels = (6,) * 12
    sent = drawn(levels, 3600)
    told = torch.rand(sent.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    sent = torch.where(told, secret[:, None] * 3 + sent % 3, sent)
    assert len(torch.unique(sent, dim=0)) > 3500
    assert accuracy(Frequencies(), sent, secret, levels) > 0.85


def test_a_message_that_was_never_seen_leaves_the_prior():
    secret = drawn((2,), 3600, seed=1)[:, 0]
    sent = secret[:, None].clone()
    sent[2400:] = 2
    found = guesses(Frequencies(), sent, secret, (3,), n_values=2)
    torch.testing.assert_close(found.exp(), torch.full((1200, 2), 0.5), atol=0.03, rtol=0)


def test_digits_that_repeat_each_other_are_not_trusted_twice():
    """Hints of two strengths, sent five times over beside what makes every message a new one, stay of two strengths."""
    secret = drawn((2,), 3600, seed=1)[:, 0]
    strong = drawn((2,), 3600, seed=2)[:, 0] == 1
    wrong = torch.rand(3600, generator=torch.Generator().manual_seed(3)) < torch.where(strong, 0.1, 0.4)
    hint = torch.where(wrong, 1 - secret, secret) + 2 * strong
    sent = torch.cat([hint[:, None].expand(-1, 5), drawn((300, 300), 3600)], dim=1)
    found = guesses(Frequencies(), sent.contiguous(), secret, (4,) * 5 + (300, 300), n_values=2)
    best = torch.distributions.Bernoulli(torch.tensor([0.1, 0.4])).entropy().mean()
    assert torch.nn.functional.nll_loss(found, secret[2400:]) < best + 0.02


def test_real_numbers_are_not_counted():
    sent = torch.randn(30, 3)
    train = View(sent, torch.full((30,), 3), Public(public(3).split, None))
    with pytest.raises(AttackError, match="leave it out of the suite"):
        Frequencies().fit(train, torch.zeros(30).long(), train, torch.zeros(30).long(), n_values=2, seed=0)


def test_digits_have_a_column_for_each_value(monkeypatch):
    seen = View(torch.tensor([[2, 0], [0, 1]]), torch.tensor([2, 2]), public(3, 2))
    assert seen.numbers().tolist() == [[2, 0, 1], [0, 1, 1]]
    assert seen.vectors().tolist() == [[2, 0, 1, 0, 0, 1, 1, 0], [0, 1, 1, 1, 0, 0, 0, 1]]
    monkeypatch.setattr(view, "COLUMNS", 4)  # too many values: the decoded feature stands in
    assert seen.vectors().tolist() == [[2, 0, 1, 2, 0], [0, 1, 1, 0, 1]]


def test_real_numbers_are_read_as_they_are_whatever_the_obfuscator_sends():
    """De-censoring reads restored features in the place of digits."""
    seen = View(torch.tensor([[0.5, -1.0]]), torch.tensor([2]), public(3, 2))
    assert seen.levels is None
    assert seen.vectors().tolist() == [[0.5, -1.0, 1.0]]


def test_every_suite_meets_finite_messages_with_counting_and_others_as_they_were():
    levels, secret = (2,), drawn((2,), 300)[:, 0]
    digits = dict(zip(("train", "val", "test"), thirds(secret[:, None], levels), strict=True))
    real = {name: View(each.sent.float(), each.kept, each.public) for name, each in digits.items()}
    secrets = dict(zip(digits, secret.split(100), strict=True))
    stages = []

    class Shrug:
        name = "shrug"

        def fit(self, *_, n_values, **__):
            return lambda seen: torch.full((len(seen), n_values), -0.6931)

    found = best_attacks(
        [Question(real, secrets, 2), Question(digits, secrets, 2)], attacks=[Shrug()],
        progress=lambda *stage: stages.append(stage),
    )  # fmt: skip
    assert [list(each.validation) for each in found] == [["shrug"], ["shrug", "frequencies"]]
    assert [each.best for each in found] == ["shrug", "frequencies"]
    assert found[1].accuracy == 1
    assert stages[-1][:2] == (2, 2)
    again = best_attacks(
        [Question(digits, secrets, 2)], attacks=[Frequencies(), Shrug()], progress=lambda *stage: stages.append(stage)
    )
    assert list(again[0].validation) == ["frequencies", "shrug"]
    assert stages[-1][:2] == (2, 2)  # mounted once
