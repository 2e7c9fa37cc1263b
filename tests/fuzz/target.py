"""What a target is, and changes that serve several of them."""

import abc
import json
import random
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, ClassVar, Self

BLOCK = 100  # cases drawn from one generator: making one takes as long as making a case
BYTES = (0, 1, 2, 7, 8, 15, 16, 32, 64, 127, 128, 129, 136, 240, 254, 255)
INTEGERS = (0, 1, -1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32, 2**53 + 1,
            2**63 - 1, 2**63, 2**64, 10**30, -(2**31), -(2**63) - 1)  # fmt: skip


class Target(abc.ABC):
    """Something that reads bytes. A context, where it needs servers or folders."""

    most_changes: ClassVar[int] = 3

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End what `__enter__` began."""
        return

    @abc.abstractmethod
    def seeds(self) -> Sequence[bytes]:
        """Valid cases to start from."""

    @abc.abstractmethod
    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        """One change of a case."""

    @abc.abstractmethod
    def check(self, data: bytes) -> None:
        """Raises `AssertionError`, or whatever the product should not raise, where it does what it must not."""

    def settle(self) -> None:
        """Called after some hundreds of cases: checks what can only be seen of many."""
        return

    def case(self, rng: random.Random) -> bytes:
        """A case: one in twenty is a valid one."""
        if not hasattr(self, "_seeds"):
            self._seeds = list(self.seeds())
        data = rng.choice(self._seeds)
        if rng.random() < 0.95:
            for _ in range(rng.randint(1, self.most_changes)):
                data = self.mutate(data, rng)
        return data


def generator(seed: int, number: int) -> random.Random:
    """Of the block that a case lies in."""
    return random.Random(f"{seed}/{number // BLOCK}")


def change_bytes(data: bytes, rng: random.Random, most: int = 65_536) -> bytes:
    """One change without regard to any structure."""
    found = bytearray(data)
    place = rng.randrange(len(found) + 1)
    length = min(rng.choice((1, 1, 2, 4, 16, 100)), len(found) - place)
    match rng.randrange(7):
        case 0 if place < len(found):
            found[place] ^= 1 << rng.randrange(8)
        case 1 if place < len(found):
            found[place] = rng.choice(BYTES)
        case 2:
            del found[place : place + length]
        case 3:
            found[place:place] = rng.randbytes(rng.choice((1, 2, 4, 16)))
        case 4:
            found[place:place] = found[place : place + length] * rng.choice((1, 2, 30))
        case 5:
            del found[place:]
        case _:
            found[place : place + length] = rng.randbytes(length)
    return bytes(found[:most])


WORDS = (
    "", "frame", "coefficients", "logits", "UINT8", "FP32", "BYTES", "int8", "int4", "index", "float32", "data",
    "shape", "parameters", "binary_data_size", "shared_memory_region", "edge", "server", "\0", "\x7f", "é",
    "\U0001f600", "a" * 101, "../x", "1", "NaN", "null",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, *INTEGERS, 0.0, -0.0, 0.5, 1.0, 1e39, 1e308, 5e-324, *WORDS, [], {}, [[]], [0], [0.5, True],
    {"a": 1},
)  # fmt: skip
TEXTS = (
    b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-0", b"01", b"1.", b'"\\ud800"', b'"\\u0000"', b"[" * 150,
    b"[" * 300, b"1" * 5000, b"\xef\xbb\xbf", b"\xff", b"\xed\xa0\x80", b"\x00", b" ", b"\n", b"//", b",", b"'",
    b"true", b"{}", b"[]",
)  # fmt: skip


def change_json(text: bytes, rng: random.Random, words: Sequence[str] = WORDS) -> bytes:
    """One change of a JSON text: of a value, a key, an entry, or of how it is written."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return change_bytes(text, rng)
    if rng.random() < 0.15:
        return _rewritten(text, rng)
    places = list(_places(tree))
    if not places:
        return json.dumps(rng.choice(VALUES)).encode()
    holder, key = rng.choice(places)
    match rng.randrange(8):
        case 0 | 1:
            holder[key] = rng.choice(words) if rng.random() < 0.3 else deepcopy(rng.choice(VALUES))
        case 2 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] = holder[key] + rng.choice((-1, 1, 0.5, holder[key]))
        case 3:
            del holder[key]
        case 4 if isinstance(holder, list):
            holder.insert(key, deepcopy(holder[key]))
        case 4 | 5 if isinstance(holder, dict):
            holder[rng.choice(words)] = holder.pop(key)
        case 6:
            other, place = rng.choice(places)
            holder[key] = deepcopy(other[place])
        case _:
            holder[key] = rng.choice(([holder[key]], {"a": holder[key]}, str(holder[key])[:50]))
    text_ = json.dumps(tree, ensure_ascii=rng.random() < 0.9, indent=rng.choice((None, None, None, 1)))
    return text_.encode(errors="surrogatepass")


def _rewritten(text: bytes, rng: random.Random) -> bytes:
    """The same tree, or no tree any more."""
    pieces = text.split(b",")
    place = rng.randrange(len(pieces))
    match rng.randrange(4):
        case 0:
            pieces[place:place] = [rng.choice(pieces)]  # a key stands twice
        case 1:
            head, colon, _ = pieces[place].rpartition(b":")
            pieces[place] = head + colon + rng.choice(TEXTS)
        case 2:
            pieces[place] += rng.choice(TEXTS)
        case _:
            return change_bytes(text, rng)
    return b",".join(pieces)


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every value but the root, as what holds it and its key there."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        holder = waiting.pop()
        if isinstance(holder, dict | list):
            for key in holder if isinstance(holder, dict) else range(len(holder)):
                found.append((holder, key))
                waiting.append(holder[key])
    return found
