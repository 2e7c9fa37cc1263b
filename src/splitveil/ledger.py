"""The file of a budget: debits in an SQLite database, each account under a seal that finds every change."""

import errno
import hmac
import math
import os
import re
import secrets
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_KIND = 0x53564244  # "SVBD", what the file says it is
_VERSION = 2
_UNSEALED = 1  # the version before there were seals; becomes _VERSION when it is first written to
_TABLES = (
    "CREATE TABLE settings (limit_bits REAL NOT NULL, window REAL, salt BLOB NOT NULL)",
    "CREATE TABLE debits (subject BLOB NOT NULL, moment REAL NOT NULL, queries INTEGER NOT NULL, bits REAL NOT NULL)",
    "CREATE INDEX debits_by_subject ON debits (subject)",
)
_SEALS = (
    "DROP INDEX IF EXISTS debits_by_moment",
    "ALTER TABLE settings ADD COLUMN latest REAL",
    "ALTER TABLE settings ADD COLUMN seal BLOB",
    "CREATE TABLE seals (bucket INTEGER PRIMARY KEY, seal BLOB NOT NULL)",
)
_BUCKETS = 256  # accounts are sealed together by the first byte of the subject's hash
_HASH_BYTES = 32
_NO_USE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)  # no other way to write helps against these
_BEGUN_WITHIN = 1.0  # seconds; it takes microseconds
Debit = tuple[bytes, float, int, float]
"""Hash of the subject, seconds since 1970, queries, bits; a row of the table."""


DAMAGED = "is damaged or no budget; name another file (a new one, or an older copy, forgets what was spent since)"


class LedgerError(Exception):
    """Why a file cannot be read as a ledger, as the end of a sentence; `Budget` names the file."""

    def __init__(self, trouble: str = DAMAGED) -> None:
        super().__init__(trouble)


class Ledger:
    """The ledger of an open transaction.

    The table ``seals`` holds a keyed digest (HMAC-SHA-256) of all debits of each bucket of subjects, and ``settings``
    one of the settings and of all these digests. So reading one account shows whether a debit of it was changed, lost,
    put back or copied, and nothing but its own bucket is read.

    Args:
        database: within a transaction.

    Attributes:
        bits, window: the limits, as they stand in the file.
        salt: key of the hashes and seals.
        latest: the latest moment that was ever written; -inf where there is none.

    Raises:
        LedgerError: this is no ledger, or of a later version, or its settings are not what was written.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        if _number(database, "application_id") != _KIND:
            raise LedgerError
        version = _number(database, "user_version")
        if version not in (_UNSEALED, _VERSION):
            raise LedgerError("is of another version of splitveil; use the one that began it")
        self._sealed = version == _VERSION
        columns = "limit_bits, window, salt" + (", latest, seal" if self._sealed else "")
        rows = database.execute(f"SELECT {columns} FROM settings").fetchall()
        if len(rows) != 1:
            raise LedgerError
        self.bits: float
        self.window: float | None
        self.salt: bytes
        self.bits, self.window, self.salt = rows[0][:3]
        if not (_is_amount(self.bits) and (self.window is None or _is_amount(self.window))):
            raise LedgerError
        if not (isinstance(self.salt, bytes) and len(self.salt) == _HASH_BYTES):
            raise LedgerError
        self.latest, self._seals = -math.inf, dict[int, bytes]()
        if self._sealed:
            self._seals = dict(database.execute("SELECT bucket, seal FROM seals").fetchall())
            self.latest = -math.inf if rows[0][3] is None else rows[0][3]
            if self._seal() != rows[0][4]:
                raise LedgerError
        else:
            if database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'seals'").fetchone()[0]:
                raise LedgerError
            # An infinite moment, of a clock that was none, counts for ever and is no time that others can be after.
            found = database.execute("SELECT max(moment) FROM debits WHERE moment < 9e999").fetchone()[0]
            self.latest = found if isinstance(found, float) else -math.inf

    def check(self) -> None:
        """Read all of it; raises `LedgerError` where anything is not what was written."""
        if self._database.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
            raise LedgerError
        for bucket in range(_BUCKETS):
            self._debits(bucket)

    def spent(self, subject: bytes, now: float) -> float:
        """Bits that are debited for a subject's hash and count at a moment; raises `LedgerError`."""
        return math.fsum(
            debit[3]
            for debit in self._debits(subject[0])
            if debit[0] == subject and (self.window is None or not _is_expired(debit, now, self.window))
        )

    def set_limits(self, bits: float, window: float | None) -> None:
        """Write other limits; raises `LedgerError`."""
        self._upgrade()
        self.bits, self.window = bits, window
        self._write()

    def add(self, debit: Debit) -> None:
        """Write a debit, and delete all that are out of the window at its moment; raises `LedgerError`."""
        self._upgrade()
        if self.window is not None:
            self._expire(debit[1], self.window)
        bucket = debit[0][0]
        before = self._debits(bucket)
        self._database.execute("INSERT INTO debits VALUES (?, ?, ?, ?)", debit)
        self._put(bucket, [*before, debit])
        self.latest = max(self.latest, debit[1])
        self._write()

    def _expire(self, now: float, window: float) -> None:
        bounds = (now, window)
        old = f"SELECT DISTINCT substr(subject, 1, 1) FROM debits WHERE {_EXPIRED}"
        for (first,) in self._database.execute(old, bounds).fetchall():
            if not (isinstance(first, bytes) and first):
                raise LedgerError
            bucket = first[0]
            kept = [debit for debit in self._debits(bucket) if not _is_expired(debit, now, window)]
            self._database.execute(f"DELETE FROM debits WHERE {_WITHIN} AND {_EXPIRED}", (*_ends(bucket), *bounds))
            self._put(bucket, kept)

    def _debits(self, bucket: int) -> list[Debit]:
        found = self._database.execute(
            f"SELECT subject, moment, queries, bits FROM debits WHERE {_WITHIN}", _ends(bucket)
        ).fetchall()
        if not all(tuple(map(type, debit)) == (bytes, float, int, float) for debit in found):
            raise LedgerError
        if self._sealed and self._seals.get(bucket) != (_sealed(self.salt, found) if found else None):
            raise LedgerError
        return found

    def _upgrade(self) -> None:
        """Seal what an earlier version of splitveil wrote; nothing of it changes."""
        if self._sealed:
            return
        self.check()
        for statement in _SEALS:
            self._database.execute(statement)
        self._database.execute(f"PRAGMA user_version = {_VERSION}")
        found = {bucket: self._debits(bucket) for bucket in range(_BUCKETS)}
        self._sealed = True
        for bucket, debits in found.items():
            self._put(bucket, debits)

    def _put(self, bucket: int, debits: list[Debit]) -> None:
        self._database.execute("DELETE FROM seals WHERE bucket = ?", (bucket,))
        self._seals.pop(bucket, None)
        if debits:
            self._seals[bucket] = _sealed(self.salt, debits)
            self._database.execute("INSERT INTO seals VALUES (?, ?)", (bucket, self._seals[bucket]))

    def _write(self) -> None:
        latest = None if self.latest == -math.inf else self.latest
        self._database.execute(
            "UPDATE settings SET limit_bits = ?, window = ?, latest = ?, seal = ?",
            (self.bits, self.window, latest, self._seal()),
        )

    def _seal(self) -> bytes:
        return _sealed(self.salt, [(self.bits, self.window, self.latest), *self._seals.items()])


_WITHIN = "subject BETWEEN ? AND ?"
_EXPIRED = "? - moment >= ?"  # as `_is_expired` says it


def _is_expired(debit: Debit, now: float, window: float) -> bool:
    """Whether a debit has left the window; one of this very moment never has, however coarse the clock."""
    return now - debit[1] >= window


def _ends(bucket: int) -> tuple[bytes, bytes]:
    return bytes([bucket]), bytes([bucket]) + b"\xff" * _HASH_BYTES


def _sealed(salt: bytes, rows: list[Any]) -> bytes:
    # Sorted as texts: the order of a table's rows means nothing, and damaged ones may hold any types.
    return hmac.digest(salt, "\n".join(sorted(map(repr, rows))).encode(), "sha256")


def _is_amount(value: object) -> bool:
    return isinstance(value, float) and 0 < value < math.inf


def _number(database: sqlite3.Connection, pragma: str) -> int:
    """A number of the file's header."""
    return int(database.execute(f"PRAGMA {pragma}").fetchone()[0])


def create(database: sqlite3.Connection, bits: float, window: float | None) -> None:
    """Write an empty ledger with these limits into an empty database."""
    database.execute(f"PRAGMA application_id = {_KIND}")
    database.execute(f"PRAGMA user_version = {_VERSION}")
    for statement in (*_TABLES, "INSERT INTO settings VALUES (1, NULL, zeroblob(32))", *_SEALS):
        database.execute(statement)
    salt = secrets.token_bytes(_HASH_BYTES)
    row = (bits, window, salt, None, _sealed(salt, [(bits, window, -math.inf)]))
    database.execute("UPDATE settings SET limit_bits = ?, window = ?, salt = ?, latest = ?, seal = ?", row)


def put_in_place(draft: Path, path: Path) -> None:
    """Give a whole file its name, and replace nothing.

    Raises:
        FileExistsError: there is something of that name.
        OSError: the folder cannot be written.
    """
    try:
        os.link(draft, path)  # unlike a renaming, it replaces nothing
    except FileExistsError:
        raise
    except (OSError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno in _NO_USE:
            raise
        # exFAT, SMB and Android have no second names. So the name is taken first, with an empty file, for which others
        # wait (`wait_until_begun`); a program that is killed between these two lines leaves it, and nothing was spent.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        draft.replace(path)


def wait_until_begun(path: Path) -> None:
    """Where another program is just putting a ledger in its place, wait until it is there."""
    end = time.monotonic() + _BEGUN_WITHIN
    while path.stat().st_size == 0 and any(_drafts(path)) and time.monotonic() < end:
        time.sleep(0.01)


def remove_drafts(path: Path) -> None:
    """Take away second names that `put_in_place` gave a ledger, where it was killed before it could itself."""
    for draft in _drafts(path):
        if draft.is_file() and draft.samefile(path):
            draft.unlink(missing_ok=True)


def draft_for(path: Path) -> Path:
    """A new, empty file beside a path, for its owner alone; raises `OSError` where it cannot be made."""
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    return Path(draft)


def _drafts(path: Path) -> Iterator[Path]:
    return (other for other in path.parent.iterdir() if other.name.startswith(f".{path.name}."))


def is_mounted(path: str) -> bool:
    """Whether a file without links in its path is a mount of its own, as containers are given; only Linux says so."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return False
    name = re.sub(rb"[ \t\n\\]", lambda found: b"\\%03o" % found[0][0], os.fsencode(path))
    return any(line.split(b" ")[4:5] == [name] for line in lines)
