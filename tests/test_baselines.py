"""Baselines on a plainly trained model: each does what its paper says on a case with a known answer."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

import splitveil as sv
from splitveil.baselines import BASELINES, Defence, Defended, Undefended
from splitveil.baselines.device import AnswerOnDevice
from splitveil.baselines.erasure import LeastSquaresErasure
from splitveil.baselines.finetuning import Start, finetune, train_network
from splitveil.baselines.noise import LearnedNoise, OrderedLaplace
from splitveil.baselines.privacy import ClippedGaussian, GaussianMechanism, gaussian_delta, gaussian_sigma
from splitveil.baselines.projection import PrincipalComponents, RandomProjection
from splitveil.baselines.pruning import Pruning
from splitveil.errors import BaselineError, OperatorError
from splitveil.exchange import Client, Server

SETTINGS: tuple[Defence, ...] = (
    Pruning(2), RandomProjection(3), PrincipalComponents(3), LearnedNoise(0.3), GaussianMechanism(100.0),
    LeastSquaresErasure(), AnswerOnDevice(0), AnswerOnDevice(3),
)  # fmt: skip
UNSUPERVISED = tuple(setting for setting in SETTINGS if not setting.supervised)


def ident(setting: Any) -> str:
    return repr(setting)


def quadrants() -> sv.Dataset:
    """4×4 images: the target is the brightness of the left half, the hidden colour that of the right half."""
    generator = np.random.default_rng(0)
    y, colour = generator.integers(0, 2, 1000), generator.integers(0, 3, 1000)
    x = generator.integers(0, 90, (1000, 1, 4, 4))
    x[:, 0, :, :2] += 70 * y[:, None, None]
    x[:, 0, :, 2:] += 70 * colour[:, None, None]
    return sv.Dataset.from_arrays(x.astype(np.uint8), y, {"colour": colour})


class Small(nn.Module):
    """A convolution, then two fully connected layers; cut 1 before a convolution, cut 2 on a flat feature."""

    cut_points = ("second", "hidden")

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 3, 3, padding=1)
        self.hidden = nn.Linear(48, 8)
        self.norm = nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x)))).flatten(1)
        return self.last(self.norm(torch.relu(self.hidden(x))))


@pytest.fixture(scope="module")
def data() -> sv.Dataset:
    return quadrants()


@pytest.fixture(scope="module")
def model(data: sv.Dataset) -> nn.Module:
    torch.manual_seed(0)
    model = Small()
    sv.fit(model, data, recipe())
    return model


def recipe(epochs: int = 6) -> sv.Recipe:
    return sv.Recipe(epochs=epochs, batch_size=32, learning_rate=1e-2)


def undefended(model: nn.Module, data: sv.Dataset, at: int = 2, hidden: str | None = "colour") -> Undefended:
    return Undefended(model, at, data, recipe(), hidden)


class Linear(nn.Module):
    """The image's 16 numbers, and one linear layer with given weights that reads them."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.flat = nn.Flatten()
        self.layer = nn.Linear(16, 2)
        with torch.no_grad():
            self.layer.weight.copy_(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.flat(x))


def linear(data: sv.Dataset, weight: torch.Tensor, hidden: str | None = None) -> Undefended:
    return Undefended(Linear(weight), "layer", data, recipe(), hidden)


def answers(defended: Defended, x: torch.Tensor) -> torch.Tensor:
    frames = Client(defended.split, defended.veil).send(x)
    return Server(defended.split, defended.veil).answer(frames)


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("setting", SETTINGS, ids=ident)
def test_every_baseline_keeps_the_interface(setting: Defence, at: int, model: nn.Module, data: sv.Dataset) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    defended = setting.fit(undefended(model, data, at))
    assert not model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    veil, x = defended.veil, data.val.x
    with torch.no_grad():
        z = defended.split.client(x)
        message, again = veil.encode(z), veil.encode(z)
    assert message.shape == (len(x), *veil.message.shape)
    assert veil.message.fixed_length
    assert torch.equal(message, again) != veil.message.random
    assert veil.message.distinct is None or len(message.unique(dim=0)) <= veil.message.distinct
    torch.manual_seed(3)
    over_the_wire = answers(defended, x)
    torch.manual_seed(3)
    with torch.no_grad():
        here = defended.split.answer(veil, veil.encode(z))
    assert torch.allclose(over_the_wire, here, atol=1e-5)
    accuracy = float((over_the_wire.argmax(1) == data.val.y).double().mean())
    assert accuracy == pytest.approx(defended.facts["val_accuracy"], abs=0.25 if veil.message.random else 1e-9)
    with pytest.raises(OperatorError):
        veil.finish(message)


@pytest.mark.parametrize("setting", UNSUPERVISED, ids=ident)
def test_an_unsupervised_baseline_needs_no_hidden_label_and_is_repeatable(
    setting: Defence, model: nn.Module, data: sv.Dataset
) -> None:
    told = setting.fit(undefended(model, data))
    torch.rand(1)  # the global generator stands elsewhere
    untold = setting.fit(undefended(model, data.without_hidden(), hidden=None))
    assert told.facts == untold.facts
    for one, other in zip(told.split.model.parameters(), untold.split.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Pruning(0), lambda: Pruning(True), lambda: RandomProjection(-1), lambda: PrincipalComponents(1.0),
        lambda: LearnedNoise(0.0), lambda: LearnedNoise(math.nan), lambda: GaussianMechanism(0.0),
        lambda: GaussianMechanism(math.inf), lambda: GaussianMechanism(1.0, delta=1.0),
        lambda: GaussianMechanism(1.0, clip=0.0), lambda: AnswerOnDevice(-1), lambda: AnswerOnDevice(2.5),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(wrong: Any) -> None:
    with pytest.raises(BaselineError):
        wrong()


@pytest.mark.parametrize("setting", [Pruning(49), RandomProjection(49), PrincipalComponents(49)], ids=ident)
def test_more_components_than_there_are_is_refused(setting: Defence, model: nn.Module, data: sv.Dataset) -> None:
    with pytest.raises(BaselineError, match="choose a smaller m"):
        setting.fit(undefended(model, data))


def test_fine_tuning_repairs_a_spoilt_server_and_never_hurts(model: nn.Module, data: sv.Dataset) -> None:
    start = Start.of(undefended(model, data))
    veil = sv.Identity(start.feature_shape)
    good = finetune(undefended(model, data), start, veil)
    assert good["val_accuracy"] >= good["val_untuned"]
    assert start.split.model is not model
    client = [p.clone() for p in start.split.client.parameters()]
    nn.init.zeros_(start.split.model.last.weight)  # type: ignore[union-attr,arg-type]
    spoilt = finetune(undefended(model, data), start, veil)
    assert spoilt["epoch"] > 0
    assert spoilt["val_untuned"] < 0.7 < spoilt["val_accuracy"]
    assert all(torch.equal(a, b) for a, b in zip(client, start.split.client.parameters(), strict=True))


def test_the_best_epoch_on_validation_is_what_stays(data: sv.Dataset) -> None:
    z, val = ((part.x.flatten(1) - data.train.x.mean()) * 10 for part in (data.train, data.val))
    signs = iter([1.0] * 10 + [-1.0] * 30)  # the later epochs teach the contrary
    torch.manual_seed(0)
    network = nn.Linear(16, 2)
    found = train_network(network, lambda: next(signs) * z, val, undefended(network, data), epochs=40)
    assert found["epoch"] <= 12
    assert found["val_accuracy"] > 0.9
    assert float((network(val).argmax(1) == data.val.y).double().mean()) == found["val_accuracy"]


def test_pruning_keeps_the_columns_with_the_largest_l1_norms(data: sv.Dataset) -> None:
    weight = torch.full((2, 16), 0.1)
    weight[:, 3] = torch.tensor([-2.0, 1.0])  # 3 in L1
    weight[:, 11] = torch.tensor([2.5, 0.0])  # 2.5 in L1, but above column 3 in L2 and in its maximum
    weight[:, 7] = torch.tensor([1.0, -1.0])
    for m, kept in ((1, [3]), (2, [3, 11]), (3, [3, 7, 11])):
        defended = Pruning(m).fit(linear(data, weight))
        z = torch.arange(16.0)[None] + 1
        assert defended.veil.encode(z).tolist() == [[float(i + 1) for i in kept]]
        zeroed = defended.veil.decode(defended.veil.encode(z))
        assert zeroed.nonzero()[:, 1].tolist() == kept
        assert torch.equal(zeroed[:, kept], z[:, kept])


def test_pruning_before_a_convolution_keeps_channels(model: nn.Module, data: sv.Dataset) -> None:
    planted = Small()
    planted.load_state_dict(model.state_dict())
    with torch.no_grad():
        planted.second.weight[:, 2] *= 100
    defended = Pruning(1).fit(undefended(planted, data, at=1))
    z = torch.rand(2, 4, 4, 4)
    assert defended.facts["unit"] == "channel"
    assert torch.equal(defended.veil.encode(z), z[:, 2:3])
    assert defended.veil.decode(z[:, 2:3])[:, [0, 1, 3]].abs().max() == 0


def test_a_random_projection_is_orthonormal_and_seeded(data: sv.Dataset) -> None:
    veil = RandomProjection(5).fit(linear(data, torch.ones(2, 16))).veil
    again = RandomProjection(5).fit(linear(data, torch.ones(2, 16))).veil
    a = torch.randn(3, 5)
    assert torch.allclose(veil.encode(veil.decode(a)), a, atol=1e-5)
    assert torch.allclose(veil.decode(a).norm(dim=1), a.norm(dim=1), atol=1e-5)
    assert torch.equal(veil.decode(a), again.decode(a))


def test_principal_components_match_the_covariance(data: sv.Dataset) -> None:
    defended = PrincipalComponents(2).fit(linear(data, torch.ones(2, 16)))
    z = data.train.x.flatten(1)
    variances = torch.from_numpy(np.linalg.eigvalsh(np.cov(z.numpy().T))[::-1].copy())
    a = defended.veil.encode(z)
    assert torch.allclose(a.mean(0), torch.zeros(2), atol=1e-5)
    assert torch.allclose(a.var(0).double(), variances[:2], rtol=1e-3)
    assert defended.facts["explained"] == pytest.approx(float(variances[:2].sum() / variances.sum()), rel=1e-3)
    lost = (z - defended.veil.decode(a)).square().sum() / (len(z) - 1)
    assert float(lost) == pytest.approx(float(variances[2:].sum()), rel=1e-3)


def test_learned_noise_grows_with_its_weight_where_the_server_does_not_look(data: sv.Dataset) -> None:
    weight = torch.zeros(2, 16)
    weight[1, 0::4] = 20.0
    weight[0, 0::4] = -20.0  # the server reads the first column alone
    strong = LearnedNoise(1.0)
    noise = strong._learn(linear(data, weight), Start.of(linear(data, weight)), 0.3).abs().mean(0)
    read, unread = noise[0::4].mean(), noise[[i for i in range(16) if i % 4]].mean()
    assert unread > 1.1 * read
    sizes = [LearnedNoise(w).fit(linear(data, weight)).facts["noise"] for w in (0.01, 100.0)]
    assert sizes[1] > sizes[0]


def test_drawn_noise_keeps_the_learned_order_and_distribution() -> None:
    noise = torch.tensor([[3.0, -1.0, 0.5, 7.0, 0.0]])
    veil = OrderedLaplace.of(noise, (5,))
    torch.manual_seed(0)
    drawn = veil.encode(torch.zeros(4000, 5))
    assert torch.equal(drawn.argsort(1), noise.argsort(1).expand(4000, -1))
    assert float(drawn.median()) == pytest.approx(0.5, abs=0.1)
    assert float((drawn - 0.5).abs().mean()) == pytest.approx((2.5 + 1.5 + 0 + 6.5 + 0.5) / 5, rel=0.05)


def test_the_analytic_calibration_is_exact() -> None:
    assert gaussian_sigma(1.0, 1e-5, 1.0) == pytest.approx(3.73, abs=0.005)
    for epsilon in (0.1, 1.0, 10.0, 1000.0):
        for delta in (1e-2, 1e-5, 1e-9):
            sigma = gaussian_sigma(epsilon, delta, 3.0)
            assert gaussian_delta(epsilon, 3.0, sigma) == pytest.approx(delta, rel=1e-4)
            assert gaussian_sigma(epsilon, delta, 1.0) == pytest.approx(sigma / 3)
    # For epsilon near 0 delta is the total variation of two normal distributions: erf(Δ / (2√2 σ)).
    assert gaussian_delta(1e-12, 1.0, 2.0) == pytest.approx(math.erf(1 / (4 * math.sqrt(2))))
    for wrong in ((0.0, 0.1, 1.0), (1.0, 1.0, 1.0), (1.0, 0.1, -1.0)):
        with pytest.raises(BaselineError):
            gaussian_sigma(*wrong)


def test_the_gaussian_mechanism_clips_and_adds_that_noise() -> None:
    veil = ClippedGaussian(torch.full((16,), 2.0), torch.full((16,), 3.0), clip=1.5, sigma=0.7, feature_shape=(16,))
    far, near = torch.full((20_000, 16), 302.0), torch.full((20_000, 16), 2.3)
    torch.manual_seed(0)
    sent = veil.encode(far)
    assert float(sent.mean(0).norm()) == pytest.approx(1.5, abs=0.03)
    assert float(sent.std(0).mean()) == pytest.approx(0.7, abs=0.01)
    assert float(veil.encode(near).mean()) == pytest.approx(0.1, abs=0.005)  # inside the ball: left alone
    assert torch.allclose(veil.decode(torch.full((1, 16), 0.1)), near[:1])


def test_the_facts_of_the_gaussian_mechanism_agree(data: sv.Dataset) -> None:
    defended = GaussianMechanism(2.0, clip=0.5).fit(linear(data, torch.ones(2, 16)))
    facts, veil = defended.facts, defended.veil
    assert isinstance(veil, ClippedGaussian)
    assert (facts["epsilon"], facts["delta"], facts["clip"], facts["sigma"]) == (2.0, 1e-5, veil.clip, veil.sigma)
    assert gaussian_delta(2.0, 2 * veil.clip, veil.sigma) == pytest.approx(1e-5, rel=1e-4)
    z = data.train.x.flatten(1)
    inside = ((z - z.mean(0)) / z.std(0)).norm(dim=1) <= veil.clip
    assert float(inside.double().mean()) == pytest.approx(0.5, abs=0.01)


def test_erasure_leaves_a_linear_attack_at_the_prior(data: sv.Dataset) -> None:
    defended = LeastSquaresErasure().fit(linear(data, torch.ones(2, 16), hidden="colour"))
    z, secret = data.train.x.flatten(1), data.train.hidden["colour"].numpy()
    erased = defended.veil.encode(z)

    def attack(x: torch.Tensor) -> float:
        return float(LogisticRegression(max_iter=2000).fit(x.numpy(), secret).score(x.numpy(), secret))

    prior = np.bincount(secret).max() / len(secret)
    assert attack(z) > 0.9
    assert attack(erased) == pytest.approx(prior, abs=0.005)
    assert defended.facts["rank"] == 2  # three values: two directions
    assert torch.allclose(erased.mean(0), z.mean(0), atol=1e-5)
    with pytest.raises(BaselineError, match="must be told"):
        LeastSquaresErasure().fit(linear(data, torch.ones(2, 16)))


@pytest.mark.parametrize("width", [0, 5])
def test_the_device_sends_its_label_and_nothing_else(width: int, model: nn.Module, data: sv.Dataset) -> None:
    defended = AnswerOnDevice(width).fit(Undefended(model, 2, data, recipe(epochs=60)))
    sent = defended.veil.encode(defended.split.client(data.val.x))
    assert set(sent.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(answers(defended, data.val.x).argmax(1), sent[:, 0].long())
    right = float((sent[:, 0] == data.val.y).double().mean())
    assert right == defended.facts["val_accuracy"]
    assert defended.facts["macs"] == (48 * 2 if width == 0 else 48 * 5 + 5 * 2)
    assert defended.facts["val_accuracy"] > 0.9
    frames = set(Client(defended.split, defended.veil).send(data.val.x))
    assert len(frames) == defended.veil.message.distinct == 2
    assert {len(frame) for frame in frames} == {16 + 1}  # one byte names the label
    assert sent.dtype == torch.int64


class Far(nn.Module):
    """The image's 16 numbers, all far from zero beside what they vary by, and a layer that answers from them."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Flatten()
        self.layer = nn.Linear(16, 2)
        left = torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(4)
        with torch.no_grad():
            self.layer.weight.copy_(torch.stack([-left, left]))
            self.layer.bias.copy_((50 * 8 + 2.5) * torch.tensor([1.0, -1.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.flat(x) + 50)


def test_a_head_whose_hidden_layer_starves_is_trained_normalised(data: sv.Dataset) -> None:
    found = AnswerOnDevice(4).fit(Undefended(Far(), "layer", data, sv.Recipe(epochs=30, batch_size=32))).facts
    assert found["val_accuracy"] > 0.9
    assert found["normalised"]
    assert found["macs"] == 16 * 4 + 4 * 2


def test_the_grids_are_five_settings_from_the_weakest() -> None:
    mine = ("pruning", "random", "pca", "noise", "gaussian", "device")
    assert all(len(BASELINES[name]) == 5 and BASELINES[name][0].name == name for name in mine)
    assert BASELINES["leace"] == (LeastSquaresErasure(),)
