"""Decoding integers: sums without rounding, so that equal bytes are the same feature everywhere."""

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import splitveil as sv
from made_bundles import made_model
from made_veils import made_veil
from splitveil.bundle import Messages, from_frames, to_frames
from splitveil.bundle.runtime import ort
from splitveil.codec import CODINGS, LARGEST, Coding, round_scales
from splitveil.export.exact import exact_map, exact_rows, exact_table
from splitveil.export.graphs import to_onnx
from splitveil.export.halves import ServerHalf
from splitveil.obfuscate import Tables
from splitveil.profiling.scaling import coding_scales

NAME = b"\x01\x02\x03\x04"
INTEGERS: tuple[Coding, ...] = ("int8", "int4")


class Case:
    """A matrix (components, n), scales of one or both codings, and integers (messages, components) of one of them."""

    def __init__(self, components: int, spread: float, codings: tuple[Coding, ...], seed: int) -> None:
        random = np.random.default_rng(seed)
        self.random = random
        self.matrix = torch.from_numpy(random.normal(size=(components, 5)) * 10 ** random.uniform(-2, 2, (1, 5)))
        largest = 10 ** random.uniform(-spread, spread, components)
        self.scales = {
            coding: torch.from_numpy(round_scales(largest / LARGEST[coding]).astype(np.float32)) for coding in codings
        }
        self.exact = exact_rows(self.matrix, self.scales)  # type: ignore[arg-type]
        coding = codings[seed % len(codings)]
        ends = np.array([-LARGEST[coding], LARGEST[coding]])
        some = random.integers(ends[0], ends[1] + 1, (3, components))
        self.integers = np.concatenate([some, np.full((1, components), ends[1]), random.choice(ends, (2, components))])
        self.coefficients = self.integers * self.scales[coding].double().numpy()


CASES = st.builds(
    Case,
    components=st.integers(1, 64),
    spread=st.floats(0, 6),
    codings=st.sampled_from([("int8",), ("int4",), ("int8", "int4")]),
    seed=st.integers(0, 2**31 - 1),
)


def rational(coefficients: np.ndarray, matrix: Tensor) -> list[list[Fraction]]:
    """The product as it is, without any rounding."""
    entries = [[Fraction(value) for value in row] for row in matrix.tolist()]
    return [
        [
            sum((a * row[n] for a, row in zip(map(Fraction, message), entries, strict=True)), Fraction(0))
            for n in range(5)
        ]
        for message in coefficients.tolist()
    ]


@given(CASES)
def test_the_product_is_exact_in_any_order(case: Case) -> None:
    matrix, true = case.exact.numpy(), rational(case.coefficients, case.exact)
    orders = [case.random.permutation(len(matrix)) for _ in range(3)]
    sums = [case.coefficients @ matrix, (torch.from_numpy(case.coefficients) @ case.exact).numpy()]
    for order in orders:
        total = np.zeros((len(case.coefficients), 5))
        for k in order:  # one addition after the other
            total = total + case.coefficients[:, k, None] * matrix[k]
        sums.append(total)
    for found in sums:
        assert [[Fraction(value) for value in row] for row in found.tolist()] == true


@given(CASES, st.floats(-4, 4))
def test_the_offset_is_a_term_like_any_other(case: Case, size: float) -> None:
    offset = torch.from_numpy(case.random.normal(size=5) * 10**size)
    matrix, added = exact_map(case.matrix, offset, case.scales)  # type: ignore[arg-type]
    terms = np.concatenate([case.coefficients[:, :, None] * matrix.numpy(), np.tile(added.numpy(), (6, 1, 1))], axis=1)
    true = [[sum(map(Fraction, column), Fraction(0)) for column in message.T.tolist()] for message in terms]
    found = [np.add.accumulate(terms[:, case.random.permutation(terms.shape[1])], axis=1)[:, -1] for _ in range(3)]
    found.append((torch.from_numpy(case.coefficients) @ matrix + added).numpy())
    for one in found:
        assert [[Fraction(value) for value in row] for row in one.tolist()] == true
    assert float((added - offset).abs().max()) < 2**-30 * max(float(offset.abs().max()), float(np.abs(terms).max()))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=40), st.floats(0, 6), st.integers(0, 2**31 - 1))
def test_sums_of_rows_are_exact_in_any_order(levels: list[int], spread: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    rough = random.normal(size=(sum(levels), 3)) * 10 ** random.uniform(-spread, spread, (sum(levels), 1))
    table = exact_table(torch.from_numpy(rough), levels).numpy()
    starts = np.cumsum([0, *levels[:-1]])
    for digits in random.integers(0, levels, (4, len(levels))):
        terms = table[starts + digits]
        true = [sum(map(Fraction, column), Fraction(0)) for column in terms.T.tolist()]
        for order in [random.permutation(len(levels)) for _ in range(3)]:
            assert [Fraction(value) for value in np.add.accumulate(terms[order])[-1].tolist()] == true
    assert np.abs(table - rough).max() <= 2**-40 * len(levels) * np.abs(rough).max()


def test_without_rounding_the_order_shows() -> None:
    case = Case(64, 2.0, ("int8",), seed=0)
    terms = case.coefficients[0, :, None] * case.matrix.numpy()
    totals = {tuple(np.add.accumulate(terms[case.random.permutation(64)])[-1]) for _ in range(20)}
    assert len(totals) > 1  # or the tests above would prove nothing


@given(CASES)
def test_rounding_moves_the_product_by_less_than_2_to_the_minus_30(case: Case) -> None:
    """Of the largest product that messages can have."""
    reach = torch.stack([LARGEST[coding] * scale.double() for coding, scale in case.scales.items()]).amax(0)
    most = float((reach[:, None] * case.matrix.abs()).sum(0).max())
    moved = torch.from_numpy(case.coefficients) @ (case.exact - case.matrix)
    assert float(moved.abs().max()) < 2**-30 * most
    assert float((reach[:, None] * (case.exact - case.matrix).abs()).sum(0).max()) < 2**-30 * most


def test_a_silent_matrix_and_no_integers_are_left_alone() -> None:
    matrix = torch.randn(3, 5, dtype=torch.float64)
    assert exact_rows(matrix, {}) is matrix
    assert not exact_rows(torch.zeros(3, 5, dtype=torch.float64), {"int8": torch.ones(3)}).any()


class Decoder(nn.Module):
    """The exported server's first step alone."""

    def __init__(self, half: ServerHalf) -> None:
        super().__init__()
        self.exported = half

    def forward(self, coefficients: Tensor) -> Tensor:
        """What the coefficients stand for."""
        return self.exported.decode(coefficients)


class Made:
    """A network cut and exported as `export` does it, with the coefficients that frames of random images bring."""

    def __init__(self, cut: int, kind: str | None) -> None:
        self.data, self.split = sv.load_data("digit-pairs"), sv.SplitModel(made_model(), at=cut)
        x = self.data.val.images(slice(0, 32))
        with torch.no_grad():
            z = self.split.client(x)
        # Of 13 components, an odd number, so that a half byte is left over.
        self.veil = made_veil(kind, self.split, self.data.train, m=13) if kind else self._components(z, cut)
        scales = coding_scales(self.split, self.veil, self.data.train, CODINGS)
        self.messages = Messages(
            components=13, positions=self.veil.message.shape[1:], codings=CODINGS, certified=False,
            scales={name: tuple(map(float, scale)) for name, scale in scales.items()},
        )  # fmt: skip
        self.half = ServerHalf(self.split, self.veil, {name: torch.from_numpy(scales[name]) for name in scales})
        self.graph = to_onnx(
            Decoder(self.half), torch.zeros(2, *self.veil.message.shape), "coefficients", "decoded"
        ).content
        self.sent = self.veil.encode(z).numpy()

    def _components(self, z: Tensor, cut: int) -> sv.TopComponents:
        layer, operator = self.split.server_layer, "dense" if cut > 3 else "patch"
        return sv.TopComponents(sv.factorise(layer, feature_shape=tuple(z.shape[1:]), operator=operator), m=13)

    def read(self, coding: Coding) -> np.ndarray:
        """Coefficients (32, 13, *positions) after the wire."""
        frames = to_frames(self.sent, self.messages, NAME, m=13, coding=coding)
        return from_frames(frames, self.messages, NAME)


@pytest.fixture(
    scope="module", params=[(4, None), (2, None), (3, "distilled")], ids=["fully connected", "patch", "distilled"]
)
def made(request: pytest.FixtureRequest) -> Made:
    return Made(*request.param)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def by_onnx(made: Made, coefficients: np.ndarray, threads: int) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(made.graph, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"coefficients": coefficients})[0])


@torch.no_grad()
def by_torch(made: Made, coefficients: np.ndarray) -> np.ndarray:
    return np.asarray(made.half.decode(torch.from_numpy(coefficients)).numpy())


def by_numpy(made: Made, coefficients: np.ndarray) -> np.ndarray:
    """The same sums, one component after the other."""
    matrix = made.half.matrix.numpy()
    flat = coefficients.reshape(len(coefficients), len(matrix), -1).astype(np.float64)
    total = np.zeros((len(flat), matrix.shape[1], flat.shape[2]))
    for row, column in zip(matrix, flat.transpose(1, 0, 2), strict=True):
        total += row[None, :, None] * column[:, None, :]
    if hasattr(made.half, "offset"):
        total += made.half.offset.numpy()[:, None]
    return total.astype(np.float32)


@pytest.mark.parametrize("coding", INTEGERS)
def test_equal_bytes_decode_to_the_identical_numbers_everywhere(made: Made, coding: Coding, threads: int) -> None:
    coefficients = made.read(coding)
    expected = by_torch(made, coefficients)
    if not made.messages.positions:
        assert expected.shape[1:] == tuple(made.split.client(made.data.val.images(slice(0, 1))).shape[1:])
    found = [
        by_onnx(made, coefficients, threads),
        np.concatenate([by_onnx(made, one[None], threads) for one in coefficients[:4]]),
        np.concatenate([by_torch(made, one[None]) for one in coefficients]),
        by_numpy(made, coefficients),
    ]
    for one in found:
        assert one.tobytes() == expected[: len(one)].tobytes()
    assert len(np.unique(expected)) > 1000


def test_the_exact_decoder_gives_the_models_own_answer(made: Made) -> None:
    sent = torch.from_numpy(made.sent)
    with torch.no_grad():
        torch.testing.assert_close(made.half(sent), made.split.answer(made.veil, sent), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["quantised", "codebook"])
def test_equal_digits_decode_to_the_identical_numbers_everywhere(kind: str, threads: int) -> None:
    data, split = sv.load_data("digit-pairs"), sv.SplitModel(made_model(), at=4)
    veil = made_veil(kind, split, data.train)
    assert isinstance(veil, Tables)
    half = ServerHalf(split, veil, {})
    digits = np.stack([np.random.default_rng(0).integers(0, level, 50) for level in veil.levels], 1).astype(np.float32)
    graph = to_onnx(Decoder(half), torch.zeros(2, len(veil.levels)), "digits", "decoded").content
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = half.decode(torch.from_numpy(digits)).numpy()
        mine = veil.decode(torch.from_numpy(digits).long()).numpy()
    table, starts = half.table.numpy(), np.cumsum([0, *veil.levels[:-1]])
    total = np.zeros((len(digits), table.shape[1]))
    for digit, start in reversed(list(zip(digits.T.astype(int), starts, strict=True))):
        total = total + table[start + digit]
    for found in (
        session.run(None, {"digits": digits})[0],
        np.concatenate([session.run(None, {"digits": one[None]})[0] for one in digits]),
        total.astype(np.float32).reshape(expected.shape),
    ):
        assert np.asarray(found).tobytes() == expected.tobytes()
    np.testing.assert_allclose(expected, mine, rtol=0, atol=1e-6 * np.abs(mine).max())
    assert len(np.unique(expected)) > 100
