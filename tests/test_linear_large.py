"""The ways of a large layer (Gram matrix, block Lanczos, banded Cholesky) against the exact decomposition."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from slow_truth import unrolled
from splitveil.linear import decompose, factorise, krylov, nullspace, operators
from splitveil.linear.decompose import Products, Triplets, decompose_matrix, decompose_products, leading_triplets
from splitveil.linear.layers import read_layers
from splitveil.linear.maps import LinearMap
from splitveil.linear.nullspace import banded_gram, has_full_column_rank

F64 = torch.float64


def with_spectrum(m: int, n: int, s: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(m, len(s), dtype=F64, generator=generator)).Q
    v = torch.linalg.qr(torch.randn(n, len(s), dtype=F64, generator=generator)).Q
    return u * s @ v.mT


def assert_triplets(found: Triplets, matrix: Tensor, k: int) -> None:
    """Right values, orthonormal factors, and small residuals on both sides: no entry of U or V is looked at."""
    u, s, vh = found
    truth = torch.linalg.svdvals(matrix)
    scale = float(truth[0]) or 1.0
    eye = torch.eye(k, dtype=F64)
    torch.testing.assert_close(s, truth[:k], rtol=1e-10, atol=1e-12 * scale)
    torch.testing.assert_close(u.mT @ u, eye, rtol=0, atol=1e-10)
    torch.testing.assert_close(vh @ vh.mT, eye, rtol=0, atol=1e-10)
    torch.testing.assert_close(matrix @ vh.mT, u * s, rtol=0, atol=1e-11 * scale)
    torch.testing.assert_close(matrix.mT @ u, vh.mT * s, rtol=0, atol=1e-11 * scale)


SPECTRA = {
    "clustered": 1 + torch.linspace(1e-2, 0, 60, dtype=F64),
    "decaying": torch.logspace(0, -11, 60, dtype=F64),
    "repeated": torch.tensor([2.0] * 30 + [1.0] * 30, dtype=F64),
    "deficient": torch.cat([torch.linspace(3, 1, 20, dtype=F64), torch.zeros(40, dtype=F64)]),
    "zero": torch.zeros(60, dtype=F64),
    "steep": torch.tensor([50.0] + [1.0 - 0.001 * i for i in range(59)], dtype=F64),
}


@pytest.mark.parametrize("shape", [(90, 60), (60, 90)], ids=["tall", "wide"])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_gram_matrix_gives_all_triplets(name: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decompose, "DIRECT_UP_TO", 0)
    matrix = with_spectrum(*shape, SPECTRA[name])
    assert_triplets(decompose_matrix(matrix), matrix, 60)
    assert_triplets(decompose_products(Products.of(matrix), 25), matrix, 25)


@pytest.mark.parametrize("shape", [(700, 500), (500, 700)], ids=["tall", "wide"])
@pytest.mark.parametrize("name", SPECTRA)
def test_products_alone_give_the_leading_triplets(name: str, shape: tuple[int, int]) -> None:
    matrix = with_spectrum(*shape, torch.cat([SPECTRA[name], torch.linspace(0.4, 0, 300, dtype=F64)]))
    assert_triplets(leading_triplets(Products.of(matrix), 12), matrix, 12)


@settings(max_examples=15)
@given(k=st.integers(1, 40), n=st.integers(40, 60), seed=st.integers(0, 2**31 - 1))
def test_products_give_any_number_of_triplets(k: int, n: int, seed: int) -> None:
    matrix = torch.randn(70, n, dtype=F64, generator=torch.Generator().manual_seed(seed))
    assert_triplets(leading_triplets(Products.of(matrix), k), matrix, k)


def diagonal(s: Tensor) -> Products:
    return Products(len(s), len(s), lambda z: z * s, lambda y: y * s)


def test_more_copies_than_a_block_holds_are_all_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 1×1 convolution repeats each singular value at every pixel; a start of 16 vectors sees 16 copies.

    Rounding alone would show the others in time: a coarse residual drops it, so that only the search is left.
    """
    monkeypatch.setattr(krylov, "RESIDUAL", 1e-6)
    s = torch.tensor([2.0, 1.9, 1.0, 0.0], dtype=F64).repeat_interleave(200)
    torch.testing.assert_close(leading_triplets(diagonal(s), 20).s, s[:20], rtol=1e-6, atol=0)


def test_a_dense_spectrum_is_searched_until_its_pairs_have_converged() -> None:
    s = torch.linspace(2, 0, 18000, dtype=F64)
    u, found, vh = leading_triplets(diagonal(s), 10)
    torch.testing.assert_close(found, s[:10], rtol=1e-12, atol=0)
    assert float((u.mT * s - found[:, None] * vh).norm(dim=1).amax()) < 1e-12


def double_map(layer: nn.Conv2d | list[nn.Conv2d], shape: tuple[int, int, int]) -> LinearMap:
    return read_layers(layer, shape).to(torch.zeros(0, dtype=F64))


@given(
    seed=st.integers(0, 2**31 - 1),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    sides=st.tuples(st.integers(1, 2), st.integers(3, 8), st.integers(3, 8)),
)
def test_the_band_is_the_gram_matrix(
    seed: int, kernel: tuple[int, int], stride: int, dilation: int, sides: tuple[int, int, int]
) -> None:
    torch.manual_seed(seed)
    layer = nn.Conv2d(sides[0], 3, kernel, stride, padding=2, dilation=dilation)
    map_ = double_map(layer, sides)
    reach = (dilation * (kernel[0] - 1), dilation * (kernel[1] - 1))
    band = torch.from_numpy(banded_gram(lambda z: map_.adjoint(map_.apply(z)), sides, reach))
    W = unrolled(map_).reshape(-1, *sides).permute(0, 2, 3, 1).flatten(1)  # ordered by (row, column, channel)
    gram = torch.zeros_like(W.mT @ W)
    for offset, diagonal in enumerate(band):
        gram += torch.diag(diagonal[: len(gram) - offset], -offset)
    torch.testing.assert_close(gram, (W.mT @ W).tril())


@pytest.mark.parametrize(("channels", "out"), [(3, 16), (16, 32), (32, 64)])
def test_a_padded_convolution_with_more_outputs_than_inputs_has_full_column_rank(channels: int, out: int) -> None:
    torch.manual_seed(0)
    shape = (channels, 6, 5)
    layer = nn.Conv2d(channels, out, 3, padding=1)
    f = factorise(layer, feature_shape=shape)
    assert (f.rank, f.null_dimension) == (f.in_features, 0)
    assert has_full_column_rank(double_map(layer, shape), float(f.s[0]), 1e-6) is True


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("plant", ["zero", "duplicate"])
def test_a_planted_null_space_is_recognised(plant: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, 3, padding=1, dtype=dtype)
    with torch.no_grad():
        layer.weight[:, 1] = 0 if plant == "zero" else layer.weight[:, 2]
    f = factorise(layer, feature_shape=(4, 8, 7))
    assert f.null_dimension == 56
    tolerance = operators.rank_tolerance(dtype)
    assert has_full_column_rank(double_map(layer, (4, 8, 7)), float(f.s[0]), tolerance) is False


def test_between_the_two_proofs_the_null_space_is_not_known() -> None:
    """A channel of 1e-8 is no zero in float64, yet below what the square of WᵀW can show."""
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 6, 3, padding=1, dtype=F64)
    with torch.no_grad():
        layer.weight[:, 1] *= 1e-8
    assert has_full_column_rank(double_map(layer, (3, 6, 6)), 1.0, 1e-12) is None


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes small layers take the large layers' way."""
    monkeypatch.setattr(operators, "FULL_UP_TO", 40)
    monkeypatch.setattr(operators, "DEFAULT_TOP", 12)
    monkeypatch.setattr(operators, "UNROLL_UP_TO", 0)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("rank", [None, 5, 60, 200])
def test_a_large_convolution_gives_its_leading_factors_and_knows_its_null_space(rank: int | None) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, 3, padding=1, dtype=F64)
    f = factorise(layer, feature_shape=(4, 8, 8), rank=rank)
    k = rank or 12
    assert_triplets(Triplets(f.u, f.s, f.vh), unrolled(f.map), k)
    assert (f.rank, f.null_dimension, f.has_null_space, f.complete) == (256, 0, False, False)


@pytest.mark.usefixtures("small_limits")
def test_a_large_layer_says_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, 3, padding=1)
    wide = factorise(nn.Conv2d(8, 4, 3, padding=1), feature_shape=(8, 8, 8))
    assert (wide.rank, wide.null_dimension, wide.null_at_least, wide.has_null_space) == (None, None, 256, True)
    monkeypatch.setattr(nullspace, "MAX_BAND_ELEMENTS", 0)
    f = factorise(layer, feature_shape=(4, 8, 8))
    assert (f.rank, f.null_dimension, f.null_at_least, f.has_null_space) == (None, None, 0, None)
    nn.init.zeros_(layer.weight[1:])  # one filter left, so the factors reach the zeros and know all
    few = factorise(layer, feature_shape=(4, 8, 8), rank=70)
    assert (few.rank, few.null_dimension, few.complete) == (64, 192, True)


@pytest.mark.usefixtures("small_limits")
def test_a_planted_null_space_is_recognised_where_only_leading_factors_are_known() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, 3, padding=1)
    with torch.no_grad():
        layer.weight[:, 3] = -layer.weight[:, 0]
    f = factorise(layer, feature_shape=(4, 8, 8))
    assert (f.rank, f.null_dimension, f.null_at_least, f.has_null_space) == (None, None, 1, True)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(120, 70, dtype=F64), (120,)),
        (nn.Linear(9, 4, dtype=F64), (30, 9)),
        (nn.Conv2d(3, 5, 4, stride=4, dtype=F64), (3, 16, 24)),
    ],
    ids=["fully connected", "token-wise", "tiling convolution"],
)
def test_layers_whose_patches_tile_need_the_patch_matrix_alone(layer: nn.Module, shape: tuple[int, ...]) -> None:
    f = factorise(layer, feature_shape=shape)  # type: ignore[arg-type]
    assert_triplets(Triplets(f.u, f.s, f.vh), unrolled(f.map), 12)
    assert f.has_null_space is True


CELEBA_CUT_2 = """
import resource, torch
from splitveil.linear import factorise
torch.manual_seed(0)
f = factorise(torch.nn.Conv2d(16, 32, 3, padding=1, dtype=torch.float64), feature_shape=(16, 36, 30))
residual = (f.map.adjoint(f.u.mT).flatten(1) - f.s[:, None] * f.vh).norm(dim=1).max() / f.s[0]
assert residual < 1e-12, residual
assert (len(f.s), f.rank, f.null_dimension) == (64, 17280, 0), f
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_the_second_cut_of_celeba_needs_little_memory() -> None:
    """Its matrix would take 4.8 GB in float64; without it the whole process stays below 3 GiB."""
    done = subprocess.run([sys.executable, "-c", CELEBA_CUT_2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 3 * 2**20
