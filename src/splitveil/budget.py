"""What may be told of each subject: a ledger on the device, debited durably before anything is sent; free of torch."""

import hmac
import math
import os
import secrets
import sqlite3
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from splitveil.certificate import Certificate
from splitveil.errors import BudgetError, BudgetSpentError
from splitveil.files import is_there

_KIND = 0x53564244  # "SVBD", what the file says it is
_VERSION = 1
_TABLES = (
    "CREATE TABLE settings (limit_bits REAL NOT NULL, window REAL, salt BLOB NOT NULL)",
    "CREATE TABLE debits (subject BLOB NOT NULL, moment REAL NOT NULL, queries INTEGER NOT NULL, bits REAL NOT NULL)",
    "CREATE INDEX debits_by_subject ON debits (subject)",
    "CREATE INDEX debits_by_moment ON debits (moment)",
)
_WAIT = 30.0  # seconds for other processes that hold the file; a debit takes milliseconds
_ROUNDING = 1e-9  # bits by which a sum of logarithms may be off, so that a limit can be spent to the end
# What SQLite says, by its primary code, and what to do about it.
_TROUBLE = {
    sqlite3.SQLITE_BUSY: "is held by another program; close that, or try again",
    sqlite3.SQLITE_READONLY: "cannot be written; give yourself the right to",
    sqlite3.SQLITE_FULL: "does not fit on the disk; free space",
    sqlite3.SQLITE_IOERR: "cannot be read or written; see that its disk is there and has space",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened; name a file in a folder that you may write",
    sqlite3.SQLITE_PERM: "cannot be opened; give yourself the right to",
}
_DAMAGED = "is damaged or no budget; name another file (a new one, or an older copy, forgets what was spent since)"


@dataclass(frozen=True)
class Limits:
    """What may be told of each subject.

    Attributes:
        bits: in all, or within the window.
        window: seconds after which a debit does not count any more; None where it counts forever.

    Raises:
        BudgetError: one of them is no number above 0.
    """

    bits: float
    window: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.bits < math.inf or not (self.window is None or 0 < self.window < math.inf):
            raise BudgetError("a budget's limit is a number of bits above 0, and its window of seconds above 0")

    def __str__(self) -> str:
        return f"{self.bits:.6g} bits" + (" in all" if self.window is None else f" in {self.window:.6g} s")


class Budget:
    """How many bits the messages of each subject may tell, kept in a file: every bundle, program and restart counts.

    q messages of a bundle that has M different ones cost q log2 M bits (`Certificate.leakage_bits`). A query is
    debited before it is sent, on disk, in one transaction with the check of what is left: neither a crash nor other
    processes can send more than the limit. What was debited stays so, even if no answer came. May be used by several
    threads and processes at once. What it does not protect from stands in docs/certificate.md.

    Args:
        path: the file, an SQLite database.
        limit_bits: of each subject; may be left out for a file that has its limit.
        window: seconds after which a debit does not count any more. Forever where not given, which is the only choice
            that bounds what a patient adversary learns: to who waits, each window gives the whole limit again.
        change: whether a file with another limit or window is changed to these; otherwise that is an error.
        clock: seconds since 1970. Where it goes back, the ledger's time stands still, and nothing expires too early.

    Attributes:
        path: the file.
        begun: whether this call began it, so that nothing of before counts.

    Raises:
        BudgetError: the file is missing, empty, damaged, something else, held by another program, cannot be written, or
            has another limit; or the limits are no numbers above 0.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        limit_bits: float | None = None,
        window: float | None = None,
        change: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path, self._clock = Path(path), clock
        wanted = None if limit_bits is None else Limits(limit_bits, window)
        if wanted is None and (window is not None or change):
            raise BudgetError("a window or a change of limits goes with a limit in bits; give that, too")
        if wanted is None and not is_there(self.path):
            raise BudgetError(
                f"there is no budget {self.path}; give a limit in bits to begin one "
                "(limit_bits, --bits, or --budget-bits)"
            )
        self.begun = wanted is not None and not is_there(self.path) and self._begin(wanted)
        if is_there(self.path) and not self.path.is_file():
            raise BudgetError(f"the budget {self.path} cannot be opened, as it is no file; name one")
        with self._transaction("IMMEDIATE" if wanted else "DEFERRED") as ledger:
            if ledger.execute("PRAGMA quick_check").fetchone() != ("ok",):
                raise BudgetError(f"the budget {self.path} {_DAMAGED}")
            found, _ = self._settings(ledger)
            if wanted not in (None, found):
                if not change:
                    raise BudgetError(
                        f"the budget {self.path} allows {found}, not {wanted}; open it without a limit to keep that, "
                        "or change it on purpose with 'splitveil budget FILE --bits' (in Python change=True)"
                    )
                ledger.execute("UPDATE settings SET limit_bits = ?, window = ?", (limit_bits, window))

    @property
    def limits(self) -> Limits:
        """As they stand in the file; raises `BudgetError` where it cannot be read."""
        with self._transaction() as ledger:
            return self._settings(ledger)[0]

    def debit(self, subject: str, *, distinct: int, queries: int = 1) -> float:
        """Record that messages of a subject are about to be sent; once this returns, they may be.

        Args:
            subject: whose messages they are; in the file stands a keyed hash of the name.
            distinct: M, how many different messages the bundle has, not how many are sent.
            queries: q, how many are sent.

        Returns:
            The bits that are left.

        Raises:
            BudgetSpentError: they would exceed the limit; nothing was debited, and nothing may be sent.
            BudgetError: the file cannot be written or read; nothing may be sent.
            CertificateError: these are no numbers of messages.
        """
        cost = Certificate(distinct).leakage_bits(queries)
        with self._transaction("IMMEDIATE") as ledger:
            limits, salt = self._settings(ledger)
            name, now = _hashed(subject, salt), self._now(ledger)
            left = self._allowed(ledger, name, cost, limits, now)
            if limits.window is not None:
                ledger.execute("DELETE FROM debits WHERE moment <= ?", (now - limits.window,))
            ledger.execute("INSERT INTO debits VALUES (?, ?, ?, ?)", (name, now, queries, cost))
        return left

    def check(self, subject: str, *, distinct: int, queries: int = 1) -> None:
        """See that so much is left now, and debit nothing; arguments and errors as of `debit`."""
        cost = Certificate(distinct).leakage_bits(queries)
        with self._transaction() as ledger:
            limits, salt = self._settings(ledger)
            self._allowed(ledger, _hashed(subject, salt), cost, limits, self._now(ledger))

    def spent(self, subject: str) -> float:
        """Bits that are debited for a subject; within the window, where there is one; raises `BudgetError`."""
        with self._transaction() as ledger:
            limits, salt = self._settings(ledger)
            return _spent(ledger, _hashed(subject, salt), limits, self._now(ledger))

    def left(self, subject: str) -> float:
        """Bits that may still be told of a subject; raises `BudgetError`."""
        with self._transaction() as ledger:
            limits, salt = self._settings(ledger)
            return max(limits.bits - _spent(ledger, _hashed(subject, salt), limits, self._now(ledger)), 0.0)

    @contextmanager
    def _transaction(self, kind: str = "DEFERRED", path: Path | None = None) -> Iterator[sqlite3.Connection]:
        """A connection of its own, as none may be shared by threads or survive a fork; committed at the end."""
        try:
            place = f"{(path or self.path).absolute().as_uri()}?mode=rw"
            with closing(sqlite3.connect(place, uri=True, timeout=_WAIT, isolation_level=None)) as ledger:
                # FULL, and the folder too is on disk before a commit returns: else a power cut may undo it.
                ledger.execute("PRAGMA synchronous = EXTRA")
                ledger.execute(f"BEGIN {kind}")
                yield ledger
                ledger.execute("COMMIT")  # else, closing rolls back
        except sqlite3.Error as error:
            trouble = _TROUBLE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, _DAMAGED)
            raise BudgetError(f"the budget {self.path} {trouble} ({error})") from error
        except OSError as error:
            raise BudgetError(f"the budget {self.path} cannot be used ({error}); name another file") from error

    def _begin(self, limits: Limits) -> bool:
        """Make the file, whole, under another name, then give it its own: an empty ledger has lost what it held.

        Returns:
            Whether it was this call that made it; another process may have been faster.

        Raises:
            BudgetError: it cannot be made there.
        """
        draft = ""
        try:
            handle, draft = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")  # for the owner alone
            os.close(handle)
            with self._transaction("IMMEDIATE", Path(draft)) as ledger:
                ledger.execute(f"PRAGMA application_id = {_KIND}")
                ledger.execute(f"PRAGMA user_version = {_VERSION}")
                for table in _TABLES:
                    ledger.execute(table)
                values = (limits.bits, limits.window, secrets.token_bytes(32))
                ledger.execute("INSERT INTO settings VALUES (?, ?, ?)", values)
            os.link(draft, self.path)  # unlike a renaming, it replaces nothing
        except FileExistsError:
            return False
        except OSError as error:
            raise BudgetError(
                f"the budget {self.path} cannot be begun ({error.strerror}); name a file in a folder that you may write"
            ) from error
        finally:
            if draft:
                Path(draft).unlink(missing_ok=True)
        return True

    def _settings(self, ledger: sqlite3.Connection) -> tuple[Limits, bytes]:
        """The limits and the key of the hashes; raises `BudgetError` where this is no budget."""
        if _number(ledger, "application_id") != _KIND:
            raise BudgetError(f"the file {self.path} {_DAMAGED}")
        if _number(ledger, "user_version") != _VERSION:
            raise BudgetError(f"the budget {self.path} is of another version of splitveil; use the one that began it")
        row = ledger.execute("SELECT limit_bits, window, salt FROM settings").fetchone()
        if row is None:
            raise BudgetError(f"the budget {self.path} {_DAMAGED}")
        return Limits(*row[:2]), row[2]

    def _now(self, ledger: sqlite3.Connection) -> float:
        (latest,) = ledger.execute("SELECT max(moment) FROM debits").fetchone()
        return max(self._clock(), -math.inf if latest is None else latest)

    def _allowed(self, ledger: sqlite3.Connection, name: bytes, cost: float, limits: Limits, now: float) -> float:
        """The bits that are left after this cost; raises `BudgetSpentError` where they are not enough."""
        left = limits.bits - _spent(ledger, name, limits, now)
        if cost > left + _ROUNDING:
            raise BudgetSpentError(self._refusal(cost, max(left, 0.0), limits, now))
        return max(left - cost, 0.0)

    def _refusal(self, cost: float, left: float, limits: Limits, now: float) -> str:
        behind = now - self._clock()
        if limits.window is None:
            advice = "ask nothing more of this subject, or allow more with 'splitveil budget FILE --bits'"
        elif behind > 1:
            advice = f"the clock stands {behind:.0f} s before the last debit and nothing expires until then, so set it"
        else:
            advice = "wait until earlier queries leave the window"
        return (
            f"this would tell up to {cost:.4g} bits of a subject of whom {left:.4g} of {limits} are left, and was not "
            f"sent; {advice}"
        )


def _number(ledger: sqlite3.Connection, name: str) -> int:
    (value,) = ledger.execute(f"PRAGMA {name}").fetchone()
    return int(value)


def _hashed(subject: str, salt: bytes) -> bytes:
    """The name as it stands in the file; equal for all ways to write the same characters.

    Raises:
        BudgetError: it is empty, or no text.
    """
    if not isinstance(subject, str) or not subject:
        raise BudgetError(f"a subject is a text that is not empty, such as '3', not {subject!r}; give one")
    name = unicodedata.normalize("NFC", subject).encode("utf-8", "surrogatepass")
    return hmac.digest(salt, name, "sha256")


def _spent(ledger: sqlite3.Connection, name: bytes, limits: Limits, now: float) -> float:
    since = -math.inf if limits.window is None else now - limits.window
    return math.fsum(
        bits for (bits,) in ledger.execute("SELECT bits FROM debits WHERE subject = ? AND moment > ?", (name, since))
    )
