"""The factors against the unrolled layer: products, subspaces, bounds and facts, for both operators."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from slow_truth import unrolled
from splitveil.errors import OperatorError, RankError, ShapeError
from splitveil.linear import Factors, factorise, left_vectors

F64 = torch.float64

# PyTorch's own layer warns that its asymmetric padding costs a copy; the values are what is compared.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@dataclass(frozen=True)
class Case:
    layers: Sequence[nn.Linear | nn.Conv2d]
    shape: tuple[int, ...]
    seed: int

    def features(self, count: int = 3) -> Tensor:
        return torch.randn(count, *self.shape, dtype=F64, generator=torch.Generator().manual_seed(self.seed))


def outputs(layers: Sequence[nn.Module], z: Tensor) -> list[Tensor]:
    """What the real layers give, without their bias: the slow truth."""
    zero = torch.zeros_like(z[:1])
    return [layer(z) - layer(zero) for layer in layers]


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    def side(largest: int) -> tuple[int, int]:
        return draw(st.integers(1, largest)), draw(st.integers(1, largest))

    seed = draw(st.integers(0, 2**31 - 1))
    torch.manual_seed(seed)
    groups = draw(st.sampled_from([1, 1, 2]))
    channels = groups * draw(st.integers(1, 2))
    kernel, dilation = side(3), side(2)
    padding = draw(st.one_of(st.just("valid"), st.just("same"), st.integers(0, 2), st.tuples(*[st.integers(0, 2)] * 2)))
    stride = (1, 1) if padding == "same" else side(3)
    shape = (channels, draw(st.integers(3, 7)), draw(st.integers(3, 7)))
    pads = (padding,) * 2 if isinstance(padding, int) else (0, 0) if padding == "valid" else padding
    if padding != "same":
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        assume(all(n + 2 * p >= r for n, p, r in zip(shape[1:], pads, reach, strict=True)))
    layers = [
        nn.Conv2d(channels, groups * draw(st.integers(1, 3)), kernel, stride, padding, dilation, groups, dtype=F64)
        for _ in range(draw(st.integers(1, 2)))
    ]
    return Case(layers, shape, seed)


@st.composite
def linears(draw: st.DrawFn, *, tokens: bool) -> Case:
    seed = draw(st.integers(0, 2**31 - 1))
    torch.manual_seed(seed)
    shape = (*draw(st.lists(st.integers(2, 3), min_size=1, max_size=2)), draw(st.integers(1, 6)))
    width = shape[-1] if tokens else prod(shape)
    layers = [nn.Linear(width, draw(st.integers(1, 7)), dtype=F64) for _ in range(draw(st.integers(1, 2)))]
    return Case(layers if tokens else [Flat(layer) for layer in layers], shape, seed)


class Flat(nn.Linear):
    """A linear layer that flattens first, as a server does."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, dtype=F64)

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z.flatten(1))


CASES = st.one_of(convolutions(), linears(tokens=True), linears(tokens=False))
OPERATORS = st.sampled_from(["dense", "patch"])


def assert_orthonormal(rows: Tensor) -> None:
    torch.testing.assert_close(rows @ rows.mT, torch.eye(len(rows), dtype=rows.dtype))


@given(case=CASES, operator=OPERATORS)
def test_client_then_server_equals_the_layers_at_full_rank(case: Case, operator: str) -> None:
    f = factorise(case.layers, feature_shape=case.shape, operator=operator)
    z = case.features()
    a = f.project(z)
    assert tuple(a.shape[1:]) == f.message_shape(len(f.s))
    for ours, theirs in zip(f.finish(a), outputs(case.layers, z), strict=True):
        torch.testing.assert_close(ours, theirs)


@given(case=CASES)
def test_apply_and_adjoint_are_the_layers_and_their_transpose(case: Case) -> None:
    f = factorise(case.layers, feature_shape=case.shape)
    z = case.features()
    truth = torch.cat([y.flatten(1) for y in outputs(case.layers, z)], dim=1)
    torch.testing.assert_close(f.apply(z), truth)
    assert (f.in_features, f.out_features) == (z[0].numel(), truth.shape[1])
    y = torch.randn_like(truth)
    torch.testing.assert_close((f.apply(z) * y).sum(), (z * f.map.adjoint(y)).sum())


@given(case=CASES)
def test_dense_factors_are_the_singular_value_decomposition_of_the_unrolled_layers(case: Case) -> None:
    f = factorise(case.layers, feature_shape=case.shape)
    eye = torch.eye(f.in_features, dtype=F64).reshape(-1, *case.shape)
    W = torch.cat([y.flatten(1) for y in outputs(case.layers, eye)], dim=1).mT.detach()
    s = torch.linalg.svdvals(W)
    torch.testing.assert_close(f.s, s[: len(f.s)], rtol=1e-9, atol=1e-12 * float(s[0]))
    torch.testing.assert_close(f.u * f.s @ f.vh, W)
    assert_orthonormal(f.vh)
    assert_orthonormal(f.u.mT)
    rank = int(torch.linalg.matrix_rank(W, rtol=1e-12))
    assert (f.rank, f.null_dimension, f.complete) == (rank, f.in_features - rank, True)


@given(case=CASES, operator=OPERATORS, data=st.data())
def test_truncation_leaves_the_next_singular_value(case: Case, operator: str, data: st.DataObject) -> None:
    """Eckart–Young: the spectral norm of what k factors miss is s_{k+1}, of the operator's own matrix."""
    f = factorise(case.layers, feature_shape=case.shape, operator=operator)
    k = data.draw(st.integers(0, len(f.s) - 1))
    W = f.map.patch_matrix() if f.operator == "patch" else unrolled(f.map)
    rest = W - f.u[:, :k] * f.s[:k] @ f.vh[:k]
    torch.testing.assert_close(torch.linalg.matrix_norm(rest, 2), f.s[k])


@given(case=CASES, data=st.data())
def test_reconstruct_is_the_right_inverse_of_project(case: Case, data: st.DataObject) -> None:
    f = factorise(case.layers, feature_shape=case.shape)
    m = data.draw(st.integers(0, len(f.s)))
    a = f.project(case.features(), m)
    z = f.reconstruct(a)
    assert z.shape[1:] == torch.Size(case.shape)
    torch.testing.assert_close(f.project(z, m), a)
    torch.testing.assert_close(torch.cat([y.flatten(1) for y in f.finish(a)], 1), f.apply(z))


@given(case=CASES, operator=OPERATORS, data=st.data())
def test_an_explicit_rank_gives_the_leading_part(case: Case, operator: str, data: st.DataObject) -> None:
    full = factorise(case.layers, feature_shape=case.shape, operator=operator)
    rank = data.draw(st.integers(1, len(full.s)))
    f = factorise(case.layers, feature_shape=case.shape, operator=operator, rank=rank)
    torch.testing.assert_close(f.s, full.s[:rank], rtol=1e-9, atol=1e-12)
    assert f.vh.shape == (rank, full.vh.shape[1])
    assert f.complete == (rank >= full.rank)


def test_a_patch_projection_is_one_convolution_with_fewer_filters() -> None:
    layer = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
    f = factorise(layer, feature_shape=(4, 9, 8), operator="patch")
    z = torch.randn(2, 4, 9, 8)
    filters = f.vh[:3].reshape(3, 4, 3, 2)
    expected = nn.functional.conv2d(z, filters, None, (2, 1), (1, 0), (1, 2))
    torch.testing.assert_close(f.project(z, 3), expected)
    assert f.message_shape(3) == (3, 5, 6)
    assert f.project(z, 0).shape == (2, 0, 5, 6)


def test_a_fully_connected_layer_has_one_patch_so_both_operators_are_one() -> None:
    f = factorise(nn.Linear(24, 5), feature_shape=(2, 3, 4), operator="patch")
    assert f.operator == "dense"
    assert (f.null_dimension, f.has_null_space) == (19, True)


def test_several_layers_of_different_kind_stack_into_one_dense_matrix() -> None:
    layers = (nn.Conv2d(2, 3, 3, padding=1, dtype=F64), nn.Conv2d(2, 4, 1, stride=2, dtype=F64))
    f = factorise(layers, feature_shape=(2, 6, 6))
    z = torch.randn(2, 2, 6, 6, dtype=F64)
    for ours, theirs in zip(f.finish(f.project(z)), outputs(layers, z), strict=True):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(OperatorError, match="operator='dense'"):
        factorise(layers, feature_shape=(2, 6, 6), operator="patch")


@given(seed=st.integers(0, 2**31 - 1), rank=st.integers(1, 5), dtype=st.sampled_from([torch.float32, F64]))
def test_a_planted_rank_is_counted(seed: int, rank: int, dtype: torch.dtype) -> None:
    torch.manual_seed(seed)
    layer = nn.Linear(12, 8, dtype=dtype)
    layer.weight.data = (torch.randn(8, rank, dtype=F64) @ torch.randn(rank, 12, dtype=F64)).to(dtype)
    f = factorise(layer, feature_shape=(12,))
    assert (f.rank, f.null_dimension) == (rank, 12 - rank)


def test_a_layer_of_zeros_has_rank_zero() -> None:
    layer = nn.Conv2d(2, 3, 3)
    nn.init.zeros_(layer.weight)
    f = factorise(layer, feature_shape=(2, 5, 5))
    assert (f.rank, f.null_dimension, f.complete) == (0, 50, True)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("operator", ["dense", "patch"])
def test_factors_keep_the_weights_dtype_and_follow_the_features(dtype: torch.dtype, operator: str) -> None:
    f = factorise(nn.Conv2d(2, 3, 3, dtype=dtype), feature_shape=(2, 5, 5), operator=operator)
    assert {f.u.dtype, f.s.dtype, f.vh.dtype} == {dtype}
    other = torch.float32 if dtype == F64 else F64
    z = torch.randn(2, 2, 5, 5, dtype=other)
    assert {f.project(z).dtype, f.finish(f.project(z))[0].dtype, f.apply(z).dtype} == {other}


def test_factors_do_not_change_when_the_layer_is_trained_on() -> None:
    layer = nn.Linear(4, 3)
    f = factorise(layer, feature_shape=(4,))
    before = f.apply(torch.ones(1, 4))
    nn.init.zeros_(layer.weight)
    torch.testing.assert_close(f.apply(torch.ones(1, 4)), before)
    assert not f.vh.requires_grad


@settings(max_examples=20)
@given(case=CASES, operator=OPERATORS)
def test_gradients_flow_through_every_step(case: Case, operator: str) -> None:
    f = factorise(case.layers, feature_shape=case.shape, operator=operator)
    z = case.features(1).requires_grad_()
    loss = sum(y.square().sum() for y in f.finish(f.project(z)))
    (grad,) = torch.autograd.grad(loss, z)
    (expected,) = torch.autograd.grad(f.apply(z).square().sum(), z)
    torch.testing.assert_close(grad, expected)
    if f.operator == "dense":
        a = f.project(z).detach().requires_grad_()
        (grad,) = torch.autograd.grad(f.reconstruct(a).square().sum(), a)
        torch.testing.assert_close(grad, 2 * a)


@pytest.mark.parametrize("rank", [0, 6, -1, True, 2.0])
def test_a_rank_that_does_not_exist_is_refused(rank: object) -> None:
    with pytest.raises(RankError, match=r"pass 1 <= rank <= 5"):
        factorise(nn.Linear(9, 5), feature_shape=(9,), rank=rank)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layer", "shape", "error", "text"),
    [
        (nn.ConvTranspose2d(2, 3, 3), (2, 5, 5), OperatorError, "ConvTranspose2d"),
        (nn.Conv1d(2, 3, 3), (2, 5), OperatorError, "Conv1d"),
        ([], (2,), OperatorError, "no layer"),
        (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 5, 5), OperatorError, "padding_mode"),
        (nn.Conv2d(2, 3, 5), (2, 4, 9), ShapeError, "larger than the padded"),
        (nn.Conv2d(2, 3, 3), (3, 5, 5), ShapeError, r"\(2, H, W\)"),
        (nn.Conv2d(2, 3, 3), (2, 25), ShapeError, r"\(2, H, W\)"),
        (nn.Linear(7, 3), (2, 4), ShapeError, "7 elements"),
        (nn.Linear(7, 3), (), ShapeError, "without the batch"),
        (nn.Linear(7, 3), (0, 7), ShapeError, "without the batch"),
    ],
)
def test_what_is_not_linear_here_is_refused(
    layer: object, shape: tuple[int, ...], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        factorise(layer, feature_shape=shape)  # type: ignore[arg-type]


def test_weights_that_are_not_finite_and_unknown_operators_are_refused() -> None:
    layer = nn.Linear(3, 2)
    with pytest.raises(OperatorError, match="'dense' or 'patch'"):
        factorise(layer, feature_shape=(3,), operator="toeplitz")  # type: ignore[arg-type]
    nn.init.constant_(layer.weight, float("nan"))
    with pytest.raises(OperatorError, match="not all finite"):
        factorise(layer, feature_shape=(3,))


@pytest.fixture
def dense() -> Factors:
    return factorise(nn.Conv2d(2, 3, 3), feature_shape=(2, 5, 5))


@pytest.fixture
def patch() -> Factors:
    return factorise(nn.Conv2d(2, 3, 3), feature_shape=(2, 5, 5), operator="patch")


def test_tensors_that_do_not_fit_are_refused(dense: Factors, patch: Factors) -> None:
    with pytest.raises(ShapeError, match=r"\(4, 2, 5, 6\).*\(batch, 2, 5, 5\)"):
        dense.project(torch.zeros(4, 2, 5, 6))
    with pytest.raises(ShapeError, match=r"\(4, 50\)"):
        dense.apply(torch.zeros(4, 50))
    with pytest.raises(ShapeError, match=r"k <= 27"):
        dense.finish(torch.zeros(4, 28))
    with pytest.raises(ShapeError, match=r"\(4, 3\).*\(batch, k, 3, 3\)"):
        patch.finish(torch.zeros(4, 3))
    with pytest.raises(ShapeError, match="floats"):
        dense.project(torch.zeros(4, 2, 5, 5, dtype=torch.uint8))
    with pytest.raises(RankError, match="0 <= m <= 27"):
        dense.project(torch.zeros(4, 2, 5, 5), 28)
    with pytest.raises(RankError, match="0 <= m <= 3"):
        patch.message_shape(4)


def test_a_patch_message_has_no_feature(patch: Factors) -> None:
    with pytest.raises(OperatorError, match="use finish"):
        patch.reconstruct(torch.zeros(1, 3, 3, 3))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 12), st.integers(0, 2**31 - 1))
def test_left_vectors_are_those_of_the_decomposition(m: int, n: int, rank: int, seed: int) -> None:
    rank, generator = min(rank, m, n), torch.Generator().manual_seed(seed)
    W = torch.randn(m, rank, dtype=F64, generator=generator) @ torch.randn(rank, n, dtype=F64, generator=generator)
    U = left_vectors(W)
    assert U.shape == (m, min(m, n))
    s = torch.linalg.svdvals(W)
    # The rows Uᵀ W are orthogonal and have the lengths s: these two facts are the decomposition.
    rows = U.mT @ W
    torch.testing.assert_close(rows @ rows.mT, torch.diag(s.square()), atol=1e-9 * (1 + s.amax() ** 2), rtol=0)
    torch.testing.assert_close(U @ rows, W, atol=1e-5 * (1 + s.amax()), rtol=0)
    inner = U[:, : int((s > 1e-3 * s.amax()).sum())]
    torch.testing.assert_close(inner.mT @ inner, torch.eye(inner.shape[1], dtype=F64), atol=1e-9, rtol=0)
    if m > n:
        assert not U[:, rank:].any()
