"""Theorem 1 and its neighbours, as design and paper state them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import splitveil as sv
from splitveil.errors import DistortionError, OperatorError, RankError, ShapeError
from splitveil.obfuscate import kept_components

sizes = st.integers(1, 9)
seeds = st.integers(0, 2**31 - 1)
shares = st.floats(0, 1.5)


def connected(out: int, inputs: int, seed: int) -> tuple[nn.Linear, sv.Factors, torch.Tensor]:
    torch.manual_seed(seed)
    layer = nn.Linear(inputs, out).double().requires_grad_(False)
    return layer, sv.factorise(layer, feature_shape=(inputs,)), torch.randn(5, inputs, dtype=torch.float64)


def convolution(operator: str, seed: int = 0) -> tuple[nn.Conv2d, sv.Factors, torch.Tensor]:
    torch.manual_seed(seed)
    layer = nn.Conv2d(2, 5, 3, padding=1, stride=2).double().requires_grad_(False)
    factors = sv.factorise(layer, feature_shape=(2, 6, 7), operator=operator)
    return layer, factors, torch.randn(4, 2, 6, 7, dtype=torch.float64)


def outputs(factors: sv.Factors, message: torch.Tensor) -> torch.Tensor:
    return torch.cat([y.flatten(1) for y in factors.finish(message)], dim=1)


@given(sizes, sizes, seeds)
def test_lemma_4_distortion_is_the_weighted_distance_of_coefficients(out, inputs, seed):
    layer, f, z = connected(out, inputs, seed)
    z2 = torch.randn(5, inputs, dtype=torch.float64)
    direct = ((z - z2) @ layer.weight.T).norm(dim=1)
    torch.testing.assert_close(((f.project(z) - f.project(z2)) * f.s).norm(dim=1), direct)


@given(sizes, sizes, seeds, shares, st.booleans())
def test_bounded_distortion_is_exactly_the_budget_or_all_there_is(out, inputs, seed, share, relative):
    layer, f, z = connected(out, inputs, seed)
    whole = (z @ layer.weight.T).norm(dim=1)
    epsilon = share if relative else share * float(whole.mean())
    veil = sv.DistortionBounded(f, epsilon=epsilon, relative=relative)
    moved = ((z - veil.decode(veil.encode(z))) @ layer.weight.T).norm(dim=1)
    budget = epsilon * whole if relative else torch.full_like(whole, epsilon)
    torch.testing.assert_close(moved, torch.minimum(budget, whole), rtol=1e-6, atol=1e-7)


@given(sizes, sizes, seeds, st.floats(0.01, 0.99))
def test_theorem_1_written_out_for_one_query(out, inputs, seed, share):
    _, f, z = connected(out, inputs, seed)
    a, s = f.project(z)[0].tolist(), f.s.tolist()
    epsilon = share * math.sqrt(sum((x * y) ** 2 for x, y in zip(a, s, strict=True)))
    tail = [math.sqrt(sum((a[i] * s[i]) ** 2 for i in range(k, len(a)))) for k in range(len(a) + 1)]
    kept = next(k for k in range(len(a) + 1) if tail[k] <= epsilon)
    gamma = math.sqrt(epsilon**2 - tail[kept] ** 2) / s[kept - 1]
    expected = [*a[: kept - 1], a[kept - 1] - math.copysign(gamma, a[kept - 1]), *[0.0] * (len(a) - kept)]
    assert gamma < abs(a[kept - 1]) * (1 + 1e-9)
    found = sv.DistortionBounded(f, epsilon=epsilon).encode(z[:1])[0]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-7)


@given(sizes, sizes, seeds, st.floats(0.01, 0.99))
def test_no_vector_in_the_ball_has_a_shorter_support_prefix(out, inputs, seed, share):
    layer, f, z = connected(out, inputs, seed)
    veil = sv.DistortionBounded(f, epsilon=share, relative=True)
    kept = kept_components(veil.encode(z))
    whole = (z @ layer.weight.T).norm(dim=1)
    for query, k in enumerate(kept.tolist()):
        # The best of all vectors with a prefix one shorter keeps its coefficients as they are: still outside.
        best = f.project(z)[query].clone()
        best[max(k - 1, 0) :] = 0
        nearest = ((f.project(z)[query] - best) * f.s).norm()
        assert nearest > share * whole[query] * (1 - 1e-9)


@given(sizes, sizes, seeds)
def test_distortion_free_leaves_the_layers_output_unchanged(out, inputs, seed):
    layer, f, z = connected(out, inputs, seed)
    if f.null_dimension == 0:
        with pytest.warns(sv.PrivacyWarning, match="removes nothing"):
            veil = sv.DistortionFree(f)
        assert torch.equal(veil.encode(z), z)
    else:
        veil = sv.DistortionFree(f)
        assert veil.message.shape == (f.rank,)
    z2 = veil.decode(veil.encode(z))
    torch.testing.assert_close(layer(z2), layer(z))
    torch.testing.assert_close(veil.decode(veil.encode(z2)), z2)  # idempotent


@given(st.integers(1, 4), st.integers(5, 9), seeds)
def test_distortion_free_tells_exactly_what_the_layers_output_tells(out, inputs, seed):
    """z_S is an invertible linear function of Wz: each is computed from the other."""
    layer, f, z = connected(out, inputs, seed)
    signal = sv.DistortionFree(f).decode(sv.DistortionFree(f).encode(z))
    product = z @ layer.weight.T
    torch.testing.assert_close(signal @ layer.weight.T, product)
    torch.testing.assert_close(product @ torch.linalg.pinv(layer.weight.T), signal, rtol=1e-6, atol=1e-7)


@given(sizes, sizes, seeds, st.data())
def test_top_components_prefix_idempotence_and_eckart_young(out, inputs, seed, draw):
    layer, f, z = connected(out, inputs, seed)
    m = draw.draw(st.integers(0, len(f.s)))
    veil = sv.TopComponents(f, m=m)
    a = veil.encode(z)
    assert a.shape == (5, m)
    longer = sv.TopComponents(f, m=len(f.s)).encode(z)
    torch.testing.assert_close(a, longer[:, :m])
    z2 = veil.decode(a)
    torch.testing.assert_close(veil.encode(z2), a)
    lost = (layer.weight @ (torch.eye(inputs, dtype=torch.float64) - f.vh[:m].T @ f.vh[:m])).square().sum()
    torch.testing.assert_close(lost, f.s[m:].square().sum(), rtol=1e-6, atol=1e-9)


def test_bounded_applied_twice_shrinks_twice():
    """Not idempotent, by Theorem 1's own definition; said in the docs, so it is pinned here."""
    _, f, z = connected(4, 6, 1)
    veil = sv.DistortionBounded(f, epsilon=0.2)
    once = veil.encode(z)
    twice = veil.encode(veil.decode(once))
    assert float((once - twice).abs().max()) > 1e-3


def test_epsilon_zero_keeps_everything_and_beyond_the_norm_nothing():
    _, f, z = connected(4, 6, 1)
    torch.testing.assert_close(sv.DistortionBounded(f, epsilon=0.0).encode(z), f.project(z))
    assert not sv.DistortionBounded(f, epsilon=1e6).encode(z).any()
    assert kept_components(sv.DistortionBounded(f, epsilon=1e6).encode(z)).tolist() == [0] * 5


def test_zero_feature_and_rank_deficient_layer():
    torch.manual_seed(0)
    layer = nn.Linear(6, 4).double()
    with torch.no_grad():
        layer.weight[3] = layer.weight[0] + layer.weight[1]
    f = sv.factorise(layer, feature_shape=(6,))
    assert f.rank == 3
    z = torch.cat([torch.zeros(1, 6, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)])
    for epsilon in (0.0, 0.1):
        veil = sv.DistortionBounded(f, epsilon=epsilon)
        a = veil.encode(z)
        assert a.shape == (4, 3)
        assert not a[0].any()
        moved = ((z - veil.decode(a)) @ layer.weight.T).norm(dim=1)
        torch.testing.assert_close(moved[1:], torch.full((3,), epsilon, dtype=torch.float64), atol=1e-7, rtol=1e-6)
    assert sv.DistortionFree(f).message.shape == (3,)
    torch.testing.assert_close(layer(sv.DistortionFree(f).decode(sv.DistortionFree(f).encode(z))), layer(z))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 2.0])
def test_patch_operator_meets_the_bound_on_the_layers_output(share):
    _, f, z = convolution("patch")
    veil = sv.DistortionBounded(f, epsilon=share, relative=True)
    whole = f.apply(z)
    moved = (whole - outputs(f, veil.encode(z))).norm(dim=1)
    torch.testing.assert_close(moved, min(share, 1.0) * whole.norm(dim=1), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("operator", ["dense", "patch"])
def test_truncated_factors_still_meet_the_bound_or_say_that_they_cannot(operator):
    layer, _, z = convolution(operator)
    f = sv.factorise(layer, feature_shape=(2, 6, 7), operator=operator, rank=3)
    tight, loose = (
        sv.DistortionBounded(f, epsilon=1e-3, relative=True),
        sv.DistortionBounded(f, epsilon=0.995, relative=True),
    )
    with pytest.raises(DistortionError, match=r"distortion of up to 0\.\d+, above .* larger rank"):
        tight.encode(torch.cat([torch.zeros_like(z[:1]), z]))  # of nothing, nothing can be a share
    with pytest.raises(DistortionError, match="larger rank"):
        tight.encode(z)
    whole = f.apply(z)
    moved = (whole - outputs(f, loose.encode(z))).norm(dim=1)
    torch.testing.assert_close(moved, 0.995 * whole.norm(dim=1))


def test_a_patch_message_has_no_feature():
    _, f, z = convolution("patch")
    veil = sv.TopComponents(f, m=2)
    with pytest.raises(OperatorError):
        veil.decode(veil.encode(z))
    assert veil.message.shape == (2, 3, 4)
    assert veil.message.carries == "pre-activation"


def test_distortion_free_wants_all_factors():
    layer = nn.Conv2d(6, 2, 3, padding=1)
    f = sv.factorise(layer, feature_shape=(6, 8, 8), operator="dense", rank=5)
    with pytest.raises(RankError, match="rank=128"):
        sv.DistortionFree(f)


@pytest.mark.parametrize("m", [-1, 5])
def test_m_out_of_range(m):
    with pytest.raises(RankError, match="0 to 4"):
        sv.TopComponents(connected(4, 6, 0)[1], m=m)


@pytest.mark.parametrize("epsilon", [-0.1, math.nan, math.inf])
def test_impossible_epsilon(epsilon):
    with pytest.raises(DistortionError, match="at least 0"):
        sv.DistortionBounded(connected(4, 6, 0)[1], epsilon=epsilon)


def test_features_of_another_shape_are_refused():
    veil = sv.TopComponents(connected(4, 6, 0)[1], m=2)
    with pytest.raises(ShapeError):
        veil.encode(torch.zeros(3, 7, dtype=torch.float64))
    with pytest.raises(ShapeError):
        kept_components(torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_messages_have_the_features_dtype(dtype):
    _, f, z = connected(4, 6, 0)
    for veil in (sv.TopComponents(f, m=3), sv.DistortionFree(f), sv.DistortionBounded(f, epsilon=0.1, relative=True)):
        a = veil.encode(z.to(dtype))
        assert a.dtype == dtype
        assert veil.decode(a).dtype == dtype
        tolerance = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype]
        torch.testing.assert_close(a.double(), veil.encode(z), atol=tolerance, rtol=tolerance)


def test_a_relative_bound_of_zero_has_a_finite_gradient():
    """The root of the budget that is left, zero here, must not turn into 0 times infinity."""
    _, f, z = connected(4, 6, 0)
    z = z.requires_grad_()
    (gradient,) = torch.autograd.grad(sv.DistortionBounded(f, epsilon=0.0, relative=True).encode(z).sum(), z)
    torch.testing.assert_close(gradient, f.vh.sum(0).expand(5, -1))


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 5.0])
def test_encoding_and_decoding_can_be_differentiated(epsilon):
    layer, f, z = connected(4, 6, 0)
    z = z.requires_grad_()
    for veil in (sv.TopComponents(f, m=2), sv.DistortionFree(f), sv.DistortionBounded(f, epsilon=epsilon)):
        loss = layer(veil.decode(veil.encode(z))).square().sum()
        (gradient,) = torch.autograd.grad(loss, z)
        assert torch.isfinite(gradient).all()
        assert bool(gradient.any()) == (epsilon < 5 or not isinstance(veil, sv.DistortionBounded))


def test_bounded_gradient_is_the_true_one():
    _, f, z = connected(4, 6, 0)
    veil = sv.DistortionBounded(f, epsilon=0.3)
    assert torch.autograd.gradcheck(veil.encode, (z.requires_grad_(),))


def test_batches_encode_as_their_rows_do():
    _, f, z = convolution("patch")
    veil = sv.DistortionBounded(f, epsilon=0.5, relative=True)
    torch.testing.assert_close(veil.encode(z), torch.cat([veil.encode(row[None]) for row in z]))


def test_kept_components_counts_up_to_the_last_that_is_not_zero():
    assert kept_components(torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 3.0]])).tolist() == [2, 0, 3]
    maps = torch.zeros(1, 4, 2, 2)
    maps[0, 2, 1, 0] = 1
    assert kept_components(maps).tolist() == [3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_factors_of_the_cpu_work_on_a_cuda_feature():
    _, f, z = connected(4, 6, 0)
    for veil in (sv.TopComponents(f, m=2), sv.DistortionFree(f), sv.DistortionBounded(f, epsilon=0.3)):
        torch.testing.assert_close(veil.decode(veil.encode(z.cuda())).cpu(), veil.decode(veil.encode(z)))
