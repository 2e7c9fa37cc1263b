"""What may be told of each subject: a ledger on the device, debited durably before anything is sent; free of torch."""

import hmac
import operator
import os
import sqlite3
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from splitveil.certificate import Certificate, finite, in_bits
from splitveil.errors import BudgetError, BudgetSpentError
from splitveil.files import is_there
from splitveil.forking import undivided
from splitveil.ledger import (
    DAMAGED,
    Ledger,
    LedgerError,
    create,
    draft_for,
    is_mounted,
    put_in_place,
    remove_drafts,
    wait_until_begun,
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


@dataclass(frozen=True)
class Limits:
    """What may be told of each subject.

    Attributes:
        bits: in all, or within the window.
        window: seconds after which a debit does not count any more; None where it counts forever.

    Raises:
        BudgetError: one of them is no finite number above 0.
    """

    bits: float
    window: float | None = None

    def __post_init__(self) -> None:
        for name, what in (("bits", "limit is a number of bits"), ("window", "window a number of seconds")):
            given = getattr(self, name)
            if given is None and name == "window":
                continue
            value = finite(given)
            if value is None or value <= 0:
                raise BudgetError(f"a budget's {what} above 0, not {_shown(given)}; give such a number")
            object.__setattr__(self, name, value)  # a float, which the file and every program read back as it is

    def __str__(self) -> str:
        return in_bits(self.bits) + (" in all" if self.window is None else f" in {self.window:.6g} s")


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
        BudgetError: the file is missing, empty, damaged, something else, held by another program, cannot be written,
            has another limit or a second name (a hard link), or is mounted alone; or limits are no numbers above 0.
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
        if is_there(self.path):
            wait_until_begun(self.path)
        if is_mounted(os.path.realpath(self.path)):
            raise BudgetError(
                f"the budget {self.path} is mounted as a single file, so its journal would lie elsewhere, and a crash "
                "would damage it; mount its folder"
            )
        with self._ledger("IMMEDIATE" if wanted else "DEFERRED") as ledger:
            ledger.check()
            found = Limits(ledger.bits, ledger.window)
            if wanted is not None and wanted != found:
                if not change:
                    raise BudgetError(
                        f"the budget {self.path} allows {found}, not {wanted}; open it without a limit to keep that, "
                        "or change it on purpose with 'splitveil budget FILE --bits' (in Python change=True)"
                    )
                ledger.set_limits(wanted.bits, wanted.window)

    @property
    def limits(self) -> Limits:
        """As they stand in the file; raises `BudgetError` where it cannot be read."""
        with self._ledger() as ledger:
            return Limits(ledger.bits, ledger.window)

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
        with self._ledger("IMMEDIATE") as ledger:
            name, now = _hashed(subject, ledger.salt), self._now(ledger)
            left = self._allowed(ledger, name, cost, now)
            ledger.add((name, now, operator.index(queries), cost))
        return left

    def check(self, subject: str, *, distinct: int, queries: int = 1) -> None:
        """See that so much is left now, and debit nothing; arguments and errors as of `debit`."""
        cost = Certificate(distinct).leakage_bits(queries)
        with self._ledger() as ledger:
            self._allowed(ledger, _hashed(subject, ledger.salt), cost, self._now(ledger))

    def spent(self, subject: str) -> float:
        """Bits that are debited for a subject; within the window, where there is one; raises `BudgetError`."""
        with self._ledger() as ledger:
            return ledger.spent(_hashed(subject, ledger.salt), self._now(ledger))

    def left(self, subject: str) -> float:
        """Bits that may still be told of a subject; raises `BudgetError`."""
        with self._ledger() as ledger:
            return max(ledger.bits - ledger.spent(_hashed(subject, ledger.salt), self._now(ledger)), 0.0)

    @contextmanager
    def _ledger(self, kind: str = "DEFERRED") -> Iterator[Ledger]:
        """The ledger within a transaction, which is committed at the end; raises `BudgetError`."""
        with self._transaction(self.path, kind) as database:
            self._check_names()
            yield Ledger(database)

    def _check_names(self) -> None:
        """Raises `BudgetError` where the file has a second name: its journal lies beside only one of them."""
        real = Path(
            os.path.realpath(self.path)
        )  # a symbolic link is no second name: SQLite, too, keeps the journal beside the file
        if real.stat().st_nlink > 1:
            remove_drafts(real)
        if real.stat().st_nlink > 1:
            raise BudgetError(
                f"the budget {self.path} has a second name (a hard link), under which a crash would damage it; remove "
                "the other name, or make it a symbolic link"
            )

    @contextmanager
    def _transaction(self, path: Path, kind: str) -> Iterator[sqlite3.Connection]:
        """A connection of its own, as none may be shared by threads or survive a fork; committed at the end."""
        try:
            place = f"{path.absolute().as_uri()}?mode=rw"
            with (
                undivided(),
                closing(sqlite3.connect(place, uri=True, timeout=_WAIT, isolation_level=None)) as database,
            ):
                # FULL, and the folder too is on disk before a commit returns: else a power cut may undo it.
                database.execute("PRAGMA synchronous = EXTRA")
                database.execute(f"BEGIN {kind}")
                yield database
                database.execute("COMMIT")  # else, closing rolls back
        except sqlite3.Error as error:
            trouble = _TROUBLE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, DAMAGED)
            raise BudgetError(f"the budget {self.path} {trouble} ({str(error)[:200]!a})") from error
        except LedgerError as error:
            raise BudgetError(f"the budget {self.path} {error}") from error
        except (UnicodeDecodeError, MemoryError) as error:  # of what SQLite says or finds in a damaged file
            raise BudgetError(f"the budget {self.path} {DAMAGED}") from error
        except OSError as error:
            raise BudgetError(f"the budget {self.path} cannot be used ({error}); name another file") from error

    def _begin(self, limits: Limits) -> bool:
        """Make the file, whole, under another name, then give it its own: an empty ledger has lost what it held.

        Returns:
            Whether it was this call that made it; another process may have been faster.

        Raises:
            BudgetError: it cannot be made there.
        """
        draft: Path | None = None
        try:
            draft = draft_for(self.path)
            with self._transaction(draft, "IMMEDIATE") as database:
                create(database, limits.bits, limits.window)
            put_in_place(draft, self.path)
        except FileExistsError:
            return False
        except OSError as error:
            raise BudgetError(
                f"the budget {self.path} cannot be begun ({error.strerror}); name a file in a folder that you may write"
            ) from error
        finally:
            if draft:
                draft.unlink(missing_ok=True)
        return True

    def _now(self, ledger: Ledger) -> float:
        return max(self._time(), ledger.latest)

    def _time(self) -> float:
        given = self._clock()
        now = finite(given)
        if now is None:
            raise BudgetError(f"the budget's clock gives {_shown(given)}, which is no time in seconds; mend it")
        return now

    def _allowed(self, ledger: Ledger, name: bytes, cost: float, now: float) -> float:
        """The bits that are left after this cost; raises `BudgetSpentError` where they are not enough."""
        left = ledger.bits - ledger.spent(name, now)
        if cost > left + _ROUNDING:
            raise BudgetSpentError(self._refusal(cost, max(left, 0.0), Limits(ledger.bits, ledger.window), now))
        return max(left - cost, 0.0)

    def _refusal(self, cost: float, left: float, limits: Limits, now: float) -> str:
        behind = now - self._time()
        if limits.window is None:
            advice = "ask nothing more of this subject, or allow more with 'splitveil budget FILE --bits'"
        elif behind > 1:
            advice = f"the clock stands {behind:.0f} s before the last debit and nothing expires until then, so set it"
        else:
            advice = "wait until earlier queries leave the window"
        return (
            f"this would tell up to {cost:.4g} {'bit' if f'{cost:.4g}' == '1' else 'bits'} of a subject of whom "
            f"{left:.4g} of {limits} are left, and was not sent; {advice}"
        )


def _shown(value: object) -> str:
    try:
        return repr(value)[:60]
    except ValueError:  # Python refuses to print integers of thousands of digits
        return "a number of thousands of digits"


def _hashed(subject: str, salt: bytes) -> bytes:
    """The name as it stands in the file; equal for all ways to write the same characters.

    Raises:
        BudgetError: it is empty, or no text.
    """
    if not isinstance(subject, str) or not subject:
        raise BudgetError(f"a subject is a text that is not empty, such as '3', not {subject!r}; give one")
    name = unicodedata.normalize("NFC", subject).encode("utf-8", "surrogatepass")
    return hmac.digest(salt, name, "sha256")
