"""Networks that are trained together guess as if each had been alone."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

import splitveil as sv
from splitveil.attack import Job, Perceptron, Public, ServerArchitecture, Training, View, ensemble, fit_all
from splitveil.attack.fitting import Candidate, fit_network, standardised
from splitveil.attack.networks import perceptron
from splitveil.attack.stack import Stack, architecture, chain, keep_mask

N = 400
QUICK = Training(epochs=4, least_steps=60, learning_rate=1e-2, weight_decays=(0.0,), batch_size=100)
EXACT = Perceptron(hidden=(16, 8), dropout=(0.0, 0.0), training=QUICK)
"""Without dropout nothing is drawn that depends on the inputs' width."""


@pytest.fixture
def float32(monkeypatch):
    monkeypatch.setattr(ensemble, "fastest_precision", lambda _: "float32")


@pytest.fixture(scope="module")
def public() -> Public:
    torch.manual_seed(0)
    return Public(sv.SplitModel(sv.Table1Net((1, 16, 16), 3), at=4), None)


def job(public: Public, width: int, values: int, seed: int, *, clear: float = 3.0, n: int = N) -> Job:
    """A secret of its own in the first element of noise, in more of them where there are hundreds."""
    generator = torch.Generator().manual_seed(100 * width + seed)
    secret = torch.randint(0, values, (2 * n,), generator=generator)
    sent = torch.randn(2 * n, width, generator=generator)
    sent[:, : 1 + width // 100] += clear * secret[:, None]
    train, val = (View(part, torch.full((n,), width), public) for part in (sent[:n], sent[n:]))
    return Job(train, secret[:n], val, secret[n:], values, seed)


def accuracy(guess, task: Job) -> float:
    return float((guess(task.val).argmax(1) == task.val_secret).float().mean())


def mixed(public: Public) -> list[Job]:
    """Other widths, numbers of values and seeds; none in the order of its width."""
    return [job(public, *each) for each in ((8, 3, 0), (1, 2, 1), (64, 5, 0), (4, 2, 2), (8, 4, 1))]


@pytest.mark.usefixtures("float32")
def test_members_guess_as_if_they_had_been_alone(public):
    jobs = mixed(public)
    for task, together in zip(jobs, EXACT.fit_many(jobs), strict=True):
        alone = EXACT.fit(
            task.train, task.secret, task.val, task.val_secret, n_values=task.n_values, seed=task.seed
        )  # fmt: skip
        assert together(task.val).shape == (N, task.n_values)
        torch.testing.assert_close(together(task.val), alone(task.val), rtol=0.05, atol=0.05)


@pytest.mark.usefixtures("float32")
def test_a_member_learns_as_a_network_of_its_own_does(public):
    """Step for step: the same first weights, the same updates, the same running statistics."""
    task = job(public, 8, 3, 0)
    training = replace(QUICK, epochs=3, least_steps=1, batch_size=N, weight_decays=(10.0,))  # order plays no part
    build = lambda: perceptron((9, 16, 8), 3)  # noqa: E731
    candidate = Candidate(build, standardised(View.vectors, task.train), task, training)
    (together,) = ensemble.fit_networks([candidate])
    torch.testing.assert_close(together(task.val), fit_network(candidate)(task.val), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "attack", [Perceptron(), ServerArchitecture(), Perceptron("linear", (), (0.0, 0.0))], ids=lambda each: each.name
)
def test_each_member_finds_the_secret_that_it_alone_has(public, attack):
    attack = replace(attack, training=replace(attack.training, epochs=5, least_steps=200, learning_rate=1e-2))
    jobs = [job(public, width, 2, seed, clear=6.0) for width, seed in ((1, 0), (5, 1), (40, 0), (5, 2))]
    guesses = fit_all(attack, jobs)
    for i, task in enumerate(jobs):
        assert accuracy(guesses[i], task) > 0.95
    other = replace(jobs[1], val=jobs[3].val)
    assert accuracy(guesses[1], replace(other, val_secret=jobs[1].val_secret)) < 0.7


def test_every_weight_decay_is_a_member_and_the_best_one_counts(public):
    """One that forbids to learn anything must not be chosen, wherever it stands."""
    jobs = mixed(public)[:2]
    for decays in ((0.0, 300.0), (300.0, 0.0)):
        attack = replace(EXACT, training=replace(QUICK, weight_decays=decays, least_steps=200))
        for guess, task in zip(attack.fit_many(jobs), jobs, strict=True):
            assert accuracy(guess, task) > 0.7


def test_values_that_only_others_have_get_no_probability_and_take_none(public):
    few, many = job(public, 4, 2, 0, clear=6.0), job(public, 4, 30, 0)
    guess = EXACT.fit_many([few, many])[0]
    torch.testing.assert_close(guess(few.val).exp().sum(1), torch.ones(N))
    assert guess(few.val).shape == (N, 2)
    assert accuracy(guess, few) > 0.9


def test_a_constant_input_spoils_neither_its_member_nor_the_others(public):
    constant, other = job(public, 6, 2, 0), job(public, 6, 2, 1, clear=6.0)
    for view in (constant.train, constant.val):
        view.sent.fill_(7.0)
    nothing, found = EXACT.fit_many([constant, other])
    assert nothing(constant.val).isfinite().all()
    assert accuracy(nothing, constant) < 0.6
    assert accuracy(found, other) > 0.9


@pytest.mark.usefixtures("float32")
def test_members_that_run_out_of_patience_leave_and_keep_their_best_epoch(public, monkeypatch):
    noise, clear = job(public, 4, 2, 0, clear=0.0), job(public, 4, 2, 1, clear=2.0)
    sizes = []

    def spy(stack, material, members):
        sizes.append(len(members))
        return validate(stack, material, members)

    validate = ensemble._validate
    monkeypatch.setattr(ensemble, "_validate", spy)
    training = replace(QUICK, epochs=40, patience=0.1, learning_rate=3e-4)
    attack = replace(EXACT, training=training)
    guesses = attack.fit_many([noise, clear])
    assert sizes[0] == 2
    assert 1 in sizes
    assert sizes == sorted(sizes, reverse=True)
    assert accuracy(guesses[1], clear) > 0.75
    alone = attack.fit_many([clear])[0]
    torch.testing.assert_close(guesses[1](clear.val), alone(clear.val), rtol=0.05, atol=0.05)


def test_the_best_epoch_on_validation_is_kept(public, monkeypatch):
    """A member that is spoilt after its first pass comes back as it was before."""
    task = job(public, 4, 2, 0, clear=6.0)
    passes = []

    def spoil(stack, *rest):
        if passes:
            stack.parameters.detach().zero_()
        else:
            for _ in range(20):
                epoch(stack, *rest)
        passes.append(1)

    epoch = ensemble._epoch
    monkeypatch.setattr(ensemble, "_epoch", spoil)
    assert accuracy(EXACT.fit_many([task])[0], task) > 0.9
    assert len(passes) > 1


def test_more_members_than_there_is_room_for_come_back_in_order(public, monkeypatch):
    jobs = [job(public, width, 2, 0, clear=6.0) for width in (9, 2, 7, 2, 5)]
    monkeypatch.setattr(ensemble, "ROOM", 40)  # two at a time
    stacks = []

    class Spy(Stack):
        def __init__(self, chains, dtype):
            stacks.append(len(chains))
            super().__init__(chains, dtype)

    monkeypatch.setattr(ensemble, "Stack", Spy)
    guesses = EXACT.fit_many(jobs)
    assert stacks == [2, 2, 1]
    assert all(accuracy(guess, task) > 0.9 for guess, task in zip(guesses, jobs, strict=True))


def test_numbers_of_views_may_differ(public):
    jobs = [job(public, 4, 2, 0, clear=6.0), job(public, 4, 2, 0, clear=6.0, n=201)]
    for guess, task in zip(EXACT.fit_many(jobs), jobs, strict=True):
        assert accuracy(guess, task) > 0.9


def test_seeds_make_it_repeatable_and_leave_the_global_generator_alone(public):
    jobs = mixed(public)[:3]
    attack = Perceptron(hidden=(16,), training=QUICK)
    found = []
    for shift in (0, 0, 1):
        torch.rand(1)
        state = torch.get_rng_state()
        guesses = attack.fit_many([replace(each, seed=each.seed + shift) for each in jobs])
        found.append([guess(each.val) for guess, each in zip(guesses, jobs, strict=True)])
        assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, found[0], found[1]))
    assert not any(map(torch.equal, found[0], found[2]))


def test_the_seed_decides_the_order_of_the_views_too(public):
    task = job(public, 8, 3, 0)

    def build() -> nn.Module:
        net = nn.Linear(9, 3)
        nn.init.zeros_(net.weight), nn.init.zeros_(net.bias)
        return net

    inputs = standardised(View.vectors, task.train)
    tasks = [replace(task, seed=seed) for seed in (0, 1, 0)]
    first, other, again = (
        guess(task.val) for guess in ensemble.fit_networks([Candidate(build, inputs, each, QUICK) for each in tasks])
    )
    assert not torch.equal(first, other)
    torch.testing.assert_close(first, again)


def test_a_long_message_and_a_network_that_is_no_chain_are_fitted_beside_the_others(public):
    wide = job(public, 300, 2, 0, clear=6.0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), nn.Softmax(dim=1)).eval()
    odd = job(Public(sv.SplitModel(model, at="2"), None), 5, 2, 0, clear=6.0)
    jobs = [wide, odd, job(public, 4, 2, 0, clear=6.0)]
    attack = ServerArchitecture(training=replace(QUICK, weight_decays=(1.0,)))
    for guess, task in zip(attack.fit_many(jobs), jobs, strict=True):
        assert accuracy(guess, task) > 0.8


def test_an_attack_that_only_fits_is_fitted_to_each_job_in_order(public):
    class First:
        name = "first"

        def fit(self, *_, n_values, seed):
            return lambda view: torch.full((len(view), n_values), float(seed))

    jobs = mixed(public)
    for guess, task in zip(fit_all(First(), jobs), jobs, strict=True):
        assert torch.equal(guess(task.val), torch.full((N, task.n_values), float(task.seed)))


def test_no_jobs_are_no_guesses():
    assert fit_all(Perceptron(), []) == []


def net(*widths: int, values: int = 3) -> nn.Module:
    made = perceptron(widths, values, (0.0, 0.5))
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm1d):
            for each in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                nn.init.uniform_(each, 0.5, 2)
    return made


def test_a_stack_computes_what_its_networks_do():
    torch.manual_seed(0)
    nets = [net(5, 7, 6), net(3, 7, 6, values=2)]
    x = torch.randn(2, 5, 11)
    x[1, 3:] = 0
    stack = Stack([chain(each) for each in nets], torch.float32)
    found = stack.logits(x)
    for each, own, inputs, width in zip(nets, found, x, (5, 3), strict=True):
        expected = each.eval()(inputs[:width].T)
        torch.testing.assert_close(own[: expected.shape[1]].T, expected)


def test_a_stack_trains_batch_normalisation_as_torch_does_and_gives_its_weights_back():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 2))
    x: Tensor = torch.randn(9, 4)
    stack = Stack([chain(plain)], torch.float32)
    torch.testing.assert_close(stack.logits(x.T[None], [])[0].T, plain.train()(x))
    expected = plain[2].running_var.clone()
    plain[2].reset_running_stats()
    stack.unstack(stack.parameters[0], stack.statistics[0], chain(plain))
    torch.testing.assert_close(plain[2].running_var, expected)
    torch.testing.assert_close(stack.logits(x.T[None])[0].T, plain.eval()(x))


def test_which_networks_are_chains():
    model = sv.Table1Net((1, 16, 16), 3)
    assert [type(each) for each in chain(sv.SplitModel(model, at=5).server)] == [
        nn.Linear, nn.ReLU, nn.BatchNorm1d, nn.Linear,
    ]  # fmt: skip
    assert chain(sv.SplitModel(model, at=2).server) is None  # convolutions
    assert chain(nn.Sequential(nn.Linear(2, 2), nn.Softmax(1))) is None
    assert chain(nn.Sequential(nn.Linear(2, 2, bias=False))) is None
    same = nn.Linear(2, 2)
    assert chain(nn.Sequential(same, nn.ReLU(), same)) is None

    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(x) + x

    assert chain(fx.symbolic_trace(Skip())) is None


def test_architectures_differ_in_all_but_inputs_outputs_and_weights():
    base = architecture(chain(net(5, 7, 6)))
    assert architecture(chain(net(3, 7, 6, values=9))) == base
    assert architecture(chain(net(5, 8, 6))) != base
    assert architecture(chain(net(5, 7))) != base
    assert architecture(chain(perceptron((5, 7, 6), 3, (0.0, 0.4)))) != base


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_mask_drops_its_share_and_keeps_the_mean(share):
    mask = keep_mask((300, 301), share, torch.float32, torch.Generator().manual_seed(0))
    assert abs(float((mask == 0).float().mean()) - share) < 0.006
    assert abs(float(mask.mean()) - 1) < 0.01
    assert len(mask.unique()) == 2
    columns = (mask == 0).float().mean(0)
    assert float(columns.min()) > share - 0.15  # no place is spared
    assert float(columns.max()) < share + 0.15
