"""Leakage: what it holds, what it refuses, and that the test part decides nothing."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

import splitveil as sv
from splitveil.attack import ATTACKS, Perceptron, ServerArchitecture, Training
from splitveil.data import Dataset, Part
from splitveil.errors import AttackError, ShapeError
from splitveil.measure import AttackScore, best_attack, leakages, reference_lines, view
from splitveil.measure.scores import from_several
from splitveil.message import Message

QUICK = (Perceptron("linear", hidden=(), dropout=(0.0, 0.0), training=Training(epochs=8, weight_decays=(0.1,))),)


def marked(n: int = 1500, seed: int = 0) -> Dataset:
    """Images with a bright target quadrant (2 classes, left) and, independent of it, a hidden one (3 values, right)."""
    generator = np.random.default_rng(seed)
    x = generator.integers(0, 80, (n, 1, 16, 16)).astype(np.uint8)
    y, secret = generator.integers(0, 2, n), generator.integers(0, 3, n)
    for image, target, hidden in zip(x, y, secret, strict=True):
        image[0, 8 * target : 8 * target + 8, :8] += 150
        image[0, 5 * hidden : 5 * hidden + 5, 9:] += 150
    return Dataset.from_arrays(x, y, {"secret": secret, "constant": np.zeros(n, int)}, name="marked")


@pytest.fixture(scope="module")
def data() -> Dataset:
    return marked()


@pytest.fixture(scope="module")
def split(data) -> sv.SplitModel:
    torch.manual_seed(0)
    model = sv.Table1Net(data.input_shape, data.n_classes)
    sv.fit(model, data, sv.Recipe(epochs=3))
    return sv.SplitModel(model, at=4)


@pytest.fixture(scope="module")
def factors(split, data) -> sv.Factors:
    return sv.factorise(split.server_layer, feature_shape=split.client(data.val.images(slice(0, 1))).shape[1:])


@pytest.fixture(scope="module")
def references(split, data):
    return reference_lines(split, data, hidden="secret", attacks=QUICK)


def test_every_fixed_name_is_there_with_an_interval(split, data, factors, references):
    rep = sv.leakage(split, sv.TopComponents(factors, m=4), data, hidden="secret", attacks=QUICK, references=references)
    for name in (
        "attack",
        "prior",
        "label",
        "logits",
        "raw",
        "excess",
        "excess_over_label",
        "advantage",
        "balanced",
        "auc",
        "bits",
        "target",
        "undefended",
    ):
        estimate = getattr(rep, name)
        low, high = estimate.interval
        assert low <= estimate <= high, name
    assert rep.interval == rep.attack.interval
    assert rep.best == "linear"
    row = json.loads(json.dumps(rep.as_row()))
    assert row["attack"] == {"value": float(rep.attack), "low": rep.interval[0], "high": rep.interval[1]}
    assert rep.message_bytes == 16 + 4 * 4


def test_differences_are_differences(split, data, factors, references):
    rep = sv.leakage(split, sv.TopComponents(factors, m=4), data, hidden="secret", attacks=QUICK, references=references)
    assert rep.excess == pytest.approx(rep.attack - rep.logits)
    assert rep.excess_over_label == pytest.approx(rep.attack - rep.label)
    assert rep.advantage == pytest.approx(rep.attack - rep.prior)


def test_an_undefended_message_gives_the_raw_line(split, data, references):
    raw = sv.leakage(split, sv.Identity((256,)), data, hidden="secret", attacks=QUICK, references=references)
    assert raw.attack == raw.raw  # the same views, the same suite, the same seed
    assert raw.attack > 0.95
    assert raw.target == raw.undefended
    assert raw.bits > 1.2  # of log2(3) = 1.58


def test_nothing_sent_leaves_the_prior(split, data, factors, references):
    none = sv.leakage(
        split, sv.TopComponents(factors, m=0), data, hidden="secret", attacks=QUICK, references=references
    )
    low, high = none.advantage.interval
    assert low <= 0 <= high
    assert abs(none.bits) < 0.02
    assert none.auc == pytest.approx(0.5)


def test_distortion_free_leaks_as_one_more_linear_layer_does(split, data, factors):
    """An attack on z_S and one on Wz, each scored with its interval, agree."""
    free = sv.DistortionFree(factors)
    sent = {name: view(split, free, part)[0] for name, part in data.parts.items()}
    with torch.no_grad():
        layer = {
            name: dataclasses.replace(seen, sent=factors.apply(free.decode(seen.sent))) for name, seen in sent.items()
        }
    ours = best_attack(sent, data, hidden="secret", attacks=QUICK)
    theirs = best_attack(layer, data, hidden="secret", attacks=QUICK)
    assert ours.accuracy.interval[0] <= theirs.accuracy.interval[1]
    assert theirs.accuracy.interval[0] <= ours.accuracy.interval[1]
    assert ours.accuracy > 0.9


def test_the_test_part_decides_nothing(split, data):
    """Other test labels change the score, but neither the choice nor the numbers of validation."""
    other = dataclasses.replace(data.test, hidden={**data.test.hidden, "secret": (data.test.hidden["secret"] + 1) % 3})
    swapped = dataclasses.replace(data, test=other)
    attacks = (*QUICK, Perceptron("other", hidden=(4,), training=Training(epochs=2)))
    views = {name: view(split, sv.Identity((256,)), part)[0] for name, part in data.parts.items()}
    first = best_attack(views, data, hidden="secret", attacks=attacks)
    second = best_attack(views, swapped, hidden="secret", attacks=attacks)
    assert first.best == second.best == "linear"
    assert first.validation == second.validation
    assert second.accuracy < 0.2 < 0.9 < first.accuracy


def test_the_prior_is_the_training_parts(split, data):
    """What an adversary can know beforehand is the majority of its own samples, whatever the other parts hold."""

    def mostly(part: Part, value: int) -> Part:
        fifth = torch.arange(len(part)) % 5 == 0
        return dataclasses.replace(
            part, hidden={**part.hidden, "secret": torch.where(fifth, part.hidden["secret"], value)}
        )

    skewed = dataclasses.replace(data, train=mostly(data.train, 0), val=mostly(data.val, 1))
    lines = reference_lines(split, skewed, hidden="secret", attacks=QUICK)
    shares = torch.bincount(data.test.hidden["secret"]) / len(data.test)
    assert shares[0] != shares[1]
    assert lines.prior == pytest.approx(float(shares[0]))


def test_the_attack_with_the_best_validation_counts(split, data):
    class Constant:
        name = "constant"

        def fit(self, *_, n_values, **__):
            return lambda seen: torch.full((len(seen), n_values), -1.0986).float()

    views = {name: view(split, sv.Identity((256,)), part)[0] for name, part in data.parts.items()}
    for attacks in ((Constant(), *QUICK), (*QUICK, Constant())):
        found = best_attack(views, data, hidden="secret", attacks=attacks)
        assert found.best == "linear"
        assert set(found.validation) == {"constant", "linear"}


def test_of_attacks_that_are_right_equally_often_the_one_that_tells_more_counts(split, data):
    class Shrug:
        """Always the same value, more or less surely."""

        def __init__(self, name, logits):
            self.name, self.logits = name, logits

        def fit(self, *_, **__):
            return lambda seen: torch.tensor(self.logits).log_softmax(0).expand(len(seen), -1)

    views = {name: view(split, sv.Identity((256,)), part)[0] for name, part in data.parts.items()}
    rash, fair = Shrug("rash", [9.0, 0.0, 0.0]), Shrug("fair", [0.1, 0.0, 0.0])
    for attacks in ((rash, fair), (fair, rash)):
        found = best_attack(views, data, hidden="secret", attacks=attacks)
        assert found.best == "fair"
        assert found.validation["rash"] == found.validation["fair"]


def test_a_cut_where_the_layer_reads_tokens_is_attacked(data):
    """One vector for each row of the image, while the message is one for all."""

    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.head = nn.Linear(16, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(torch.relu(self.mix(x[:, 0])).mean(1))

    torch.manual_seed(0)
    split = sv.SplitModel(Rows(), at="mix")
    veil = sv.ServerAware.fit(split, sv.Features.of(split, data.train), m=4)
    suite = (ServerArchitecture(training=Training(epochs=3, least_steps=200, weight_decays=(0.1,))),)
    found = sv.leakage(split, veil, data, hidden="secret", attacks=suite)
    assert found.best == "server-architecture"
    assert found.raw > 0.9


def test_each_score_is_of_the_attack_that_is_best_by_it(split, data):
    """Where most share one value, naming it is right most often and tells nothing: who tells more counts elsewhere."""

    def rare(part: Part) -> Part:
        secret = (torch.arange(len(part)) % 10 == 0).long()
        return dataclasses.replace(part, hidden={"secret": secret})

    parts = {name: rare(part) for name, part in data.parts.items()}
    skewed = dataclasses.replace(data, **parts, hidden_classes={"secret": ("0", "1")})

    class Always:
        name = "always"

        def fit(self, *_, **__):
            return lambda seen: torch.tensor([9.0, 0.0]).log_softmax(0).expand(len(seen), -1)

    class Suspects:
        """Names three tenths of all, the rare ones among them."""

        name = "suspects"

        def fit(self, *_, **__):
            return lambda seen: torch.where(
                (torch.arange(len(seen)) % 10 % 4 == 0)[:, None],
                torch.tensor([0.45, 0.55]),
                torch.tensor([0.999, 0.001]),
            ).log()

    views = {name: view(split, sv.Identity((256,)), part)[0] for name, part in skewed.parts.items()}
    for attacks in ((Always(), Suspects()), (Suspects(), Always())):
        found = best_attack(
            views, dataclasses.replace(skewed, hidden_classes={"secret": ("0", "1")}), hidden="secret", attacks=attacks
        )
        assert found.best == "always"
        assert found.best_by == {"balanced": "suspects", "auc": "suspects", "bits": "suspects"}
        assert found.accuracy == pytest.approx(0.9, abs=0.01)
        assert found.balanced > 0.8
        assert found.auc > 0.8
        assert found.bits > 0.1
        assert AttackScore.from_row(found.as_row(), len(data.test)).best_by == found.best_by


def test_views_hold_what_the_frames_held(split, data, factors):
    veil = sv.DistortionBounded(factors, epsilon=0.5, relative=True)
    seen, logits, sizes = view(split, veil, data.test)
    with torch.no_grad():
        message = veil.encode(split.client(data.test.x))
        torch.testing.assert_close(seen.sent, message)
        torch.testing.assert_close(logits, split.answer(veil, message))
    assert torch.equal(sizes, 16 + 4 * seen.kept)
    assert len(seen.kept.unique()) > 1


def test_progress_counts_attacks(split, data, factors, references):
    calls = []
    veil = sv.TopComponents(factors, m=1)
    sv.leakage(
        split,
        veil,
        data,
        hidden="secret",
        attacks=QUICK,
        references=references,
        progress=lambda *call: calls.append(call),
    )
    assert [call[:2] for call in calls] == [(0, 1), (1, 1)]


@pytest.mark.parametrize(
    ("hidden", "attacks", "says"),
    [("race", QUICK, "it has: secret, constant"), ("constant", QUICK, "constant"), ("secret", (), "no attack")],
)
def test_impossible_attacks(split, data, factors, hidden, attacks, says):
    with pytest.raises(AttackError, match=says):
        sv.leakage(split, sv.TopComponents(factors, m=1), data, hidden=hidden, attacks=attacks)


def test_a_secret_that_is_constant_in_the_test_part_is_refused(split, data, factors):
    same = dataclasses.replace(data.test, hidden={**data.test.hidden, "secret": torch.zeros_like(data.test.y)})
    with pytest.raises(AttackError, match="constant in the test part"):
        sv.leakage(split, sv.TopComponents(factors, m=1), dataclasses.replace(data, test=same), hidden="secret")


def test_an_attack_without_finite_log_probabilities_is_refused(split, data):
    class Certain:
        name = "certain"

        def fit(self, *_, n_values, **__):
            return lambda seen: torch.eye(n_values)[torch.zeros(len(seen)).long()].log()

    views = {name: view(split, sv.Identity((256,)), part)[0] for name, part in data.parts.items()}
    with pytest.raises(AttackError, match=r"'certain'.*not finite"):
        best_attack(views, data, hidden="secret", attacks=(Certain(),))


def test_an_obfuscator_of_another_cut_is_refused_before_any_attack_is_trained(split, data):
    other = sv.SplitModel(split.model, at=5)
    veil = sv.TopComponents(sv.factorise(other.server_layer, feature_shape=(128,)), m=2)
    calls = []
    with pytest.raises(ShapeError):
        sv.leakage(split, veil, data, hidden="secret", attacks=QUICK, progress=lambda *call: calls.append(call))
    assert not calls


def test_data_without_hidden_attributes_says_so(split, data, factors):
    with pytest.raises(AttackError, match="it has: none"):
        sv.leakage(split, sv.TopComponents(factors, m=1), data.without_hidden(), hidden="secret")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "hidden", "margin"),
    [("utkface", {}, "race", 0.12), ("qmnist", {"writers": 30}, "writer", 0.08)],
)
def test_real_raw_features_are_attacked_far_above_the_prior(data_root, name, options, hidden, margin):
    """One that cannot learn from the raw feature is broken. The whole suite, on a briefly trained network."""
    data = sv.load_data(name, root=data_root, **options)
    few = slice(0, 2000)  # as many as a planted secret needs; the rest takes a minute more
    part = data.train
    data = dataclasses.replace(
        data,
        train=dataclasses.replace(
            part, pixels=part.pixels[few], y=part.y[few], hidden={key: rows[few] for key, rows in part.hidden.items()}
        ),
    )
    torch.manual_seed(0)
    model = sv.Table1Net(data.input_shape, data.n_classes)
    sv.fit(model, data, sv.Recipe(epochs=1))
    split = sv.SplitModel(model, at=4)
    public_views = {
        part: view(split, sv.Identity(tuple(split.client(data.val.images(slice(0, 1))).shape[1:])), samples)[0]
        for part, samples in data.parts.items()
    }
    found = best_attack(public_views, data, hidden=hidden, attacks=ATTACKS)
    prior = float(torch.bincount(data.test.hidden[hidden]).max()) / len(data.test)
    assert found.accuracy.interval[0] > prior + margin


# Many obfuscators, noise, several messages.


class Noisy:
    """Sends the feature with noise of its own scale on it."""

    name = "noisy"

    def __init__(self, n: int) -> None:
        self.message = Message((n,), random=True)

    def encode(self, z):
        return z.flatten(1) + torch.randn_like(z.flatten(1))

    def decode(self, message):
        return message


class Spy:
    """Remembers what it was given, and knows nothing."""

    name = "spy"

    def __init__(self) -> None:
        self.given = []

    def fit(self, train, secret, val, val_secret, *, n_values, **_):
        self.given.append((train, secret, val, val_secret))

        def guess(seen):
            self.given.append(seen)
            return torch.zeros(len(seen), n_values).log_softmax(1)

        return guess


def test_many_obfuscators_at_once_give_what_each_gives_alone(split, data, factors, references):
    veils = [sv.TopComponents(factors, m=4), sv.Identity((256,)), sv.TopComponents(factors, m=1)]
    found = leakages(
        [(split, veil) for veil in veils], data, hidden=["secret"], references={"secret": references}, attacks=QUICK
    )
    for veil, leaks in zip(veils, found, strict=True):
        alone = sv.leakage(split, veil, data, hidden="secret", attacks=QUICK, references=references)
        assert leaks["secret"].attack == pytest.approx(float(alone.attack), abs=0.02)
        assert leaks["secret"].target == alone.target
        assert leaks["secret"].message_bytes == alone.message_bytes
        assert np.mean(leaks["secret"].answered) == pytest.approx(float(alone.target))
        assert np.mean(leaks["secret"].correct) == pytest.approx(float(leaks["secret"].attack))
    assert found[1]["secret"].attack > 0.95
    assert found[2]["secret"].message_bytes == 16 + 4


def test_an_adversary_trains_on_several_draws_of_the_noise_and_has_its_own_features_alone(split, data, references):
    spies = [Spy(), Spy()]
    for spy in spies:
        sv.leakage(split, Noisy(256), data, hidden="secret", attacks=[spy], references=references)
    train, secret, val, _ = spies[0].given[0]
    n = len(data.train)
    assert (len(train), len(val), len(secret)) == (2 * n, len(data.val), 2 * n)
    assert torch.equal(secret[:n], data.train.hidden["secret"])
    assert torch.equal(secret[n:], data.train.hidden["secret"])
    assert not torch.equal(train.sent[:n], train.sent[n:])
    with torch.no_grad():
        clean = split.client(data.train.x).flatten(1)
    torch.testing.assert_close(train.features[:n].flatten(1), clean)
    torch.testing.assert_close(train.features[n:].flatten(1), clean)
    assert (train.sent[:n] - clean).std() == pytest.approx(1.0, abs=0.01)
    test = spies[0].given[-1]
    assert len(test) == len(data.test)
    assert test.features is None
    assert val.features is not None
    assert torch.equal(train.sent, spies[1].given[0][0].sent)  # the same noise in every measurement


def test_evidence_of_several_messages_is_summed():
    generator = np.random.default_rng(0)
    truth = np.repeat(np.arange(10), 31)
    gains = generator.normal(size=(310, 10)) + 0.8 * np.eye(10)[truth]
    one, five, fifteen = (from_several(gains, truth, count) for count in (1, 5, 15))
    assert one == pytest.approx(np.mean(gains.argmax(1) == truth))
    assert one < 0.3 < five < fifteen
    low, high = fifteen.interval
    assert high - low > 0.1  # of twenty groups; what is left over of each subject is not used
    # Ten messages of which nine say nothing and one says all: the sum finds it, a vote would not.
    told = np.zeros((310, 10))
    told[np.arange(310) % 31 == 3] = 5 * np.eye(10)
    assert from_several(told, truth, 31) == 1.0
    with pytest.raises(AttackError, match="no subject has 32"):
        from_several(gains, truth, 32)


def test_several_messages_stand_in_the_row(split, data, factors, references):
    rep = sv.leakage(
        split, sv.TopComponents(factors, m=4), data, hidden="secret", attacks=QUICK, references=references,
        several=(1, 5),
    )  # fmt: skip
    assert rep.several[1] == pytest.approx(float(rep.attack), abs=0.01)
    assert rep.several[5] > rep.several[1]
    row = json.loads(json.dumps(rep.as_row()))
    assert row["several"]["5"]["value"] == float(rep.several[5])
    assert "correct" not in row


def test_a_score_comes_back_from_its_row(references):
    line = references.logits
    back = AttackScore.from_row(json.loads(json.dumps(line.as_row())), len(line.correct))
    assert np.array_equal(back.correct, line.correct)
    for name in ("accuracy", "balanced", "auc", "bits"):
        assert (getattr(back, name), getattr(back, name).interval) == (
            getattr(line, name),
            getattr(line, name).interval,
        )
    assert (back.best, back.validation, back.several) == (line.best, line.validation, line.several)
