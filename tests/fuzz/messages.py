"""Messages: coefficients and digits of a bundle are those that the second reader reads."""

import random
from typing import Any

from splitveil.bundle import Messages as Facts
from splitveil.bundle import from_frames, to_frames
from splitveil.errors import WireError

from . import oracle
from .bundles import COEFFICIENTS, FINITE, IDENTITY, valid_frame
from .frames import change_frame
from .target import Target


class Messages(Target):
    """`splitveil.bundle.from_frames` of coefficients. The first byte of a case names the bundle."""

    kinds = COEFFICIENTS

    def seeds(self) -> list[bytes]:
        rng = random.Random(0)
        return [bytes([i]) + valid_frame(facts, rng) for i, (_, facts) in enumerate(self.kinds) for _ in range(8)]

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        first = data[:1] if rng.random() < 0.97 else bytes([rng.randrange(len(self.kinds))])
        return first + change_frame(data[1:], rng)

    def check(self, data: bytes) -> None:
        if not data:
            return
        messages, facts = self.kinds[data[0] % len(self.kinds)]
        frame = data[1:]
        expected = oracle.read_message(frame, facts)
        try:
            found = from_frames([frame], messages, IDENTITY)
        except WireError:
            assert expected is None, "a valid message is refused"
            return
        assert expected is not None, "a message is read that nobody may write"
        assert found.shape == (1, facts.components, *facts.positions)
        assert found.ravel().tolist() == expected
        self.check_again(found, messages, frame)

    def check_again(self, found: Any, messages: Facts, frame: bytes) -> None:
        """Coefficients have several frames."""


class Finite(Messages):
    """The same of digits: there are as many frames as messages."""

    kinds = FINITE

    def check_again(self, found: Any, messages: Facts, frame: bytes) -> None:
        assert to_frames(found, messages, IDENTITY, m=messages.components, coding="index") == [frame]
