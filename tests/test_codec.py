"""Integer codings: scales of eight bits, errors within half a step, and products that float32 holds exactly.

And digits as one index: the mixed-radix number, in bytes of a fixed number, whatever the levels.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from splitveil.codec import (
    CODINGS,
    FRAME_CODINGS,
    LARGEST,
    Coding,
    dequantise,
    fit_scales,
    from_index,
    index_bytes,
    quantise,
    round_scales,
    to_index,
)
from splitveil.errors import WireError

INTEGERS = st.sampled_from(["int8", "int4"])
# Far from where float32 has no eight significant bits left, or no room above.
SIZES = st.floats(-(2.0**40), 2.0**40, width=32).map(lambda value: 0.0 if abs(value) < 2.0**-40 else value)
TABLES = arrays(np.float32, st.tuples(st.integers(1, 20), st.integers(1, 4)), elements=SIZES)
MAPS = arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.just(2)), elements=SIZES
)


def columns(coefficients: NDArray[np.float32]) -> NDArray[np.float64]:
    """All values of each component, (components, N·positions)."""
    return np.moveaxis(coefficients, 1, 0).reshape(coefficients.shape[1], -1).astype(np.float64)


def error(coefficients: NDArray[np.float32], scales: NDArray[np.float32], coding: Coding) -> NDArray[np.float64]:
    """Mean squared error of each component."""
    back = dequantise(quantise(coefficients, scales, coding), scales)
    return np.asarray(np.square(columns(coefficients) - columns(back)).mean(1))


def test_the_codings_and_their_ranges_are_fixed() -> None:
    assert CODINGS == ("float32", "int8", "int4")
    assert FRAME_CODINGS == ("float32", "int8", "int4", "index")  # a frame says which by its place in this list
    assert LARGEST == {"int8": 127, "int4": 7}


@given(TABLES | MAPS, INTEGERS)
def test_scales_have_at_most_eight_significant_bits(coefficients: NDArray[np.float32], coding: Coding) -> None:
    scales = fit_scales(coefficients, coding)
    assert scales.shape == (coefficients.shape[1],)
    assert scales.dtype == np.float32
    assert (scales > 0).all()
    for scale in scales:
        numerator = Fraction(float(scale)).numerator  # the other part of a float's fraction is a power of two
        assert (numerator & -numerator) * 2**8 > numerator


@given(arrays(np.float64, 5, elements=st.floats(1e-30, 1e30)))
def test_rounding_a_scale_makes_it_larger_by_less_than_a_hundredth(scales: NDArray[np.float64]) -> None:
    rounded = round_scales(scales)
    assert (rounded >= scales).all()
    assert (rounded <= scales * (1 + 2**-7)).all()
    np.testing.assert_array_equal(round_scales(rounded), rounded)


@given(TABLES | MAPS, INTEGERS)
def test_the_error_is_at_most_half_a_step_within_the_range(coefficients: NDArray[np.float32], coding: Coding) -> None:
    scales = fit_scales(coefficients, coding)
    integers = quantise(coefficients, scales, coding)
    assert integers.dtype == np.int8
    assert integers.shape == coefficients.shape
    for values, read, scale in zip(columns(coefficients), columns(integers), scales.astype(np.float64), strict=True):
        end = LARGEST[coding] * scale
        inside = np.abs(values) <= end
        # Dividing in float32 may take the other of two integers that are as near but for a millionth.
        assert (np.abs(values - scale * read)[inside] <= scale / 2 * (1 + 1e-4)).all()
        np.testing.assert_array_equal(read[~inside], np.sign(values[~inside]) * LARGEST[coding])


@given(TABLES | MAPS, INTEGERS)
def test_clipping_is_never_worse_than_reaching_the_largest(coefficients: NDArray[np.float32], coding: Coding) -> None:
    largest = np.abs(columns(coefficients)).max(1)
    plain = np.where(largest > 0, round_scales(np.where(largest > 0, largest, 1.0) / LARGEST[coding]), 1.0)
    ours = error(coefficients, fit_scales(coefficients, coding), coding)
    assert (ours <= error(coefficients, plain.astype(np.float32), coding) * (1 + 1e-5)).all()


def test_clipping_pays_where_few_values_are_large() -> None:
    random = np.random.default_rng(0)
    coefficients = random.laplace(size=(2000, 3)).astype(np.float32)
    plain = round_scales(np.abs(coefficients).max(0).astype(np.float64) / 7).astype(np.float32)
    assert (
        error(coefficients, fit_scales(coefficients, "int4"), "int4") < 0.8 * error(coefficients, plain, "int4")
    ).all()


def test_eight_bits_are_better_than_four_and_a_silent_component_stays_silent() -> None:
    coefficients = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    coefficients[:, 1] = 0
    errors = {coding: error(coefficients, fit_scales(coefficients, coding), coding) for coding in LARGEST}
    assert errors["int8"][1] == errors["int4"][1] == 0
    assert (errors["int8"][[0, 2]] < errors["int4"][[0, 2]] / 50).all()
    assert fit_scales(coefficients, "int8")[1] == 1


@given(TABLES, INTEGERS, st.integers(1, 4))
def test_each_component_has_its_scale_for_itself(coefficients: NDArray[np.float32], coding: Coding, first: int) -> None:
    np.testing.assert_array_equal(fit_scales(coefficients[:, :first], coding), fit_scales(coefficients, coding)[:first])


@given(st.integers(-127, 127), st.integers(1, 255), st.integers(-60, 60))
def test_reading_an_integer_is_exact(integer: int, significant: int, exponent: int) -> None:
    scale = np.array([significant * 2.0**exponent], dtype=np.float32)
    read = dequantise(np.array([[integer]], dtype=np.int8), scale)
    assert read.dtype == np.float32
    assert Fraction(float(read[0, 0])) == integer * significant * Fraction(2) ** exponent


def test_fewer_components_take_the_first_scales() -> None:
    scales = np.array([1, 2, 4], dtype=np.float32)
    maps = np.full((2, 2, 1, 3), 8, dtype=np.float32)
    integers = quantise(maps, scales, "int8")
    assert integers[:, 0].tolist() == [[[8, 8, 8]]] * 2
    assert integers[:, 1].tolist() == [[[4, 4, 4]]] * 2
    np.testing.assert_array_equal(dequantise(integers, scales), maps)


def test_what_lies_outside_is_clipped_on_both_sides_alike() -> None:
    coefficients = np.array([[3.4e38, -3.4e38, 0.5, -0.5]], dtype=np.float32).T
    assert quantise(coefficients, np.ones(1, np.float32), "int8")[:, 0].tolist() == [127, -127, 0, 0]
    assert quantise(coefficients, np.ones(1, np.float32), "int4")[:, 0].tolist() == [7, -7, 0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_no_integers(bad: float) -> None:
    with pytest.raises(WireError, match="not finite cannot be sent"):
        quantise(np.array([[1.0, bad]], dtype=np.float32), np.ones(2, np.float32), "int8")


def test_more_components_than_scales_are_refused_both_ways() -> None:
    scales = np.ones(2, np.float32)
    with pytest.raises(WireError, match="has 3 components, but scales are known of 2 only"):
        quantise(np.zeros((1, 3), np.float32), scales, "int4")
    with pytest.raises(WireError, match="has 3 components, but scales are known of 2 only"):
        dequantise(np.zeros((1, 3), np.int8), scales)


# --- digits and indices


LEVELS = st.lists(st.integers(1, 300) | st.integers(1, 2**16 - 1), min_size=1, max_size=24).map(tuple)


@st.composite
def messages(draw: st.DrawFn) -> tuple[tuple[int, ...], list[list[int]]]:
    """Levels and some digits below them, often the largest."""
    levels = draw(LEVELS)
    digit = [st.integers(0, level - 1) | st.just(level - 1) for level in levels]
    return levels, draw(st.lists(st.tuples(*digit).map(list), max_size=4))


def number(digits: list[int], levels: tuple[int, ...]) -> int:
    """The mixed-radix number by its definition: each digit times the product of the levels after it."""
    return sum(digit * math.prod(levels[place + 1 :]) for place, digit in enumerate(digits))


@given(messages())
def test_an_index_is_the_mixed_radix_number_and_gives_its_digits_back(
    made: tuple[tuple[int, ...], list[list[int]]],
) -> None:
    levels, rows = made
    digits = np.array(rows, np.int64).reshape(len(rows), len(levels))
    octets = to_index(digits, levels)
    assert (octets.dtype, octets.shape) == (np.uint8, (len(rows), index_bytes(levels)))
    assert [int.from_bytes(row.tobytes(), "little") for row in octets] == [number(row, levels) for row in rows]
    back = from_index(octets, levels)
    assert back.dtype == np.int64
    np.testing.assert_array_equal(back, digits)
    np.testing.assert_array_equal(to_index(digits.astype(np.float32), levels), octets)  # as graphs give them


@given(st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple))
def test_every_index_below_their_product_is_one_message(levels: tuple[int, ...]) -> None:
    count, size = math.prod(levels), index_bytes(levels)
    every = np.array([list(index.to_bytes(size, "little")) for index in range(min(count, 256**size))], np.uint8)
    digits = from_index(every, levels)
    assert len({tuple(row) for row in digits.tolist()}) == count
    assert (digits < np.array(levels)).all()
    np.testing.assert_array_equal(to_index(digits, levels), every)


@pytest.mark.parametrize(
    ("levels", "size"),
    [((1,), 1), ((2,), 1), ((256,), 1), ((257,), 2), ((16, 16), 1), ((16, 17), 2), ((2,) * 56, 7), ((2,) * 57, 8),
     ((2,) * 64, 8), ((2,) * 64 + (2,), 9), ((256,) * 16, 16), ((3,) * 500, 100)],
)  # fmt: skip
def test_the_bytes_of_an_index_are_those_of_the_largest(levels: tuple[int, ...], size: int) -> None:
    assert index_bytes(levels) == size
    last, first = np.array([levels]) - 1, np.zeros((1, len(levels)), int)
    assert to_index(first, levels).tolist() == [[0] * size]  # leading zeros are written
    largest = math.prod(levels) - 1
    assert to_index(last, levels).tobytes() == largest.to_bytes(size, "little")
    if largest + 1 < 256**size:
        beyond = np.frombuffer((largest + 1).to_bytes(size, "little"), np.uint8)[None]
        with pytest.raises(WireError, match="beyond the number of messages"):
            from_index(beyond, levels)
        with pytest.raises(WireError, match="beyond the number of messages"):
            from_index(np.full((1, size), 255, np.uint8), levels)


@pytest.mark.parametrize("bad", [[0, 3], [2, 0], [-1, 0], [0.5, 0], [0, np.nan], [np.inf, 0], [0, 1e30]])
@pytest.mark.parametrize("more", [(), (256,) * 8])
def test_what_is_no_digit_of_its_level_is_not_sent(bad: list[float], more: tuple[int, ...]) -> None:
    levels, rest = (2, 3, *more), [255.0] * len(more)
    assert to_index(np.array([[1, 2, *rest]]), levels).size
    with pytest.raises(WireError, match="no whole numbers below their levels"):
        to_index(np.array([[1, 2, *rest], [*bad, *rest]], np.float32), levels)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2,), (1, 2, 1)])
def test_digits_of_another_number_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(WireError, match="has 2 digits here"):
        to_index(np.zeros(shape, np.int64), (2, 3))
