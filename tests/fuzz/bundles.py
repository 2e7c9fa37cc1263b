"""Messages of several kinds of bundles, as the product and as the second reader know them."""

import random

from splitveil.bundle import Messages

from .oracle import NAMES, Facts, Read, write_frame

IDENTITY = b"abcd"
MAX_BATCH = 4


def _pair(
    components: int, positions: tuple[int, ...], codings: tuple[str, ...], certified: bool = False,
    levels: tuple[int, ...] | None = None,
) -> tuple[Messages, Facts]:  # fmt: skip
    scales = {  # of at most eight significant bits, as they have
        coding: tuple((129 + 7 * index) % 128 / 2.0 ** (index - 3) for index in range(components))
        for coding in codings
        if coding.startswith("int")
    }
    messages = Messages(
        components=components, positions=positions, codings=codings, certified=certified, scales=scales, levels=levels,
    )  # fmt: skip
    return messages, Facts(IDENTITY, components, positions, codings, scales, certified, levels)


COEFFICIENTS = (
    _pair(4, (3,), ("float32", "int8", "int4")),
    _pair(5, (), ("int4", "float32")),
    _pair(2, (2, 2), ("int8",)),
    _pair(3, (1,), ("int4",), certified=True),
    _pair(3, (2,), ("int8",), certified=True),
)
FINITE = tuple(
    _pair(len(levels), (), ("index",), certified=True, levels=levels)
    for levels in ((5, 7, 11), (256,), (1,), (1, 2, 1), (257,), (2,) * 65, (65_535,) * 5, (16, 16, 16, 16))
)


def valid_frame(facts: Facts, rng: random.Random) -> bytes:
    """A frame that the bundle takes."""
    if facts.levels is not None:
        most = 1
        for level in facts.levels:
            most *= level
        size = max(1, ((most - 1).bit_length() + 7) // 8)
        index = rng.choice((0, most - 1, most // 2, rng.randrange(most)))
        return write_frame(Read(3, facts.identity, 1, size, list(index.to_bytes(size, "little"))))
    coding = NAMES.index(rng.choice(facts.codings))
    components = facts.components if facts.certified else rng.randint(1, facts.components)
    largest = (0, 127, 7)[coding]
    count = components * facts.places
    numbers = [rng.uniform(-9, 9) if coding == 0 else rng.randint(-largest, largest) for _ in range(count)]
    return write_frame(Read(coding, facts.identity, components, facts.places, numbers))
