"""Pieces of a run in processes of their own: one that dies or hangs is a find, too."""

import contextlib
import multiprocessing
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from .mix import target
from .target import BLOCK, Target, generator

SETTLE_EVERY = 500  # cases, after which a target looks at what can only be seen of many
HANGING = 60.0  # seconds without a case done; the dearest takes some tenths
BEGINNING = 180.0  # seconds until the first case: imports, and servers that start on a busy machine


class Piece(NamedTuple):
    """Cases ``first`` to ``first + count - 1`` of a target."""

    name: str
    seed: int
    first: int
    count: int


class Find(NamedTuple):
    """A case that was not as it must be."""

    name: str
    seed: int
    number: int
    data: bytes
    text: str


def run(kind: Target, piece: Piece, seen: Any) -> list[Find]:
    """Check the cases of a piece."""
    finds: list[Find] = []
    start = piece.first // BLOCK * BLOCK
    data = b""
    for number in range(start, piece.first + piece.count):
        if number % BLOCK == 0:
            rng = generator(piece.seed, number)
        data = kind.case(rng)
        if number < piece.first:
            continue
        seen.value = number
        try:
            kind.check(data)
            if number % SETTLE_EVERY == SETTLE_EVERY - 1:
                kind.settle()
        except Exception:
            finds.append(Find(piece.name, piece.seed, number, data, traceback.format_exc()))
            if len(finds) == 10:
                return finds
    try:
        kind.settle()
    except Exception:
        finds.append(Find(piece.name, piece.seed, number, data, traceback.format_exc()))
    return finds


def _serve(pipe: Connection, seen: Any) -> None:
    """What a process does: pieces that it is given, until there are none."""
    with contextlib.ExitStack() as opened, contextlib.suppress(EOFError, KeyboardInterrupt):
        kinds: dict[str, Target] = {}
        while True:
            piece = pipe.recv()
            begin = time.monotonic()
            try:
                if piece.name not in kinds:
                    kinds[piece.name] = opened.enter_context(target(piece.name))
                finds = run(kinds[piece.name], piece, seen)
            except Exception:  # the target does not even begin
                finds = [Find(piece.name, piece.seed, piece.first, b"", traceback.format_exc())]
            pipe.send((finds, time.monotonic() - begin))


class Worker:
    """One process.

    Attributes:
        piece: what it works on; None: nothing.
        pipe: from which its results come.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, inner = context.Pipe()
        self._seen = context.Value("q", -1, lock=False)
        self._process = context.Process(target=_serve, args=(inner, self._seen))
        self._process.start()
        inner.close()
        self.piece: Piece | None = None
        self._last, self._since = -1, time.monotonic()

    def give(self, piece: Piece) -> None:
        """Let it work on a piece."""
        self.piece, self._last, self._since = piece, -1, time.monotonic()
        self._seen.value = -1
        self.pipe.send(piece)

    def take(self) -> tuple[list[Find], float]:
        """Its result; of a process that died a find."""
        assert self.piece is not None
        try:
            found: tuple[list[Find], float] = self.pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            found = [self._find(f"the process ended with {self._process.exitcode}")], time.monotonic() - self._since
        self.piece = None
        return found

    def end_if_hanging(self, seconds: float) -> None:
        """Kill it where no case was done for so long; `take` then gives the find."""
        if self._seen.value != self._last:
            self._last, self._since = self._seen.value, time.monotonic()
        elif self.piece and time.monotonic() - self._since > (seconds if self._last >= 0 else BEGINNING):
            self._process.kill()

    @property
    def alive(self) -> bool:
        """Whether it can be given a piece."""
        return self._process.is_alive()

    def stop(self) -> None:
        """End it."""
        self.pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()

    def _find(self, text: str) -> Find:
        assert self.piece is not None
        piece, number = self.piece, max(self._seen.value, self.piece.first)
        kind, rng, data = target(piece.name), generator(piece.seed, number), b""
        for _ in range(number % BLOCK + 1):
            data = kind.case(rng)
        return Find(piece.name, piece.seed, number, data, text)
