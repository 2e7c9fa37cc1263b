"""Tuning without labels: what it improves, what it keeps, and what it leaves alone."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import splitveil as sv
from splitveil.errors import ModelError, RankError, RecipeError, ShapeError
from splitveil.obfuscate import Distilled, Features, ServerAware
from splitveil.obfuscate.distilled import WHOLE, _surplus, prefixes
from splitveil.obfuscate.encoder import Encoder, Layer, affordable_layer
from splitveil.obfuscate.tuning import Lesson, Tuned, divergence
from test_aware import Net, Residual, images, made, seen

N, M = 16, 4


@pytest.fixture(scope="module")
def split() -> sv.SplitModel:
    split = made(Net(N, 6, hidden=12), "read")
    with torch.no_grad():
        split.model.read.weight.mul_(4)  # so that the server bends, and a linear approximation can be bettered
        split.model.last.weight.mul_(4)
    return split


@pytest.fixture(scope="module")
def features(split) -> Features:
    return Features.known(seen(split, images(1000, N)))


@pytest.fixture(scope="module")
def tuned(split, features) -> Distilled:
    return Distilled.fit(split, features, m=M, epochs=6, width=0, bottleneck=0.0)


def kl(split: sv.SplitModel, veil: object, z: Tensor, server: torch.nn.Module | None = None) -> float:
    with torch.no_grad():
        answers = split.server(z).softmax(1)
        return float(divergence(answers, (server or split.server)(veil.decode(veil.encode(z)))))


def everything(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def mean_kl(split: sv.SplitModel, veil: object, z: Tensor, server: torch.nn.Module | None = None) -> float:
    """Over all prefixes that were trained for, each counted as often as it was."""
    sizes, shares = prefixes(M, WHOLE)
    return sum(float(share) * kl(split, veil.keep(int(m)), z, server) for m, share in zip(sizes, shares, strict=True))


def test_new_features_are_answered_better_over_the_prefixes(split, features, tuned):
    start = ServerAware.fit(split, features, m=M)
    z = seen(split, images(500, N, seed=7))
    assert kl(split, tuned.keep(1), z) < 0.97 * kl(split, start.keep(1), z)
    assert mean_kl(split, tuned, z) < 0.97 * mean_kl(split, start, z)
    assert kl(split, tuned, z) < kl(split, tuned.keep(2), z) < kl(split, tuned.keep(1), z)
    assert tuned.message.shape == (M,)
    torch.testing.assert_close(tuned.keep(2).encode(z), tuned.encode(z)[:, :2])


def test_no_epochs_give_the_start_and_its_hidden_layer_computes_the_same(split, features):
    z = seen(split, images(50, N, seed=7))
    start = ServerAware.fit(split, features, m=2)
    for width in (0, 4):
        veil = Distilled.fit(split, features, m=2, epochs=0, width=width)
        torch.testing.assert_close(veil.encode(z), start.encode(z), rtol=1e-4, atol=1e-5)
        assert (veil.layer is None) == (width == 0)
    with pytest.raises(RankError, match="3 units cannot carry 2 coefficients; make it at least 4, or 0"):
        Distilled.fit(split, features, m=2, width=3)
    with pytest.raises(RecipeError, match="epochs=-1 cannot be"):
        Distilled.fit(split, features, m=2, epochs=-1)


def test_the_callers_model_and_random_state_stay_as_they_were(split, features):
    z = next(features.batches()).clone()
    split.model.train()
    before, state = everything(split.model), torch.get_rng_state()
    veils = [Distilled.fit(split, features, m=2, epochs=1, width=width) for width in (0, 8)]
    torch.manual_seed(99)
    veils.append(Distilled.fit(split, features, m=2, epochs=1, width=8))
    assert torch.equal(veils[1].encoder, veils[2].encoder)  # the same by the seed, whatever the global state is
    assert not torch.equal(veils[2].encoder, Distilled.fit(split, features, m=2, epochs=1, width=8, seed=1).encoder)
    torch.set_rng_state(state)
    Distilled.fit(split, features, m=2, epochs=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert split.model.training
    assert all(torch.equal(value, before[name]) for name, value in split.model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in split.model.parameters())
    assert torch.equal(next(features.batches()), z)
    assert not any(value.requires_grad for value in vars(veils[1]).values() if isinstance(value, Tensor))
    split.model.eval()


def test_a_hidden_layer_costs_at_most_a_tenth_of_the_client(split, features):
    for client_macs, width in ((0, None), (10 * 7 * (N + 2), 7), (10 * 3 * (N + 2), None), (10**9, 128)):
        given = Features.known(features.table(40), client_macs=client_macs)
        veil = Distilled.fit(split, given, m=2, epochs=0)
        assert (None if veil.layer is None else len(veil.layer.weight)) == width
        if veil.layer is not None:
            assert veil.layer.weight.numel() + veil.encoder.numel() <= client_macs / 10


MAPS = (2, 5, 6)


@pytest.fixture(scope="module")
def on_maps() -> ServerAware:
    """Of maps, made by hand."""
    n = 60
    rows = torch.randn(2, n)
    return ServerAware(rows, torch.randn(n), torch.linalg.pinv(rows).mT, torch.randn(n), torch.ones(2), MAPS, "by hand")


def averaged(z: Tensor) -> Tensor:
    """Each full square of two by two at its average, the last row of the maps at zero, by hand."""
    found = torch.zeros_like(z)
    for i in (0, 2):
        for j in (0, 2, 4):
            found[:, :, i : i + 2, j : j + 2] = z[:, :, i : i + 2, j : j + 2].mean((2, 3), keepdim=True)
    return found


def test_a_layer_that_averages_starts_as_the_affine_encoder_of_the_averages(on_maps):
    z = torch.randn(7, *MAPS)
    encoder = Encoder.started(on_maps, 4, pool=2)
    assert encoder.layer.weight.shape == (4, 2 * 2 * 3)
    expected = averaged(z - on_maps.mean.reshape(MAPS)).flatten(1) @ on_maps.encoder.mT
    torch.testing.assert_close(encoder(z), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(Encoder.started(on_maps, 4).layer.weight[:2], on_maps.encoder)


def test_the_finest_squares_are_averaged_that_leave_room(on_maps):
    # 60 numbers, 12 averages over squares of two, 2 of four; none of eight fits.
    for room, expected in (
        (4 * 62, (4, 1)), (4 * 62 - 1, (17, 2)), (4 * 14, (4, 2)), (4 * 14 - 1, (13, 4)), (4 * 4, (4, 4)), (15, (0, 1)),
    ):  # fmt: skip
        features = Features.known(torch.randn(3, *MAPS), client_macs=10 * room)
        width, pool = affordable_layer(features, 2, 2)
        assert (width, pool) == expected
        if width:
            layer = Encoder.started(on_maps, width, pool).layer
            assert layer.weight.numel() + 2 * width <= room
    # A vector has no squares.
    assert affordable_layer(Features.known(torch.randn(3, 60), client_macs=10 * 14 * 4), 2, 2) == (0, 1)


class Differences(nn.Module):
    """Reads how neighbours differ within squares, of which no average tells anything."""

    def __init__(self) -> None:
        super().__init__()
        self.pass_on = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.pass_on(x)
        across = (y[..., ::2] - y[..., 1::2]).flatten(1)
        return 8 * torch.stack([across[:, :5].sum(1), across[:, 5:].sum(1), across[:, 0]], 1)


@pytest.fixture(scope="module")
def averageable() -> tuple[sv.SplitModel, Features]:
    """Features whose averages over squares a layer can afford to read, but not all their numbers."""
    return sv.SplitModel(Differences(), "pass_on"), Features.known(images(600, *MAPS), client_macs=10 * 10 * (12 + 1))


def test_averages_are_not_read_where_they_lose_what_the_server_reads(averageable):
    split, features = averageable
    found: list[tuple[int, int]] = []
    veil = Distilled.fit(split, features, m=2, epochs=3, progress=lambda done, total, _: found.append((done, total)))
    assert affordable_layer(features, 2, 2) == (9, 2)
    assert veil.layer is None
    assert torch.equal(veil.encoder, Distilled.fit(split, features, m=2, epochs=3, width=0).encoder)
    assert found == [(done, 6) for done in (0, 1, 2, 3, 3, 4, 5, 6)]  # both were tuned, one after the other
    assert sv.Codebook.fit(split, features, messages=3, epochs=3).encoder.layer is None


@pytest.mark.parametrize("better", [0, 1])
def test_of_two_encoders_the_one_that_keeps_held_out_answers_is_taken(averageable, monkeypatch, better):
    split, features = averageable
    tune, given, tuned = Lesson.tune, [], []

    def judged(self: Lesson, start: dict[str, Tensor], *rest: object, **options: object) -> Tuned:
        server = options.get("server")
        given.append((start, server))
        tuned.append(tune(self, start, *rest, **options))  # type: ignore[arg-type]
        return replace(tuned[-1], loss=float(len(given) != better + 1))

    monkeypatch.setattr(Lesson, "tune", judged)
    pool = (None, 2)[better]
    veil = Distilled.fit(split, features, m=2, epochs=1)
    assert (veil.layer and veil.layer.pool) == pool
    assert torch.equal(veil.decoder, tuned[better].weights["decoder"])
    given.clear(), tuned.clear()
    copy, veil = Distilled.fit_with_server(split, features, m=2, epochs=1)
    assert (veil.layer and veil.layer.pool) == pool
    assert copy.server is given[better][1] is not given[1 - better][1]
    given.clear(), tuned.clear()
    book = sv.Codebook.fit(split, features, messages=3, epochs=1)
    assert (book.encoder.layer and book.encoder.layer.pool) == pool
    assert torch.equal(book.table, tuned[better].weights["table"])


@pytest.mark.parametrize(
    ("weight", "bias", "pool"),
    [((4, 11), 4, 2), ((4, 12), 4, 1), ((4, 12), 4, 3), ((4, 12), 3, 2), ((4,), 4, 2), ((4, 12), 4, 6), ((4, 0), 4, 0)],
)
def test_a_layer_that_does_not_fit_the_feature_is_refused(on_maps, weight, bias, pool):
    def veil(weight: tuple[int, ...], bias: int, pool: int) -> Distilled:
        layer = Layer(torch.zeros(weight), torch.zeros(bias), pool)
        start = on_maps
        return Distilled(
            torch.zeros(2, 4), start.mean, start.decoder, start.offset, start.energy, MAPS, "distilled", layer
        )  # fmt: skip

    assert veil((4, 12), 4, 2).encode(torch.zeros(3, *MAPS)).shape == (3, 2)
    with pytest.raises(ShapeError):
        veil(weight, bias, pool)


def test_the_server_may_be_tuned_along_in_a_copy(split, features, tuned):
    for p in split.model.parameters():
        p.requires_grad_(False)  # as of a model that was exported
    before = everything(split.model)
    copy, veil = Distilled.fit_with_server(split, features, m=M, epochs=6, width=0, bottleneck=0.0)
    assert all(torch.equal(value, before[name]) for name, value in split.model.state_dict().items())
    changed = {name for name, value in copy.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"read.weight", "read.bias", "last.weight", "last.bias"}
    assert all(p.grad is None for p in copy.model.parameters())
    z = seen(split, images(500, N, seed=7))
    assert mean_kl(split, veil, z, copy.server) < 0.97 * mean_kl(split, ServerAware.fit(split, features, m=M), z)
    assert mean_kl(split, veil, z, copy.server) < 1.01 * mean_kl(split, tuned, z)  # here it has little to gain
    assert torch.equal(seen(copy, images(9, N)), seen(split, images(9, N)))
    for p in split.model.parameters():
        p.requires_grad_()


def test_the_bottleneck_takes_what_the_answer_can_do_without(split, features, tuned):
    tight = Distilled.fit(split, features, m=M, epochs=6, width=0, bottleneck=0.5)
    z = features.table(10**9)
    assert tight.encode(z).square().mean() < 0.5 * tuned.encode(z).square().mean()
    assert kl(split, tight, z) > kl(split, tuned, z)
    # KL of Gaussians, against torch's own.
    a, log_noise = torch.randn(20, 3), torch.tensor([-1.0, 0.2, -3.0])
    each = torch.distributions.kl_divergence(
        torch.distributions.Normal(a, log_noise.exp()), torch.distributions.Normal(0.0, 1.0)
    )
    kept = torch.tensor([True, False, True])
    torch.testing.assert_close(_surplus(a, log_noise, kept), each[:, [0, 2]].sum(1).mean())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mixing": -0.1}, "mixing=-0.1 cannot be; take a number from 0.01 to 100, or 0"),
        ({"mixing": 1e-6}, "mixing=1e-06 cannot be"),
        ({"mixing": float("nan")}, "mixing=nan cannot be"),
        ({"temperature": 0}, "temperature=0 cannot be; take a number from 0.1 to 100"),
        ({"temperature": float("nan")}, "temperature=nan cannot be"),
        ({"bottleneck": -1}, "bottleneck=-1 cannot be"),
        ({"bottleneck": float("nan")}, "bottleneck=nan cannot be"),
        ({"epochs": -1}, "epochs=-1 cannot be"),
        ({"whole": 0.0}, "whole=0.0 cannot be"),
        ({"whole": 1.1}, "whole=1.1 cannot be"),
        ({"whole": float("nan")}, "whole=nan cannot be"),
    ],
)
def test_settings_that_cannot_be_are_refused(split, features, settings, sentence):
    with pytest.raises(RecipeError, match=sentence):
        Distilled.fit(split, features, m=1, **settings)
    if "mixing" in settings:
        with pytest.raises(RecipeError, match=sentence):
            sv.Codebook.fit(split, features, messages=2, **settings)


@pytest.mark.parametrize("kind", [sv.CovarianceAware, ServerAware, Distilled])
@pytest.mark.parametrize("m", [0, -1])
def test_less_than_one_coefficient_is_refused(split, features, kind, m):
    with pytest.raises(RankError, match=f"m={m} coefficients cannot be; take at least 1"):
        kind.fit(split, features, m=m)


@pytest.mark.parametrize("made_with", [torch.enable_grad, torch.inference_mode, torch.no_grad])
def test_features_at_hand_may_have_a_graph_and_the_caller_any_mode(split, made_with):
    x = images(1000, N)
    with made_with():
        z = split.client(x)
        assert z.requires_grad == (made_with is torch.enable_grad)
    at_hand = Features.known(z)
    with torch.no_grad():
        veils = [
            ServerAware.fit(split, at_hand, m=2),
            Distilled.fit(split, at_hand, m=2, epochs=3),
            sv.Codebook.fit(split, at_hand, messages=3, epochs=2),
        ]
    assert all(p.grad is None for p in split.model.parameters())
    assert not any(value.requires_grad for veil in veils for value in vars(veil).values() if isinstance(value, Tensor))
    assert not torch.equal(veils[1].decoder, Distilled.fit(split, at_hand, m=2, epochs=0).decoder)  # it was tuned


def test_prefixes_are_powers_of_two_and_all_and_the_whole_counts_most():
    found = {m: tuple(map(Tensor.tolist, prefixes(m, 0.5))) for m in (1, 2, 6, 8)}
    sixth = pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])
    assert found == {1: ([1], [1]), 2: ([1, 2], [0.5, 0.5]), 6: ([1, 2, 4, 6], sixth), 8: ([1, 2, 4, 8], sixth)}


def test_what_no_shorter_prefix_takes_part_in_serves_the_whole_better_and_its_prefixes_worse(split, features, tuned):
    z = seen(split, images(500, N, seed=7))
    alone = Distilled.fit(split, features, m=M, epochs=6, width=0, bottleneck=0.0, whole=1.0)
    assert kl(split, alone, z) < 0.97 * kl(split, tuned, z)
    assert kl(split, tuned.keep(1), z) < 0.97 * kl(split, alone.keep(1), z)


def test_the_divergence_is_that_of_distributions():
    p, logits = torch.randn(30, 5).softmax(1), torch.randn(30, 5)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(probs=p), torch.distributions.Categorical(logits=logits)
    )
    torch.testing.assert_close(divergence(p, logits), expected.mean())


def test_the_best_epoch_is_kept_not_the_last(split, features):
    lesson = Lesson.of(split, features)
    found: list[float] = []

    def worse(weights: dict[str, Tensor], z: Tensor, answers: Tensor, training: bool) -> Tensor:  # noqa: ARG001
        value = weights["w"].square().sum()
        return -value if training else value  # what is learnt makes the held-out features worse

    kept = lesson.tune({"w": torch.ones(2)}, worse, epochs=2, seed=0, progress=lambda *_: found.append(1.0))
    assert torch.equal(kept.weights["w"], torch.ones(2))
    assert kept.loss == 2.0
    assert len(found) == 3

    def never(weights: dict[str, Tensor], z: Tensor, answers: Tensor, training: bool) -> Tensor:  # noqa: ARG001
        return weights["w"].sum() * torch.nan

    with pytest.raises(ModelError, match="no finite numbers"):
        lesson.tune({"w": torch.ones(2)}, never, epochs=1, seed=0)


def test_what_is_learnt_from_are_mixtures_and_the_answers_to_them():
    z, teacher = torch.eye(300), torch.nn.Linear(300, 4)
    lesson = Lesson(z, teacher(z).softmax(1), teacher)
    known: dict[bool, list[Tensor]] = {True: [], False: []}

    def loss(weights: dict[str, Tensor], rows: Tensor, answers: Tensor, training: bool) -> Tensor:
        torch.testing.assert_close(answers, teacher(rows).softmax(1))
        known[training].append(rows)
        return weights["w"].sum()

    lesson.tune({"w": torch.ones(1)}, loss, epochs=1, seed=0)
    assert torch.equal(known[False][0], z[::10])  # held-out features as they are
    learnt = torch.cat(known[True])
    assert learnt[:, ::10].count_nonzero() == 0
    assert learnt[:, torch.arange(300) % 10 != 0].count_nonzero(0).eq(2).all()  # each one stands in two mixtures
    torch.testing.assert_close(learnt.sum(1), torch.ones(270))
    known[True].clear()
    lesson.tune({"w": torch.ones(1)}, loss, epochs=1, seed=0, mixing=0.0)
    assert torch.equal(torch.cat(known[True]).count_nonzero(1), torch.ones(270))  # as they are
    halves = (learnt.max(1).values < 0.8).float().mean()
    assert 0.2 < halves < 0.38  # Beta(0.3, 0.3) has 29 % between 0.2 and 0.8


def test_feature_maps_before_a_residual_connection():
    split, x = made(Residual(), "act"), images(200, 1, 6, 6)
    features = Features.of(split, x)
    veil = Distilled.fit(split, features, m=2, epochs=1)
    z = features.table(10**9).reshape(-1, *features.shape)
    copy = z.clone()
    Distilled.fit(split, Features.known(z), m=2, epochs=1)
    assert torch.equal(z, copy)
    assert split.answer(veil, veil.encode(z)).shape == (200, 3)


def test_features_that_are_no_numbers(split):
    z = torch.rand(100, N)
    z[50] = torch.nan
    with pytest.raises(ModelError, match="are not all finite"):
        Distilled.fit(split, Features.known(z), m=1)
    with pytest.raises(ModelError, match="features are not all finite"):
        Lesson.of(split, Features.known(z))
