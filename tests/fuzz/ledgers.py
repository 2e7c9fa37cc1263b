"""Damaged ledgers: none gives more than was left, and each is read or refused in one sentence."""

import math
import random
import secrets
import shutil
import sqlite3
import tempfile
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple, Self
from unittest import mock

from splitveil.budget import Budget
from splitveil.errors import BudgetError, BudgetSpentError

from .target import Target, change_bytes

PAGE = 4096  # bytes; SQLite's own
SUBJECTS = tuple(f"subject {number}" for number in range(6))
BITS, NOW = 40.0, 1_000_000.0
ROUNDING = 1e-6  # bits
MEMORY = Path("/dev/shm")  # where there is one: a case writes a file, which a disk would take long for
EDITS = (
    "DELETE FROM debits WHERE rowid = ?1", "UPDATE debits SET bits = bits / 2 WHERE rowid = ?1",
    "UPDATE debits SET bits = -bits WHERE rowid = ?1", "UPDATE debits SET bits = 'x' WHERE rowid = ?1",
    "UPDATE debits SET bits = 9e999 WHERE rowid = ?1", "UPDATE debits SET subject = zeroblob(32) WHERE rowid = ?1",
    "UPDATE debits SET moment = moment - 1e9 WHERE rowid = ?1", "UPDATE debits SET queries = 0 WHERE rowid = ?1",
    "INSERT INTO debits SELECT subject, moment, queries, -bits FROM debits WHERE rowid = ?1",
    "UPDATE settings SET limit_bits = limit_bits + ?1", "UPDATE settings SET window = ?1",
    "UPDATE settings SET latest = 9e18 + ?1", "UPDATE settings SET salt = zeroblob(32) WHERE ?1",
    "UPDATE settings SET seal = NULL WHERE ?1", "DELETE FROM seals WHERE ?1", "DELETE FROM settings WHERE ?1",
    "INSERT INTO settings SELECT * FROM settings WHERE ?1", "UPDATE seals SET seal = x'00' WHERE bucket % 7 < ?1",
)  # fmt: skip
PRAGMAS = ("user_version = 1", "user_version = 3", "user_version = 0", "application_id = 0", "journal_mode = WAL")


class Ledger(NamedTuple):
    """A whole ledger, what it was at earlier moments, and the bits of each subject that are left."""

    whole: bytes
    older: tuple[bytes, ...]
    left: dict[str, float]


@cache
def made(number: int) -> Ledger:
    """One of two ledgers, without and with a window; always the same bytes."""
    window = (None, 500.0)[number]
    spent: dict[str, list[tuple[float, float]]] = {subject: [] for subject in SUBJECTS}
    rng, older = random.Random(number), []
    numbers = random.Random(7)
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(secrets, "token_bytes", numbers.randbytes):
        path, now = Path(folder) / "ledger", [NOW - 1000]
        budget = Budget(path, limit_bits=BITS, window=window, clock=lambda: now[0])
        for step in range(40):
            now[0] += 25
            subject, distinct, queries = rng.choice(SUBJECTS), rng.randint(2, 9), rng.randint(1, 2)
            with suppress(BudgetSpentError):
                budget.debit(subject, distinct=distinct, queries=queries)
                spent[subject].append((now[0], queries * math.log2(distinct)))
            if step in (10, 25):
                older.append(path.read_bytes())
        whole = path.read_bytes()
    left = {
        subject: BITS - math.fsum(bits for moment, bits in debits if window is None or NOW - moment < window)
        for subject, debits in spent.items()
    }
    return Ledger(whole, tuple(older), left)


class Ledgers(Target):
    """`splitveil.budget.Budget`. The first byte of a case says which ledger it was."""

    most_changes = 2

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder)

    def seeds(self) -> list[bytes]:
        return [bytes([number]) + made(number).whole for number in range(2)]

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        first, content = data[:1], data[1:]
        pages = [content[start : start + PAGE] for start in range(0, len(content), PAGE)]
        if len(pages) < 2:
            return first + change_bytes(content, rng, 2**20)
        place = rng.randrange(len(pages))
        match rng.randrange(8):
            case 0 | 1:
                found = bytearray(content)
                found[rng.randrange(len(found))] ^= rng.randrange(1, 256)
                return first + bytes(found)
            case 2:
                start, length = rng.randrange(len(content)), rng.randrange(2, 600)
                return first + content[:start] + bytes(min(length, len(content) - start)) + content[start + length :]
            case 3:
                other = rng.randrange(len(pages))
                pages[place], pages[other] = pages[other], pages[place]
            case 4:
                older = rng.choice(made(first[0] % 2).older)
                pages[place] = older[place * PAGE : (place + 1) * PAGE] or pages[place]
            case 5 | 6:
                return first + self._edited(content, rng)
            case _:
                return first + change_bytes(content, rng, 2**20)
        return first + b"".join(pages)

    def check(self, data: bytes) -> None:
        left = made(data[0] % 2 if data else 0).left
        path = self._folder / "ledger"
        for other in self._folder.iterdir():
            other.unlink()
        path.write_bytes(data[1:])
        try:
            budget = Budget(path, clock=lambda: NOW)
            assert budget.limits.bits == BITS
        except BudgetError as error:
            assert "\n" not in str(error)
            return
        for subject, bits in left.items():
            with suppress(BudgetError):
                found = budget.left(subject)
                assert found <= bits + ROUNDING, f"{found} bits are left of {subject}, not {bits}"
            granted = 0.0
            with suppress(BudgetError):  # what is spent, too
                granted = bits + 1
                budget.debit(subject, distinct=2, queries=math.ceil(bits + 1))
                raise AssertionError(f"{granted} bits were granted where {bits} were left")

    def _edited(self, content: bytes, rng: random.Random) -> bytes:
        """Changed by SQL, so that SQLite itself finds nothing wrong."""
        path = self._folder / "edited"
        path.write_bytes(content)
        with suppress(sqlite3.Error, UnicodeDecodeError), closing(sqlite3.connect(path)) as ledger:
            ledger.execute(rng.choice(EDITS), (rng.randint(1, 30),))
            if rng.random() < 0.2:
                ledger.execute(f"PRAGMA {rng.choice(PRAGMAS)}")
            ledger.commit()
        return path.read_bytes()
