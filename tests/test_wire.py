"""Frames: exact bytes, exact round trips, and a sentence for everything else."""

import contextlib
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from splitveil.codec import FRAME_CODINGS, LARGEST, Coding, FrameCoding, index_bytes
from splitveil.errors import WireError
from splitveil.message import Message
from splitveil.wire import (
    HEADER_BYTES,
    Frame,
    decode,
    encode,
    pack,
    pack_digits,
    payload_bytes,
    unpack,
    unpack_digits,
)

NAME = b"\x01\x02\x03\x04"
TABLES = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=6),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
INTEGERS: tuple[Coding, ...] = ("int8", "int4")


@st.composite
def integer_frames(draw: st.DrawFn) -> Frame:
    coding = draw(st.sampled_from(INTEGERS))
    shape = array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=6)
    values = draw(arrays(np.int8, shape, elements=st.integers(-LARGEST[coding], LARGEST[coding])))
    return Frame(NAME, values, coding)


INDICES = arrays(np.uint8, st.tuples(st.just(1), st.integers(1, 12))).map(lambda octets: Frame(NAME, octets, "index"))
"""Frames of indices of whatever levels."""
FRAMES = TABLES.map(lambda values: Frame(NAME, values)) | integer_frames() | INDICES


def sealed(fields: bytes, payload: bytes = b"") -> bytes:
    """A frame with a checksum that fits, whatever its fields say."""
    return fields + struct.pack("<I", zlib.crc32(payload, zlib.crc32(fields))) + payload


def fields(magic: bytes = b"SV", version: int = 1, coding: int = 0, rows: int = 0, columns: int = 1) -> bytes:
    return struct.pack("<2sBB4sHH", magic, version, coding, NAME, rows, columns)


def is_canonical(data: bytes) -> bool:
    """Whether the frame decodes, and only to what is written as exactly these bytes."""
    return encode(decode(data)) == data


@given(TABLES, st.binary(min_size=4, max_size=4))
def test_a_frame_survives_the_wire_bit_for_bit(values: NDArray[np.float32], identity: bytes) -> None:
    data = encode(Frame(identity, values))
    back = decode(data)
    assert back.identity == identity
    assert back.values.shape == values.shape
    assert back.values.tobytes() == values.tobytes()  # tells -0.0 from 0.0
    assert len(data) == HEADER_BYTES + 4 * values.size


def test_the_bytes_of_a_frame_are_fixed() -> None:
    values = np.array([[1.0, -2.0], [0.5, 0.0], [-0.0, 3.4028235e38]], dtype=np.float32)
    assert encode(Frame(bytes.fromhex("deadbeef"), values)).hex(" ", 4) == (
        "53560100 deadbeef 03000200 79707f5a 0000803f 000000c0 0000003f 00000000 00000080 ffff7f7f"
    )


@given(integer_frames())
def test_a_frame_of_integers_survives_the_wire(frame: Frame) -> None:
    data = encode(frame)
    back = decode(data)
    assert (back.identity, back.coding, back.values.dtype) == (NAME, frame.coding, np.int8)
    np.testing.assert_array_equal(back.values, frame.values)
    assert len(data) == HEADER_BYTES + payload_bytes(frame.values.size, frame.coding)


@given(INDICES)
def test_a_frame_of_an_index_survives_the_wire(frame: Frame) -> None:
    data = encode(frame)
    back = decode(data)
    assert (back.identity, back.coding, back.values.dtype) == (NAME, "index", np.uint8)
    np.testing.assert_array_equal(back.values, frame.values)
    assert len(data) == HEADER_BYTES + frame.values.size == HEADER_BYTES + payload_bytes(frame.values.size, "index")


@pytest.mark.parametrize(
    ("coding", "values", "golden"),
    [
        ("int8", [[1, -1], [127, -127], [0, 5]], "53560101 deadbeef 03000200 f20021fa 01ff7f81 0005"),
        ("int4", [[1, -2, 7], [-7, 0, 0], [-1, 3, 4]], "53560102 deadbeef 03000300 23bf810f e197003f 04"),
        ("int4", [[1], [-2]], "53560102 deadbeef 02000100 c9f3d37b e1"),
        ("int8", [], "53560101 deadbeef 00000100 43e336fe"),
    ],
)
def test_the_bytes_of_integers_are_fixed(coding: Coding, values: list[list[int]], golden: str) -> None:
    table = np.array(values, dtype=np.int8).reshape(len(values), -1) if values else np.zeros((0, 1), np.int8)
    data = encode(Frame(bytes.fromhex("deadbeef"), table, coding))
    assert data.hex() == golden.replace(" ", "")
    np.testing.assert_array_equal(decode(bytes.fromhex(golden)).values, table)


def test_the_documented_examples_are_golden() -> None:
    page = (Path(__file__).parents[1] / "docs" / "wire-format.md").read_text(encoding="utf-8")
    examples = [bytes.fromhex(line) for line in page.splitlines() if line.startswith("    53 56")]
    assert [decode(data).coding for data in examples] == ["int8", "int4", "index"]
    assert [decode(data).values.tolist() for data in examples[:2]] == [
        [[1, -1], [127, -127], [0, 5]], [[1, -2, 7], [-7, 0, 0], [-1, 3, 4]],
    ]  # fmt: skip
    identity = bytes.fromhex("deadbeef")
    assert unpack_digits(examples[2:], (5, 7, 11), identity).tolist() == [[4, 0, 9]]
    assert pack_digits(np.array([[4, 0, 9]]), (5, 7, 11), identity) == examples[2:]


def test_bytes_per_coefficient() -> None:
    assert [payload_bytes(count, "float32") for count in range(4)] == [0, 4, 8, 12]
    assert [payload_bytes(count, "int8") for count in range(4)] == [0, 1, 2, 3]
    assert [payload_bytes(count, "int4") for count in range(4)] == [0, 1, 1, 2]
    assert [payload_bytes(count, "index") for count in range(4)] == [0, 1, 2, 3]


@given(st.binary(max_size=64))
def test_any_bytes_are_a_frame_or_a_wire_error(data: bytes) -> None:
    with contextlib.suppress(WireError):
        assert is_canonical(data)


@given(st.sampled_from(FRAME_CODINGS), st.integers(0, 3), st.integers(0, 3), st.data())
def test_any_payload_behind_a_valid_header_is_a_frame_or_a_wire_error(
    coding: FrameCoding, rows: int, columns: int, data: st.DataObject
) -> None:
    size = payload_bytes(rows * columns, coding)
    payload = data.draw(st.binary(min_size=size, max_size=size) | st.binary(max_size=40))
    with contextlib.suppress(WireError):
        assert is_canonical(sealed(fields(coding=FRAME_CODINGS.index(coding), rows=rows, columns=columns), payload))


@given(integer_frames() | INDICES, st.data())
def test_a_frame_changed_anywhere_but_sealed_again_is_a_frame_or_a_wire_error(
    frame: Frame, data: st.DataObject
) -> None:
    changed = bytearray(encode(frame))
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        assert is_canonical(sealed(bytes(changed[:12]), bytes(changed[HEADER_BYTES:])))


@pytest.mark.parametrize(
    ("coding", "rows", "payload", "sentence"),
    [
        ("int8", 2, "0180", "integers below -127"),
        ("int8", 1, "80", "integers below -127"),
        ("int4", 2, "08", "integers below -7"),  # the low half is -8
        ("int4", 2, "80", "integers below -7"),  # the high half is
        ("int4", 1, "11", "the half byte that fills up a frame is not zero"),
        ("int4", 3, "1181", "the half byte that fills up a frame is not zero"),
        ("int4", 3, "11f1", "the half byte that fills up a frame is not zero"),
        ("int4", 3, "110101", "has 18 bytes, but 19 came"),
        ("int4", 3, "11", "has 18 bytes, but 17 came"),
        ("int8", 3, "0101", "has 19 bytes, but 18 came"),
    ],
)
def test_what_no_encoder_writes_is_refused(coding: Coding, rows: int, payload: str, sentence: str) -> None:
    with pytest.raises(WireError, match=sentence):
        decode(sealed(fields(coding=FRAME_CODINGS.index(coding), rows=rows), bytes.fromhex(payload)))


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (0, 1), (1, 0), (2, 1), (3, 2)])
def test_an_index_is_one_component_of_at_least_one_byte(rows: int, columns: int) -> None:
    with pytest.raises(WireError, match=f"at least one byte, not {rows} of {columns}"):
        decode(sealed(fields(coding=3, rows=rows, columns=columns), bytes(rows * columns)))
    with pytest.raises(WireError, match=f"at least one byte, not {rows} of {columns}"):
        encode(Frame(NAME, np.zeros((rows, columns), np.uint8), "index"))


def test_an_index_is_given_by_its_bytes() -> None:
    with pytest.raises(WireError, match="by its bytes, uint8, not by int8"):
        encode(Frame(NAME, np.zeros((1, 2), np.int8), "index"))


@pytest.mark.parametrize(
    "frame",
    [
        Frame(NAME, np.array([[-128]], np.int8), "int8"),
        Frame(NAME, np.array([[8]], np.int8), "int4"),
        Frame(NAME, np.array([[-8]], np.int8), "int4"),
        Frame(NAME, np.array([[1]], np.int16), "int8"),  # type: ignore[arg-type]
        Frame(NAME, np.array([[1.0]], np.float32), "int8"),
    ],
)
def test_what_no_integer_coding_holds_is_not_sent(frame: Frame) -> None:
    with pytest.raises(
        WireError, match=rf"coded as {frame.coding} are int8 numbers of at most ±{LARGEST[frame.coding]}"
    ):
        encode(frame)


def test_integers_are_not_read_where_floats_are_expected() -> None:
    with pytest.raises(WireError, match="read as float32 here, but a frame of int8 came"):
        unpack([encode(Frame(NAME, np.ones((4, 1), np.int8), "int8"))], VECTOR, NAME)
    with pytest.raises(WireError, match="read as float32 here, but a frame of index came"):
        unpack(pack_digits(np.zeros((1, 4)), (2,) * 4, NAME), VECTOR, NAME)


@given(FRAMES, st.data())
def test_a_flipped_bit_anywhere_is_noticed(sent: Frame, data: st.DataObject) -> None:
    frame = bytearray(encode(sent))
    bit = data.draw(st.integers(0, 8 * len(frame) - 1))
    frame[bit // 8] ^= 1 << bit % 8
    with pytest.raises(WireError):
        decode(bytes(frame))


@given(FRAMES, st.data())
def test_a_frame_cut_short_or_made_longer_is_refused(sent: Frame, data: st.DataObject) -> None:
    frame = encode(sent)
    with pytest.raises(WireError, match="bytes"):
        decode(frame[: data.draw(st.integers(0, len(frame) - 1))])
    with pytest.raises(WireError, match="bytes"):
        decode(frame + data.draw(st.binary(min_size=1, max_size=8)))


def test_a_header_that_claims_gigabytes_is_refused_before_anything_is_allocated() -> None:
    tracemalloc.start()
    with pytest.raises(WireError, match=r"65535 by 65535 numbers has 17179344916 bytes, but 16 came"):
        decode(sealed(fields(rows=65535, columns=65535)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (fields(magic=b"PK"), "not a splitveil frame"),
        (fields(version=2), "version 2 with coding 0"),
        (fields(coding=4), "version 1 with coding 4"),
    ],
)
def test_a_foreign_header_is_named(header: bytes, sentence: str) -> None:
    with pytest.raises(WireError, match=sentence):
        decode(sealed(header))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_pass_neither_way(bad: float) -> None:
    values = np.array([[1.0, bad]], dtype=np.float32)
    with pytest.raises(WireError, match="not finite"):
        encode(Frame(NAME, values))
    with pytest.raises(WireError, match="not finite"):
        decode(sealed(fields(rows=1, columns=2), values.tobytes()))


def test_a_number_beyond_float32_is_refused() -> None:
    with pytest.raises(WireError, match="not finite"):
        encode(Frame(NAME, np.array([[1e39]])))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "frame",
    [
        Frame(b"abc", np.zeros((1, 1), np.float32)),
        Frame(b"abcde", np.zeros((1, 1), np.float32)),
        Frame(NAME, np.zeros(3, np.float32)),
        Frame(NAME, np.zeros((1, 1, 1), np.float32)),
        Frame(NAME, np.zeros((65536, 0), np.float32)),
        Frame(NAME, np.zeros((0, 65536), np.float32)),
    ],
)
def test_what_fits_no_frame_is_refused(frame: Frame) -> None:
    with pytest.raises(WireError, match=r"identity has 4 bytes|at most 65535 by 65535"):
        encode(frame)


def test_the_largest_counts_fit_their_fields() -> None:
    values = np.arange(65535, dtype=np.float32)
    np.testing.assert_array_equal(decode(encode(Frame(NAME, values[:, None]))).values, values[:, None])
    np.testing.assert_array_equal(decode(encode(Frame(NAME, values[None]))).values, values[None])


VECTOR = Message((4,), fixed_length=False)
MAPS = Message((3, 2, 2), "pre-activation", fixed_length=False)


@pytest.mark.parametrize("facts", [VECTOR, MAPS])
def test_what_was_not_sent_reads_as_zero(facts: Message) -> None:
    message = np.arange(1, 1 + np.prod(facts.shape), dtype=np.float32).reshape(facts.shape)
    counts = list(range(facts.shape[0] + 1))  # 0 components included
    read, kept = unpack([pack(message, count, NAME) for count in counts], facts, NAME)
    assert kept.tolist() == counts
    assert read.shape == (len(counts), *facts.shape)
    for row, count in zip(read, counts, strict=True):
        np.testing.assert_array_equal(row[:count], message[:count])
        assert not row[count:].any()


def test_no_frames_are_no_messages() -> None:
    read, kept = unpack([], MAPS, NAME)
    assert read.shape == (0, 3, 2, 2)
    assert kept.shape == (0,)


@pytest.mark.parametrize("kept", [-1, 5])
def test_components_that_are_not_there_cannot_be_sent(kept: int) -> None:
    with pytest.raises(WireError, match="of a message that has 4"):
        pack(np.zeros(4, np.float32), kept, NAME)


def test_a_frame_of_another_identity_is_refused() -> None:
    good = pack(np.zeros(4, np.float32), 4, NAME)
    other = pack(np.zeros(4, np.float32), 4, b"\xff\x00\x00\x01")
    with pytest.raises(WireError, match="ff000001 cannot be answered by 01020304"):
        unpack([good, other], VECTOR, NAME)


@pytest.mark.parametrize("shape", [(5, 1), (4, 2), (2, 0), (0, 2), (0, 0), (0, 65535)])
def test_a_frame_of_another_shape_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(WireError, match="does not fit"):
        unpack([encode(Frame(NAME, np.zeros(shape, np.float32)))], VECTOR, NAME)


@pytest.mark.parametrize("kept", [0, 3])
def test_a_message_of_fixed_length_comes_whole(kept: int) -> None:
    with pytest.raises(WireError, match=f"4 components, but one has {kept}"):
        unpack([pack(np.ones(4, np.float32), kept, NAME)], Message((4,)), NAME)


# --- finite messages


LEVELS = (3, 40, 5)  # 600 messages, two bytes


@given(st.lists(st.integers(1, 2**16 - 1), min_size=1, max_size=40).map(tuple), st.integers(0, 2**32 - 1))
def test_finite_messages_survive_the_wire_in_frames_of_one_length(levels: tuple[int, ...], seed: int) -> None:
    digits = np.random.default_rng(seed).integers(0, levels, (3, len(levels)))
    digits[0] = 0
    frames = pack_digits(digits, levels, NAME)
    assert {len(frame) for frame in frames} == {HEADER_BYTES + index_bytes(levels)}
    back = unpack_digits(frames, levels, NAME)
    assert back.dtype == np.int64
    np.testing.assert_array_equal(back, digits)


def test_nothing_in_a_finite_message_s_frame_varies_but_the_index() -> None:
    every = np.stack(np.unravel_index(np.arange(600), LEVELS), axis=1)
    frames = pack_digits(every, LEVELS, NAME)
    assert len(set(frames)) == 600
    assert len({frame[:12] for frame in frames}) == 1  # the checksum after it follows from all the rest
    assert [int.from_bytes(frame[HEADER_BYTES:], "little") for frame in frames] == list(range(600))


def test_an_index_beyond_the_levels_is_refused() -> None:
    for index in (600, 601, 2**16 - 1):
        with pytest.raises(WireError, match="beyond the number of messages"):
            unpack_digits([index_frame(index)], LEVELS, NAME)
    assert unpack_digits([index_frame(599)], LEVELS, NAME).tolist() == [[2, 39, 4]]


@pytest.mark.parametrize("size", [1, 3, 8])
def test_an_index_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(WireError, match=f"an index of 2 bytes, but a frame with {size} values coded as index came"):
        unpack_digits([index_frame(0), index_frame(1, size)], LEVELS, NAME)


def test_coefficients_are_not_read_where_an_index_is_expected() -> None:
    for values, coding in ((np.zeros((1, 2), np.int8), "int8"), (np.zeros((3, 1), np.float32), "float32")):
        with pytest.raises(WireError, match=f"coded as {coding} came"):
            unpack_digits([encode(Frame(NAME, values, coding))], LEVELS, NAME)  # type: ignore[arg-type]


def test_a_finite_message_of_another_identity_is_refused() -> None:
    with pytest.raises(WireError, match="01020304 cannot be answered by 01020305"):
        unpack_digits([index_frame(0)], LEVELS, b"\x01\x02\x03\x05")


@given(st.binary(min_size=2, max_size=2) | st.binary(max_size=4))
def test_any_index_is_a_message_below_the_levels_or_refused(payload: bytes) -> None:
    frame = sealed(fields(coding=3, rows=1, columns=len(payload)), payload)
    with contextlib.suppress(WireError):
        digits = unpack_digits([frame], LEVELS, NAME)
        assert pack_digits(digits, LEVELS, NAME) == [frame]


def index_frame(index: int, size: int = 2) -> bytes:
    return encode(Frame(NAME, np.frombuffer(index.to_bytes(size, "little"), np.uint8)[None], "index"))
