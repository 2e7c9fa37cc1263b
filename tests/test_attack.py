"""Every attack is calibrated: it finds a planted secret, stays at chance on noise, and is not fooled by scale."""

import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import Tensor, nn

import splitveil as sv
from splitveil.attack import (
    ATTACKS,
    Attack,
    GradientBoosting,
    Job,
    NearestNeighbours,
    Public,
    ServerArchitecture,
    Training,
    View,
    fitting,
    networks,
)
from splitveil.attack.fitting import Candidate, fit_network, standardised
from splitveil.message import Message, Obfuscator

VALUES = 4
N = 1200
every_attack = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)


class Sent:
    """An obfuscator of which only the message's facts matter."""

    name = "test"

    def __init__(self, message: Message) -> None:
        self.message = message

    def decode(self, message: Tensor) -> Tensor:
        return message


def split_at(at: int) -> sv.SplitModel:
    torch.manual_seed(0)
    return sv.SplitModel(sv.Table1Net((1, 16, 16), 3), at=at)


def views(sent: Tensor, veil: Obfuscator | None, at: int, kept: Tensor | None = None) -> tuple[View, View, View]:
    """Thirds of the messages: train, val, test."""
    kept = torch.full((len(sent),), sent.shape[1]) if kept is None else kept
    public = Public(split_at(at), veil)
    third = len(sent) // 3
    return tuple(View(sent[i : i + third], kept[i : i + third], public) for i in (0, third, 2 * third))


def test_accuracy(attack: Attack, sent: Tensor, secret: Tensor, veil: Obfuscator | None, at: int, **more) -> float:
    train, val, test = views(sent, veil, at, **more)
    parts = torch.split(secret, len(train))
    guess = attack.fit(train, parts[0], val, parts[1], n_values=VALUES, seed=0)
    log_probabilities = guess(test)
    torch.testing.assert_close(log_probabilities.exp().sum(1), torch.ones(len(test)))
    return float((log_probabilities.argmax(1) == parts[2]).float().mean())


test_accuracy.__test__ = False


def secrets(n: int = 3 * N) -> Tensor:
    return torch.randint(0, VALUES, (n,), generator=torch.Generator().manual_seed(1))


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def planted(secret: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Noise, with the secret in the mean of some of the first component's elements."""
    sent = noise(len(secret), *shape)
    pattern = torch.eye(VALUES)[secret] * 6
    if len(shape) == 1:
        sent[:, :VALUES] += pattern
    else:
        rows = pattern[:, :, None].expand(-1, -1, shape[2])
        sent[:, 0, :VALUES, :] += rows
    return sent


@every_attack
@pytest.mark.parametrize(("scale", "mean"), [(1.0, 3e4), (1e-30, 3.0), (1e30, 0.0)])
def test_a_planted_secret_is_found_at_any_scale(attack, scale, mean):
    secret = secrets()
    sent = (planted(secret, (8,)) + mean) * scale
    assert test_accuracy(attack, sent, secret, Sent(Message((8,))), at=4) > 0.95


def test_trees_read_what_varies_alone(monkeypatch):
    """A node sees half of the inputs: with the length, which never varies, half of the nodes of one number saw none."""
    seen = []
    real = HistGradientBoostingClassifier.fit
    monkeypatch.setattr(
        HistGradientBoostingClassifier, "fit", lambda model, x, y: seen.append(x.shape[1]) or real(model, x, y)
    )
    secret = secrets(600)
    trees = GradientBoosting(rounds=10)
    assert test_accuracy(trees, secret[:, None] + noise(600, 1) / 9, secret, Sent(Message((1,))), at=4) > 0.95
    assert set(seen) == {1}
    assert test_accuracy(trees, torch.zeros(600, 1), secret, Sent(Message((1,))), at=4) < 0.5  # nothing varies


@every_attack
def test_noise_stays_at_chance(attack):
    secret = secrets()
    accuracy = test_accuracy(attack, noise(len(secret), 8), secret, Sent(Message((8,))), at=4)
    assert abs(accuracy - 1 / VALUES) < 0.06  # four standard deviations of 1,200 guesses, and the majority's edge


@every_attack
@pytest.mark.parametrize("carries", ["feature", "pre-activation"])
def test_a_secret_planted_in_maps_is_found_at_a_convolutional_cut(attack, carries):
    secret = secrets(2400)
    shape = (16, 8, 8) if carries == "feature" else (5, 8, 8)
    assert test_accuracy(attack, planted(secret, shape), secret, Sent(Message(shape, carries)), at=2) > 0.95


@every_attack
def test_the_length_of_a_message_is_read(attack):
    secret = secrets()
    sent = torch.zeros(len(secret), 8)
    variable = Sent(Message((8,), fixed_length=False))
    assert test_accuracy(attack, sent, secret, variable, at=4, kept=secret + 1) > 0.95
    assert test_accuracy(attack, sent, secret, variable, at=4) < 0.4


@every_attack
@pytest.mark.parametrize("at", [2, 4, 6])
def test_the_servers_answer_is_attacked_as_a_vector(attack, at):
    secret = secrets()
    assert test_accuracy(attack, planted(secret, (VALUES,)), secret, None, at=at) > 0.95


@every_attack
def test_seeds_make_attacks_repeatable_and_leave_the_global_generator_alone(attack):
    secret = secrets(300)
    train, val, test = views(planted(secret, (8,)), Sent(Message((8,))), 4)
    parts = torch.split(secret, len(train))
    found = []
    for seed in (5, 5, 6):
        torch.rand(1)  # the caller's generator moves on; it must not matter
        state = torch.get_rng_state()
        found.append(attack.fit(train, parts[0], val, parts[1], n_values=VALUES, seed=seed)(test))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found[0], found[1])
    # The nearest messages are the same for every seed: nothing is drawn where no components are taken.
    assert torch.equal(found[0], found[2]) == isinstance(attack, NearestNeighbours)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
        ),
    ],
)
def test_the_papers_adversary_has_the_servers_architecture(monkeypatch, device):
    """Layer for layer; only the first input, the last output and the weights differ."""
    built = []

    def spy(candidates):
        built.extend(candidate.fresh() for candidate in candidates)
        raise InterruptedError

    monkeypatch.setattr(networks, "fit_networks", spy)
    for at, veil, sent in (
        (4, Sent(Message((7,))), torch.randn(6, 7)),
        (2, Sent(Message((16, 8, 8))), torch.randn(6, 16, 8, 8)),
        (2, Sent(Message((5, 8, 8), "pre-activation")), torch.randn(6, 5, 8, 8)),
    ):
        train, val, _ = views(sent, veil, at)
        train.public.split.model.to(device)
        with pytest.raises(InterruptedError):
            ServerArchitecture().fit(train, torch.zeros(2).long(), val, torch.zeros(2).long(), n_values=9, seed=0)
        server, net = train.public.split.server, built.pop()
        assert [type(m) for m in net.modules() if not list(m.children())] == [
            type(m) for m in server.modules() if not list(m.children())
        ]
        ours, theirs = list(net.parameters()), list(server.parameters())
        assert ours[0].shape[1] == sent.shape[1] + 1  # the message's length is the last input
        assert ours[-1].shape == (9,)
        assert not any(
            a.shape == b.shape and a.dim() > 1 and torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)
        )


def test_the_papers_adversary_meets_models_with_another_end():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), nn.Softmax(dim=1)).eval()
    split = sv.SplitModel(model, at="2")
    secret = secrets(600)
    public = Public(split, Sent(Message((5,))))
    sent = planted(secret, (5,))
    train, val, test = (View(sent[i : i + 200], torch.full((200,), 5), public) for i in (0, 200, 400))
    guess = ServerArchitecture().fit(train, secret[:200], val, secret[200:400], n_values=VALUES, seed=0)
    assert float((guess(test).argmax(1) == secret[400:]).float().mean()) > 0.8


def test_few_views_are_passed_over_more_often():
    training = Training(epochs=20, least_steps=400, batch_size=256)
    assert training.passes(100_000) == 20
    assert training.passes(256) == 400
    assert training.passes(100) * 100 / 256 >= 400


def test_the_best_epoch_on_validation_is_kept(monkeypatch):
    """A network that is spoilt after its first pass must come back as it was before."""
    secret = secrets(900)
    train, val, _ = views(planted(secret, (8,)), Sent(Message((8,))), 4)
    parts = torch.split(secret, len(train))
    passes = []

    def spoil(net, optimizer, x, labels, batch_size):
        if passes:
            nn.init.zeros_(net.weight)
        else:
            for _ in range(60):
                epoch(net, optimizer, x, labels, batch_size)
        passes.append(1)

    epoch = fitting._epoch
    monkeypatch.setattr(fitting, "_epoch", spoil)
    training = Training(epochs=5, least_steps=1, weight_decays=(0.0,), learning_rate=1e-2)
    inputs = standardised(View.vectors, train)
    job = Job(train, parts[0], val, parts[1], VALUES, 0)
    guess = fit_network(Candidate(lambda: nn.Linear(9, VALUES), inputs, job, training))
    assert len(passes) > 1
    assert float((guess(val).argmax(1) == parts[1]).float().mean()) > 0.9
