"""The paper's additions to a training step: what each does to a feature, in which turn, and that nothing stays."""

from collections.abc import Callable
from dataclasses import replace
from math import exp
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import splitveil as sv
from splitveil.errors import ModelError
from splitveil.linear import left_vectors
from splitveil.train.ingredients import GaussianHead, Ingredients, _prefixes, decov, gaussian_divergence, remove

SHAPE = (3, 16, 24)
ROWS = torch.arange(8)
LAYERS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "linear": lambda: (nn.Linear(40, 12), (40,)),
    "tall linear": lambda: (nn.Linear(5, 12), (5,)),
    "convolution": lambda: (nn.Conv2d(3, 16, 3, padding=1), (3, 9, 7)),
    "strided": lambda: (nn.Conv2d(4, 8, (3, 5), stride=2, padding=(0, 2), dilation=(2, 1)), (4, 11, 12)),
    "tall convolution": lambda: (nn.Conv2d(2, 30, 3, bias=False), (2, 8, 8)),
}


def network() -> sv.Table1Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return sv.Table1Net(SHAPE, 3)


def ingredients(model: nn.Module, **weights: float) -> Ingredients:
    return Ingredients(model, sv.Recipe(**weights), torch.zeros(1, *SHAPE))


def images(count: int = 8) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", LAYERS)
def test_removal_is_what_a_server_makes_of_the_top_components(name: str) -> None:
    layer, shape = LAYERS[name]()
    z = torch.randn(6, *shape)
    factors = sv.factorise(layer, feature_shape=shape, operator="patch")
    most = min(layer.weight.flatten(1).shape)
    kept = torch.tensor([0, 1, 2, most // 2, most - 1, most])
    with torch.no_grad():
        plain = layer(z)
        ours = remove(layer, plain, kept)
    bias = 0 if layer.bias is None else layer.bias.detach().reshape(-1, *(1,) * (ours.dim() - 2))
    for i, m in enumerate(kept.tolist()):
        (expected,) = factors.finish(factors.project(z[i : i + 1], m))
        torch.testing.assert_close(ours[i : i + 1] - bias, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours[-1], plain[-1], atol=1e-4, rtol=1e-4)
    assert (ours[1] - plain[1]).abs().max() > 1e-2


def test_removal_passes_the_gradient_through_a_constant_projection() -> None:
    layer, z = nn.Linear(9, 4), torch.randn(5, 9, requires_grad=True)
    upstream = torch.randn(5, 4)
    remove(layer, layer(z), torch.full((5,), 2)).backward(upstream)
    W = layer.weight.detach()
    U, _, Vh = torch.linalg.svd(W, full_matrices=False)
    P, Q = Vh[:2].mT @ Vh[:2], U[:, :2] @ U[:, :2].mT
    # For the feature it is the gradient through z' = P z; the weight learns within the outputs that are kept.
    torch.testing.assert_close(z.grad, upstream @ W @ P, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layer.weight.grad, Q @ upstream.mT @ z.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layer.bias.grad, upstream.sum(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("m", "n"), [(8, 20), (20, 8), (8, 8)])
def test_left_vectors_are_exact_for_small_singular_values(m: int, n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    U, _, Vh = torch.linalg.svd(torch.randn(m, n, generator=generator, dtype=torch.float64), full_matrices=False)
    s = torch.logspace(0, -4, 8, dtype=torch.float64)
    ours = left_vectors((U * s @ Vh).float())
    assert ours.dtype == torch.float32
    # Rounding the weights to float32 alone turns the last vector by 1e-3.
    torch.testing.assert_close((U.mT @ ours.double()).abs(), torch.eye(8, dtype=torch.float64), atol=1e-2, rtol=0)
    if m > n:
        s[6:] = 0
        ours = left_vectors((U * s @ Vh).double())
        assert (ours[:, 6:] == 0).all()
        torch.testing.assert_close(ours.mT @ ours, torch.diag((s > 0).double()), atol=1e-5, rtol=0)


@given(st.integers(2, 12), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_decov_is_half_the_squared_covariances_off_the_diagonal_per_element(samples: int, n: int, seed: int) -> None:
    z = torch.randn(samples, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3 + 1
    C = torch.cov(z.mT, correction=0).reshape(n, n)
    expected = 0.5 * (C.square().sum() - C.diagonal().square().sum()) / n
    torch.testing.assert_close(decov(z), expected, atol=1e-9, rtol=1e-9)


def test_the_gaussian_divergence_is_that_of_normal_distributions() -> None:
    mean, log_variance = torch.randn(4, 7), torch.randn(4, 7)
    ours = torch.distributions.Normal(mean, (log_variance / 2).exp())
    prior = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    expected = torch.distributions.kl_divergence(ours, prior).mean()
    torch.testing.assert_close(gaussian_divergence(mean, log_variance), expected)


def test_a_head_cannot_blow_the_noise_up() -> None:
    head = GaussianHead(2)
    assert head(torch.zeros(1, 2)).tolist() == [[-4.0, -4.0]]
    with torch.no_grad():
        head.weight.fill_(1e6)
    assert head(torch.tensor([[1.0, -1.0]])).tolist() == [[4.0, -10.0]]


@pytest.mark.parametrize("weights", [{"removal": 0.5}, {"removal": 1.0}, {"removal": 0.25, "decov": 1.0}])
def test_content_is_removed_at_every_cut_in_turn_from_a_share_of_the_batch(weights: dict[str, float]) -> None:
    model, x, hit = network().eval(), images(), round(weights["removal"] * 8)
    added = ingredients(model, **weights)
    turns = [_first_difference(model, added, step, x, hit) for step in range(12)]
    assert turns == [f"layer{1 + step % 6}" for step in range(12)]


def test_few_components_are_kept_as_often_as_many() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kept = _prefixes(30_000, nn.Linear(63, 70))
    assert (kept.min().item(), kept.max().item()) == (1, 63)
    octaves = kept.double().log2().floor().long().bincount() / len(kept)  # 1, 2 to 3, 4 to 7, …, 32 to 63
    torch.testing.assert_close(octaves, torch.full((6,), 1 / 6), atol=0.01, rtol=0)


def _first_difference(model: sv.Table1Net, added: Ingredients, step: int, x: Tensor, hit: int) -> str:
    """The block whose output is the first to differ in this step, in the first ``hit`` samples alone."""
    plain = _block_outputs(model, x)
    with added.step(step, ROWS):
        seen = _block_outputs(model, x)
    for name in model.cut_points:
        different = [not torch.equal(a, b) for a, b in zip(plain[name], seen[name], strict=True)]
        if any(different):
            assert not any(different[hit:])
            assert sum(different[:hit]) >= hit / 2  # a sample may happen to keep everything
            return name
    raise AssertionError("nothing was removed")


@torch.no_grad()
def _block_outputs(model: sv.Table1Net, x: Tensor) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}
    for name in model.cut_points:
        if name == "layer4":
            x = model.flatten(x)
        x = outputs[name] = model.get_submodule(name)(x)
    return outputs


@pytest.mark.parametrize("weights", [{"decov": 0.5}, {"variational": 2.0}, {"decov": 0.5, "variational": 2.0}])
def test_features_are_shaped_at_cuts_2_to_6_in_turn(weights: dict[str, float]) -> None:
    model, x = network().eval(), images()
    added = ingredients(model, **weights)
    for step in range(10):
        cut = 2 + step % 5
        z = sv.SplitModel(model, at=cut).client(x).flatten(1)
        with added.step(step, ROWS) as penalties, torch.no_grad():
            answered = model(x)
        expected = [0.5 * decov(z)] if "decov" in weights else []
        if "variational" in weights:
            expected.append(2.0 * gaussian_divergence(z, torch.full_like(z, -4.0)))
        torch.testing.assert_close(penalties, expected)
        assert torch.equal(answered, model(x)) == ("variational" not in weights)


def test_the_noise_has_the_variance_that_the_head_says() -> None:
    model = network().eval()
    added = ingredients(model, variational=1.0)
    with torch.no_grad():
        added.heads[3].bias.fill_(1.0)
    seen: list[Tensor] = []
    model.layer5.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = images(400)
    with torch.no_grad():
        model(x)
        with added.step(3, ROWS):
            # Hooks run in the order of their registration: read after the noise.
            model.layer5.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
            model(x)
    noise = seen[-1] - seen[0]
    assert noise.var().item() == pytest.approx(torch.e, rel=0.05)
    assert abs(noise.mean().item()) < 0.05


def test_feature_and_head_learn_from_the_answer_and_from_the_penalty() -> None:
    model, x = network().eval(), images().requires_grad_()
    added = ingredients(model, variational=3.0)
    head = added.heads[3]
    with torch.no_grad():
        head.weight.fill_(0.5)
        head.bias.fill_(-1.0)
    with added.step(3, ROWS) as penalties:
        answer = model(x).square().sum()
    z = model.layer4(model.flatten(model.layer3(model.layer2(model.layer1(x)))))
    torch.testing.assert_close(z, sv.SplitModel(model, at=5).client(x))
    expected = 3.0 * gaussian_divergence(z, 0.5 * z - 1.0)
    (ours,) = torch.autograd.grad(penalties[0], x, retain_graph=True)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, x)[0])
    assert all(gradient.abs().max() > 0 for gradient in torch.autograd.grad(answer, [x, head.weight, head.bias]))


@pytest.mark.parametrize("step", range(3))
def test_a_little_noise_leaves_every_element_of_the_feature_in_its_place(step: int) -> None:
    model, x = network().eval(), images()
    added = ingredients(model, variational=1.0)
    with torch.no_grad():
        added.heads[step].bias.fill_(-10.0)
        z, seen = sv.SplitModel(model, at=2 + step).client(x), list[Tensor]()
        with added.step(step, ROWS):
            block = model.get_submodule(f"layer{2 + step}")
            block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
            model(x)
    assert z.std() > 0.05
    assert (seen[0] - z).std().item() == pytest.approx(exp(-5), rel=0.1)


def test_decov_alone_leaves_the_answer_and_its_gradient_as_they_are() -> None:
    model, x = network().eval(), images().requires_grad_()
    (expected,) = torch.autograd.grad(model(x).square().sum(), x)
    with ingredients(model, decov=1.0).step(1, ROWS):
        answer = model(x)
    torch.testing.assert_close(torch.autograd.grad(answer.square().sum(), x)[0], expected)


def test_penalties_are_computed_in_float32() -> None:
    model, x = network().eval(), images()
    added = ingredients(model, decov=1.0, variational=1.0)
    seen: list[Tensor] = []
    model.layer5.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.autocast("cpu", torch.bfloat16), added.step(3, ROWS) as penalties:
        model(x)
    assert seen[0].dtype == torch.bfloat16
    z = seen[0].float()
    expected = [decov(z), gaussian_divergence(z, torch.full_like(z, -4.0))]
    torch.testing.assert_close(penalties, expected, atol=0, rtol=1e-5)


def test_nothing_stays_in_the_model() -> None:
    model, x = network(), images()
    state = {name: tensor.clone() for name, tensor in model.train().state_dict().items()}
    added = ingredients(model, removal=1.0, decov=1.0, variational=1.0)
    before = model.eval()(x)
    with pytest.raises(KeyboardInterrupt), added.step(0, ROWS):
        raise KeyboardInterrupt
    assert torch.equal(model(x), before)
    torch.testing.assert_close(dict(model.state_dict()), state, atol=0, rtol=0)
    assert [head.weight.numel() for head in added.heads] == [16 * 8 * 12, 32 * 4 * 6, 64 * 2 * 3, 128, 64]


def test_a_plain_recipe_adds_nothing() -> None:
    added = Ingredients(nn.Flatten(), sv.Recipe(), torch.zeros(1, 1))
    assert len(added.heads) == 0
    with added.step(0, ROWS) as penalties:
        assert penalties == []


@pytest.mark.parametrize("weights", [{"removal": 0.5}, {"decov": 1.0}, {"variational": 1.0}])
def test_a_model_without_numbered_cuts_is_refused(weights: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"Sequential has no numbered cuts .*set them to 0"):
        ingredients(nn.Sequential(nn.Linear(4, 2)), **weights)
    model = network()
    monkeypatch.setattr(sv.Table1Net, "cut_points", ("layer1",))  # it takes two to take turns
    with pytest.raises(ModelError, match="Table1Net has no numbered cuts"):
        ingredients(model, **weights)


@pytest.mark.parametrize("option", [{"padding_mode": "reflect"}, {"groups": 2}])
def test_a_cut_that_does_not_begin_with_a_plain_layer_is_refused(option: dict[str, Any]) -> None:
    model = network()
    model.layer2[0] = nn.Conv2d(16, 32, 3, padding=1, **option)
    with pytest.raises(ModelError, match="the cut 'layer2' does not begin with"):
        ingredients(model, removal=0.5)


def test_training_with_removal_makes_the_answer_stand_removal() -> None:
    data = sv.load_data("digit-pairs")
    kept = {}
    for name, removal in (("plain", 0.0), ("removal", 0.5)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = sv.Table1Net(data.input_shape, data.n_classes)
        sv.fit(model, data, sv.Recipe(epochs=2, removal=removal))
        split = sv.SplitModel(model, at=3)
        z = split.client(data.val.x)
        factors = sv.factorise(split.server_layer, feature_shape=z.shape[1:], operator="patch")
        veil = sv.TopComponents(factors, m=2)
        kept[name] = (split.answer(veil, veil.encode(z)).argmax(1) == data.val.y).float().mean().item()
    assert kept["removal"] > kept["plain"] + 0.2


def test_weights_that_have_exploded_are_left_to_the_loss() -> None:
    model = network().eval()
    torch.nn.init.constant_(model.layer1[0].weight, torch.nan)
    with ingredients(model, removal=0.5).step(0, ROWS):
        assert model(images()).isnan().all()


def test_weights_are_not_shared_with_the_callers_recipe() -> None:
    recipe = sv.Recipe.paper(epochs=3)
    assert replace(recipe, removal=0.0, decov=0.0, variational=0.0) == sv.Recipe(epochs=3)
    assert sv.Recipe.paper() == sv.Recipe(removal=0.5, decov=0.001, variational=0.1)
    assert sv.Recipe.paper(removal=0.25).removal == 0.25
