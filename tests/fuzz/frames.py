"""Frames: what is read is what the second reader reads, and is written back to the same bytes."""

import binascii
import random

from splitveil.errors import WireError
from splitveil.wire import decode, encode

from . import oracle
from .target import BYTES, Target, change_bytes

LENGTHS = (lambda k: 4 * k, lambda k: k, lambda k: (k + 1) // 2, lambda k: k)


def sealed(data: bytes) -> bytes:
    """With the right checksum, so that the checks behind it are met."""
    if len(data) < 16:
        return data
    return data[:12] + binascii.crc32(data[:12] + data[16:]).to_bytes(4, "little") + data[16:]


def change_frame(data: bytes, rng: random.Random) -> bytes:
    """One change of a field, after which payload and checksum mostly fit again."""
    if len(data) < 16:
        return change_bytes(data, rng, 300)
    found = bytearray(data)
    choice = rng.random()
    if choice < 0.15:
        found[rng.choice((0, 1, 2, 4, 7, 12, 15))] ^= 1 << rng.randrange(8)
    elif choice < 0.5:
        if choice < 0.3:
            found[3] = rng.choice((0, 1, 2, 3, 3, 4, 255))
        else:
            found[rng.choice((8, 8, 8, 9, 10, 10, 10, 11))] = rng.choice((0, 1, 2, 3, 4, 5, 9, 255))
        if rng.random() < 0.8:
            count = (found[8] + 256 * found[9]) * (found[10] + 256 * found[11])
            length = min(LENGTHS[min(found[3], 3)](count), 300)
            found[16:] = (found[16:] + rng.randbytes(length))[:length]
    elif choice < 0.9 and len(found) > 16:
        place = rng.randrange(16, len(found))
        found[place] = rng.choice(BYTES) if choice < 0.7 else rng.randrange(256)
        if choice > 0.85:  # what is not finite has its top bits set
            found[place : place + 4] = rng.choice(
                (b"\0\0\x80\x7f", b"\0\0\xc0\x7f", b"\xff\xff\x7f\xff", b"\0\0\0\x80")
            )
    else:
        found = bytearray(change_bytes(data, rng, 300))
    return sealed(bytes(found)) if rng.random() < 0.9 else bytes(found)


class Frames(Target):
    """`splitveil.wire.decode` and `encode`."""

    def seeds(self) -> list[bytes]:
        identity = b"\xde\xad\xbe\xef"
        found = [
            bytes.fromhex("53560101deadbeef03000200f20021fa01ff7f810005"),  # the examples of docs/wire-format.md
            bytes.fromhex("53560102deadbeef0300030023bf810fe197003f04"),
            bytes.fromhex("53560103deadbeef010002006ffee43f3d01"),
        ]
        for components, positions in ((0, 1), (1, 0), (1, 1), (3, 3), (2, 8), (7, 1)):
            for coding in (0, 1, 2):
                numbers = [(index * 5) % 15 - 7 for index in range(components * positions)]
                found.append(oracle.write_frame(oracle.Read(coding, identity, components, positions, numbers)))
        return found

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        return change_frame(data, rng)

    def check(self, data: bytes) -> None:
        expected = oracle.read_frame(data)
        try:
            found = decode(data)
        except WireError:
            assert expected is None, "a valid frame is refused"
            return
        assert expected is not None, "a frame is read that nobody may write"
        assert (found.identity, found.coding) == (expected.identity, oracle.NAMES[expected.coding])
        assert found.values.shape == (expected.components, expected.positions)
        assert found.values.ravel().tolist() == expected.numbers
        assert encode(found) == data, "a frame is written in another way than it was read"
