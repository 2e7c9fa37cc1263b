"""Baselines that train a network of their own: each hides what its paper says, and nothing else changes."""

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import splitveil as sv
from splitveil.attack import Perceptron, Training
from splitveil.baselines import BASELINES, Defence, Defended, Undefended
from splitveil.baselines.adversarial import AdversarialTraining, Opponent
from splitveil.baselines.blur import Blur, GaussianBlur, blurred
from splitveil.baselines.bottleneck import Decoder, GaussianChannel, InformationBottleneck, Noisy, divergence
from splitveil.baselines.training import Secret, adversary, fresh
from splitveil.cost import edge_cost
from splitveil.data import Part
from splitveil.errors import BaselineError
from splitveil.measure import view
from splitveil.train import accuracy

SETTINGS: dict[str, Defence] = {
    "adversarial": AdversarialTraining(0.5),
    "bottleneck": InformationBottleneck(1e-3, 1e-3),
    "blur": Blur(1.5),
}
RECIPE = sv.Recipe(epochs=4, batch_size=32)
SHORT = sv.Recipe(epochs=1, batch_size=256)
STRANGER = Perceptron(hidden=(64,), dropout=(0.0, 0.0), training=Training(epochs=10, weight_decays=(0.1,)))
CUTS: tuple[int | str, ...] = (1, 2, 4, 6, "layer3", "layer5.1")


def images(n: int = 1500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dark images, a target of two classes (left half, bright above or below), and an independent secret of three."""
    generator = np.random.default_rng(0)
    x = generator.integers(0, 80, (n, 1, 8, 8)).astype(np.uint8)
    y, secret = generator.integers(0, 2, n), generator.integers(0, 3, n)
    for image, target in zip(x, y, strict=True):
        image[0, 4 * target : 4 * target + 4, :4] += 150
    return x, y, secret


@pytest.fixture(scope="module")
def data() -> sv.Dataset:
    """The secret is a bright band in the right half."""
    x, y, secret = images()
    for image, value in zip(x, secret, strict=True):
        image[0, 3 * value : 3 * value + 2, 5:] += 150
    return sv.Dataset.from_arrays(x, y, {"secret": secret}, name="marked")


@pytest.fixture(scope="module")
def woven() -> sv.Dataset:
    """The secret is a fine texture of equal brightness: stripes, the same moved on by one pixel, or a chequerboard."""
    x, y, secret = images()
    rows, columns = np.indices((8, 4))
    for image, value in zip(x, secret, strict=True):
        image[0, :, 4:] += (150 * ([rows, rows + 1, rows + columns][value] % 2)).astype(np.uint8)
    return sv.Dataset.from_arrays(x, y, {"secret": secret}, name="woven")


def undefended_on(data: sv.Dataset, hidden: str | None) -> Undefended:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = sv.Table1Net(data.input_shape, data.n_classes)
    sv.fit(model, data, RECIPE)
    return Undefended(model, 4, data, RECIPE, hidden)


@pytest.fixture(scope="module")
def undefended(data: sv.Dataset) -> Undefended:
    return undefended_on(data, "secret")


def identity(undefended: Undefended) -> Defended:
    split = sv.SplitModel(undefended.model, undefended.at)
    return Defended(split, sv.Identity(tuple(split.client(undefended.data.val.images([0])).shape[1:])))


def found(defended: Defended, data: sv.Dataset) -> tuple[float, float]:
    """Validation accuracy of an adversary that defence and training never met, and of the answer."""
    split, veil = defended.split, defended.veil
    train, (val, logits, _) = view(split, veil, data.train)[0], view(split, veil, data.val, seed=1)
    guess = STRANGER.fit(train, data.train.hidden["secret"], val, data.val.hidden["secret"], n_values=3, seed=0)
    return share(guess(val), data.val.hidden["secret"]), share(logits, data.val.y)


def share(scores: Tensor, truth: Tensor) -> float:
    return float((scores.argmax(1) == truth).double().mean())


def test_adversarial_training_hides_its_secret_from_a_fresh_adversary(undefended: Undefended) -> None:
    attack, _ = found(identity(undefended), undefended.data)
    longer = replace(undefended, recipe=replace(RECIPE, epochs=20))
    hidden, target = found(AdversarialTraining(3.0).fit(longer), undefended.data)
    assert attack > 0.97
    assert hidden < 0.75
    assert target > 0.97


def opponent(undefended: Undefended, gamma: float = 2.0) -> tuple[Opponent, nn.Module]:
    secret = Secret.of(undefended)
    network = adversary(undefended, secret.n_values)
    return Opponent(undefended.model.layer4, network, secret, gamma, "float32"), network


def test_the_adversary_has_the_servers_architecture_and_learns_while_the_model_stands_still(
    undefended: Undefended,
) -> None:
    playing, network = opponent(undefended)
    server = sv.SplitModel(undefended.model, 4).server
    shapes = [tuple(p.shape) for p in server.parameters()]
    assert [tuple(p.shape) for p in network.parameters()] == [*shapes[:-2], (3, 64), (3,)]
    assert not any(
        torch.equal(a, b) for a, b in zip(server.parameters(), network.parameters(), strict=False) if a.dim() > 1
    )
    before = copy.deepcopy(undefended.model.state_dict())
    surprises, generator = list[float](), torch.Generator().manual_seed(0)
    for number in range(60):
        rows = torch.randperm(len(undefended.data.train), generator=generator)[:64]
        with playing.step(number, rows) as penalties:
            undefended.model(undefended.data.train.images(rows))
        surprises.append(-penalties[0].item() / 2.0)
    assert surprises[-1] < 0.2 < 0.6 < surprises[0]
    torch.testing.assert_close(dict(undefended.model.state_dict()), dict(before), rtol=0, atol=0)


@pytest.mark.parametrize(("bias", "bounded"), [(3.0, False), (-9.0, True)])
def test_the_penalty_counts_up_to_the_priors_entropy(undefended: Undefended, bias: float, bounded: bool) -> None:
    playing, network = opponent(undefended)
    playing._optimizer.param_groups[0]["lr"] = 0.0
    with torch.no_grad():
        network.layer6.bias.copy_(torch.tensor([bias, 0.0, 0.0]))
    secret = undefended.data.train.hidden["secret"]
    rows = (secret == 0).nonzero()[:64, 0]
    z = torch.randn(64, 64, requires_grad=True)
    with playing.step(0, rows) as penalties:
        undefended.model.layer4(z)
    (gradient,) = torch.autograd.grad(penalties[0], z)
    entropy, surprise = Secret.of(undefended).entropy, nn.functional.cross_entropy(network(z), secret[rows]).item()
    assert entropy == pytest.approx(math.log(3), abs=0.01)
    assert (surprise > entropy) == bounded
    assert penalties[0].item() == pytest.approx(-2 * min(surprise, entropy), rel=1e-5)
    assert bool((gradient == 0).all()) == bounded
    assert all(weights.requires_grad for weights in network.parameters())


def test_the_bottleneck_narrows_as_beta_grows_and_a_huge_one_lets_nothing_through(undefended: Undefended) -> None:
    faster, fastest = (
        replace(undefended, recipe=replace(RECIPE, epochs=8, learning_rate=rate)) for rate in (1e-2, 1e-1)
    )
    wide, narrow = (InformationBottleneck(beta, 1e-4).fit(faster) for beta in (1e-4, 1e-2))
    shut = InformationBottleneck(100.0, 1e-4).fit(fastest)
    assert wide.facts["nats"] > 3 * narrow.facts["nats"] > 30 * shut.facts["nats"]
    (a, _), (b, target), (c, guessed) = (found(each, undefended.data) for each in (wide, narrow, shut))
    assert a > 0.9
    assert b < 0.6  # the secret costs nats that the answer does not need
    assert target > 0.95
    assert c < 0.45
    assert guessed < 0.6
    assert shut.facts["nats"] < 0.1


def test_the_divergence_is_that_of_two_normal_distributions() -> None:
    mean, log_variance = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).double()
    ours = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(ours, torch.distributions.Normal(torch.zeros(()).double(), 1.0))
    torch.testing.assert_close(divergence(mean, log_variance), expected.sum(1).mean())


def test_the_decoder_scores_images_as_a_normal_distribution_and_reads_the_secret() -> None:
    decoder = Decoder(4, 3, 6)
    message, secret, image = torch.randn(8, 4), torch.arange(8) % 3, torch.rand(8, 6)
    with torch.no_grad():
        drawn = decoder.network(torch.cat([message, nn.functional.one_hot(secret, 3).float()], 1))
        normal = torch.distributions.Normal(drawn, math.exp(10 * decoder.log_variance.item() / 2))
        expected = -normal.log_prob(image).sum(1).mean() - 6 * math.log(2 * math.pi) / 2
        torch.testing.assert_close(decoder(message, secret, image), expected)
        assert decoder(message, (secret + 1) % 3, image) != expected


def test_a_message_of_the_bottleneck_is_drawn_anew_with_the_channels_variance() -> None:
    channel = GaussianChannel(4)
    with torch.no_grad():
        channel.log_gain.fill_(math.log(2.0) / 10)
        channel.bias.copy_(torch.tensor([-0.4, -0.2, 0.0, 0.1]))
    veil = Noisy(channel, (1, 2, 2))
    z = torch.ones(20_000, 1, 2, 2)
    messages = veil.encode(z).flatten(1)
    assert veil.message.random
    torch.testing.assert_close(messages.mean(0), torch.full((4,), 2.0), rtol=0.03, atol=0)
    torch.testing.assert_close(messages.var(0), (10 * channel.bias.detach()).exp(), rtol=0.05, atol=0)
    assert not torch.equal(messages, veil.encode(z).flatten(1))
    with pytest.raises(sv.SplitveilError, match="decode"):
        veil.finish(messages)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.5])
def test_the_blur_of_a_point_is_the_gaussian(sigma: float) -> None:
    x = torch.zeros(1, 3, 41, 37)
    x[0, 1, 20, 18] = 1.0
    y = GaussianBlur(3, sigma)(x)[0]
    rows, columns = (torch.arange(size).double() - place for size, place in ((41, 20), (37, 18)))
    expected = (-(rows[:, None] ** 2 + columns**2) / (2 * sigma**2)).exp()
    torch.testing.assert_close(y[1].double(), expected / expected.sum(), atol=2e-3 * float(y.max()), rtol=0)
    assert y[1].sum() == pytest.approx(1, abs=1e-5)
    assert y[[0, 2]].abs().sum() == 0
    assert torch.equal(y[1].nonzero().amin(0), torch.tensor([20, 18]) - math.ceil(3 * sigma))
    # A constant image is mirrored at its edges, not darkened there.
    torch.testing.assert_close(GaussianBlur(3, sigma)(torch.ones(1, 3, 41, 37)), torch.ones(1, 3, 41, 37))


def test_blur_removes_a_fine_texture_and_keeps_a_coarse_target(woven: sv.Dataset) -> None:
    undefended = undefended_on(woven, None)
    attack, _ = found(identity(undefended), woven)
    hidden, target = found(Blur(2.0).fit(undefended), woven)
    assert attack > 0.97
    assert hidden < 0.5
    assert target > 0.97


@pytest.mark.parametrize("at", CUTS)
def test_a_blurred_network_keeps_its_cuts_and_blurs_in_the_clients_half(data: sv.Dataset, at: int | str) -> None:
    model = sv.Table1Net(data.input_shape, data.n_classes).eval()
    network = blurred(copy.deepcopy(model), 1, 1.0)
    split, x = sv.SplitModel(network, at), data.val.images(slice(0, 5))
    soft = GaussianBlur(1, 1.0)(x)
    torch.testing.assert_close(split.client(x), sv.SplitModel(model, at).client(soft))
    torch.testing.assert_close(split.server(split.client(x)), model(soft))
    assert isinstance(network, sv.Table1Net)
    assert network.cut_points == model.cut_points
    z = split.client(x)
    cost = edge_cost(split, sv.Identity(tuple(z.shape[1:])), x[:1])
    plain = edge_cost(sv.SplitModel(model, at), sv.Identity(tuple(z.shape[1:])), x[:1])
    assert cost.client_macs - plain.client_macs == 2 * 7 * 64  # seven taps along each axis


@pytest.mark.parametrize("name", SETTINGS)
def test_a_defence_starts_afresh_with_the_recipe_and_leaves_the_undefended_model(
    undefended: Undefended, name: str
) -> None:
    seen: list[tuple[int, int]] = []
    before, state = copy.deepcopy(undefended.model.state_dict()), torch.get_rng_state()
    short = replace(
        undefended, recipe=replace(SHORT, epochs=2), progress=lambda done, total, _: seen.append((done, total))
    )
    first = SETTINGS[name].fit(short)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    again = SETTINGS[name].fit(short)
    assert seen == [(1, 2), (2, 2)] * 2
    torch.testing.assert_close(dict(undefended.model.state_dict()), dict(before), rtol=0, atol=0)
    torch.testing.assert_close(
        dict(first.split.model.state_dict()), dict(again.split.model.state_dict()), rtol=0, atol=0
    )
    other = SETTINGS[name].fit(replace(short, recipe=replace(SHORT, seed=1)))
    assert not torch.equal(other.split.model.layer4[0].weight, first.split.model.layer4[0].weight)
    assert first.split.at == 4
    assert not first.split.model.training
    if name != "bottleneck":
        assert first.facts["val_accuracy"] == accuracy(first.split.model, undefended.data.val)
    else:
        _, logits, _ = view(first.split, first.veil, undefended.data.val)
        assert first.facts["val_accuracy"] == pytest.approx(share(logits, undefended.data.val.y), abs=0.1)


@pytest.mark.parametrize("at", CUTS)
@pytest.mark.parametrize("name", SETTINGS)
def test_every_cut_can_be_defended_in_either_precision(undefended: Undefended, name: str, at: int | str) -> None:
    small = replace(undefended.data, train=_some(undefended.data.train))
    fast = replace(undefended, at=at, data=small, recipe=replace(SHORT, precision="bfloat16", removal=0.5))
    defended = SETTINGS[name].fit(fast)
    message, logits, _ = view(defended.split, defended.veil, undefended.data.val)
    assert message.sent.isfinite().all()
    assert logits.shape == (len(undefended.data.val), 2)
    assert all(weights.dtype != torch.bfloat16 for weights in defended.split.model.state_dict().values())


def _some(part: Part) -> Part:
    return Part(part.pixels[:100], part.y[:100], {name: values[:100] for name, values in part.hidden.items()})


def test_blur_reads_no_hidden_label(undefended: Undefended) -> None:
    blind = replace(undefended, data=undefended.data.without_hidden(), hidden=None, recipe=SHORT)
    told = replace(undefended, recipe=SHORT)
    models = [Blur(1.0).fit(each).split.model for each in (blind, told)]
    torch.testing.assert_close(*(dict(model.state_dict()) for model in models), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["adversarial", "bottleneck"])
def test_a_supervised_defence_needs_a_hidden_attribute(undefended: Undefended, name: str) -> None:
    with pytest.raises(BaselineError, match="must be told which hidden attribute"):
        SETTINGS[name].fit(replace(undefended, hidden=None))
    with pytest.raises(BaselineError, match="no hidden attribute 'race'; it has: secret"):
        SETTINGS[name].fit(replace(undefended, hidden="race"))


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, "1", True, None])
def test_impossible_settings_are_refused(value: Any) -> None:
    for build in (
        AdversarialTraining, Blur, lambda v: InformationBottleneck(v, 1.0), lambda v: InformationBottleneck(1.0, v),
    ):  # fmt: skip
        with pytest.raises(BaselineError, match="must be a finite number above 0"):
            build(value)


def test_a_blur_beyond_the_image_is_refused(undefended: Undefended) -> None:
    Blur(7 / 3).fit(replace(undefended, recipe=SHORT))
    with pytest.raises(BaselineError, match=r"sigma=2.4 reaches 8 pixels.*8 by 8.*smaller sigma"):
        Blur(2.4).fit(undefended)


def test_a_network_whose_weights_cannot_be_made_anew_is_refused() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

    with pytest.raises(BaselineError, match=r"'1' has parameters but no reset_parameters\(\)"):
        fresh(nn.Sequential(nn.Linear(2, 2), Scaled()), 0)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_grid_has_five_settings(name: str) -> None:
    assert len(set(BASELINES[name])) == 5
    assert {each.name for each in BASELINES[name]} == {name}
    assert {each.supervised for each in BASELINES[name]} == {name != "blur"}
