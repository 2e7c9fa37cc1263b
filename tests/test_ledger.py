"""The ledger's file: damage, second names, file systems without them, and files of the version before."""

import errno
import math
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitveil.budget import Budget, Limits
from splitveil.certificate import Certificate
from splitveil.errors import BudgetError, BudgetSpentError, SplitveilError
from test_budget import HALFWAY, HANGING, Clock

SUBJECTS = [f"subject {index}" for index in range(25)]
PAGE = 4096  # bytes; SQLite's own


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "budget"


class Filled:
    """A ledger of 60 bits with some debits of each subject.

    Attributes:
        whole: its bytes; older: its bytes at earlier moments.
        left: bits of each subject.
    """

    def __init__(self, path: Path, window: float | None) -> None:
        self.path, self.clock, self.older = path, Clock(), list[bytes]()
        self.budget = Budget(path, limit_bits=60, window=window, clock=self.clock)
        self.random = random.Random(0)
        for number in range(90):
            self.clock.now += 1
            self.budget.debit(self.random.choice(SUBJECTS), distinct=self.random.randint(2, 9))
            if number in (30, 60):
                self.older.append(path.read_bytes())
        self.whole = path.read_bytes()
        self.left = {subject: self.budget.left(subject) for subject in SUBJECTS}

    def flip(self) -> bytes:
        damaged = bytearray(self.whole)
        damaged[self.random.randrange(len(damaged))] ^= self.random.randrange(1, 256)
        return bytes(damaged)

    def zeros(self) -> bytes:
        start, length = self.random.randrange(len(self.whole)), self.random.randrange(2, 600)
        return self.whole[:start] + bytes(len(self.whole[start : start + length])) + self.whole[start + length :]

    def cut(self) -> bytes:
        return self.whole[: self.random.randrange(len(self.whole))]

    def swapped(self) -> bytes:
        pages = [self.whole[start : start + PAGE] for start in range(0, len(self.whole), PAGE)]
        one, other = self.random.sample(range(len(pages)), 2)
        pages[one], pages[other] = pages[other], pages[one]
        return b"".join(pages)

    def older_page(self) -> bytes:
        older = self.random.choice(self.older)
        start = PAGE * self.random.randrange(min(len(older), len(self.whole)) // PAGE)
        return self.whole[:start] + older[start : start + PAGE] + self.whole[start + PAGE :]

    def edited(self) -> bytes:
        """A row deleted, changed, put back or copied; SQLite itself finds nothing wrong."""
        place = self.path.with_name("edited")
        place.write_bytes(self.whole)
        with closing(sqlite3.connect(place)) as ledger:
            rows = ledger.execute("SELECT rowid FROM debits").fetchall()
            ledger.execute(self.random.choice(EDITS), self.random.choice(rows))
            ledger.commit()
        return place.read_bytes()


EDITS = (
    "DELETE FROM debits WHERE rowid = ?", "UPDATE debits SET bits = bits / 2 WHERE rowid = ?",
    "UPDATE debits SET moment = 0 WHERE rowid = ?", "UPDATE debits SET subject = x'00' WHERE rowid = ?",
    "UPDATE debits SET subject = 'text' WHERE rowid = ?", "DELETE FROM seals WHERE ?",
    "INSERT INTO debits SELECT * FROM debits WHERE rowid = ?", "UPDATE settings SET limit_bits = 1e9 WHERE ?",
    "UPDATE settings SET window = 1 WHERE ?", "UPDATE settings SET latest = 9e12 WHERE ?",
    "UPDATE seals SET seal = (SELECT seal FROM seals LIMIT 1) WHERE ?",
)  # fmt: skip
DAMAGES = {
    Filled.flip: 250, Filled.zeros: 60, Filled.cut: 40, Filled.swapped: 40, Filled.older_page: 40, Filled.edited: 80
}  # fmt: skip


@pytest.fixture(scope="module", params=[None, 60.0], ids=["forever", "window"])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Filled:
    return Filled(tmp_path_factory.mktemp("ledger") / "budget", request.param)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_never_gives_more_than_was_left(filled: Filled, damage: Callable[[Filled], bytes]) -> None:
    refused = 0
    for number in range(DAMAGES[damage]):
        damaged = damage(filled)
        if damaged == filled.whole:
            continue
        filled.path.write_bytes(damaged)
        subject = filled.random.choice(SUBJECTS)
        for look in (lambda: filled.budget.left, lambda: Budget(filled.path, clock=filled.clock).left):
            try:
                assert look()(subject) <= filled.left[subject]
                if number % 10 == 0:  # each waits for the disk
                    assert filled.budget.debit(subject, distinct=2) <= filled.left[subject] - 1
                    filled.path.write_bytes(damaged)
            except BudgetError as error:
                sentence = str(error)
                refused += 1
                assert sentence.isprintable()
    assert refused
    filled.path.write_bytes(filled.whole)
    assert {subject: Budget(filled.path, clock=filled.clock).left(subject) for subject in SUBJECTS} == filled.left


def test_every_change_of_an_account_is_found(filled: Filled) -> None:
    """Wherever the bytes of a debit, of a limit or of a seal stand in the file, none may be another."""
    with closing(sqlite3.connect(filled.path)) as ledger:
        (subject,) = ledger.execute("SELECT subject FROM debits").fetchone()
        (salt,) = ledger.execute("SELECT salt FROM settings").fetchone()
        (seal,) = ledger.execute("SELECT seal FROM seals").fetchone()
        (whole,) = ledger.execute("SELECT seal FROM settings").fetchone()
    for content in (subject, salt, seal, whole):
        start = filled.whole.index(content)
        for place in range(start, start + len(content)):
            changed = bytearray(filled.whole)
            changed[place] ^= 1
            filled.path.write_bytes(changed)
            with pytest.raises(BudgetError, match="damaged or no budget"):
                Budget(filled.path)
    filled.path.write_bytes(filled.whole)


OLD = (
    "PRAGMA application_id = 1398161988", "PRAGMA user_version = 1",
    "CREATE TABLE settings (limit_bits REAL NOT NULL, window REAL, salt BLOB NOT NULL)",
    "CREATE TABLE debits (subject BLOB NOT NULL, moment REAL NOT NULL, queries INTEGER NOT NULL, bits REAL NOT NULL)",
    "CREATE INDEX debits_by_subject ON debits (subject)", "CREATE INDEX debits_by_moment ON debits (moment)",
)  # fmt: skip


def old_ledger(path: Path, window: float | None = None) -> None:
    """As version 0.4 wrote it: 20 bits, of which "anna" has spent 3 and "bert" 4."""
    made = Budget(path, limit_bits=20, window=window, clock=lambda: 100.0)
    made.debit("anna", distinct=8)
    made.debit("bert", distinct=2, queries=4)
    with closing(sqlite3.connect(path)) as ledger:
        settings = ledger.execute("SELECT limit_bits, window, salt FROM settings").fetchall()
        debits = ledger.execute("SELECT * FROM debits").fetchall()
    path.unlink()
    with closing(sqlite3.connect(path)) as ledger:
        for statement in OLD:
            ledger.execute(statement)
        ledger.executemany("INSERT INTO settings VALUES (?, ?, ?)", settings)
        ledger.executemany("INSERT INTO debits VALUES (?, ?, ?, ?)", debits)
        ledger.commit()


def test_a_ledger_of_the_version_before_keeps_what_was_debited(path: Path) -> None:
    old_ledger(path)
    before = path.read_bytes()
    budget = Budget(path)
    assert (budget.limits, budget.left("anna"), budget.left("bert"), budget.left("cara")) == (Limits(20), 17, 16, 20)
    assert path.read_bytes() == before  # who only looks changes nothing
    assert budget.debit("cara", distinct=4) == 18
    again = Budget(path, limit_bits=20)
    assert (again.left("anna"), again.left("bert"), again.left("cara")) == (17, 16, 18)
    with closing(sqlite3.connect(path)) as ledger:
        ledger.execute("DELETE FROM debits WHERE bits = 4")
        ledger.commit()
    with pytest.raises(BudgetError, match="damaged"):
        again.left("bert")  # from now on it is sealed
    assert again.left("cara") == 18


def test_a_changed_limit_seals_an_old_ledger_too(path: Path) -> None:
    old_ledger(path, window=50.0)
    changed = Budget(path, limit_bits=30, window=50.0, change=True, clock=lambda: 20.0)
    assert (changed.left("anna"), changed.left("bert")) == (27, 26)  # its time is that of the last debit
    assert Budget(path, clock=lambda: 149.0).left("anna") == 27
    assert Budget(path, clock=lambda: 150.0).debit("anna", distinct=2) == 29
    with closing(sqlite3.connect(path)) as ledger:
        assert ledger.execute("PRAGMA user_version").fetchone() == (2,)
        assert ledger.execute("SELECT count(*) FROM debits").fetchone() == (1,)  # of others too
        ledger.execute("PRAGMA user_version = 1")
    with pytest.raises(BudgetError, match="damaged"):
        Budget(path)  # nothing goes back to a version without seals


def test_an_infinite_moment_of_an_old_ledger_counts_for_ever(path: Path) -> None:
    old_ledger(path, window=50.0)
    with closing(sqlite3.connect(path)) as ledger:
        ledger.execute("UPDATE debits SET moment = 9e999 WHERE bits = 3")
        ledger.commit()
    budget = Budget(path, clock=lambda: 1e9)
    assert (budget.left("anna"), budget.left("bert")) == (17, 20)
    budget.debit("bert", distinct=2)
    assert (budget.left("anna"), budget.left("bert")) == (17, 19)


def test_a_second_name_is_refused(path: Path, tmp_path: Path) -> None:
    budget = Budget(path, limit_bits=8)
    budget.debit("anna", distinct=2)
    other = tmp_path / "other"
    os.link(path, other)
    for call in (
        lambda: Budget(path), lambda: Budget(other), lambda: budget.left("anna"),
        lambda: budget.debit("anna", distinct=2),
    ):  # fmt: skip
        with pytest.raises(BudgetError, match="has a second name"):
            call()
    other.unlink()
    assert budget.debit("anna", distinct=2) == 6


def test_a_symbolic_link_is_the_same_file_with_the_same_journal(path: Path, tmp_path: Path) -> None:
    Budget(path, limit_bits=8).debit("anna", distinct=2)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    link = folder / "link"
    link.symlink_to(path)
    before = path.read_bytes()
    command = [sys.executable, "-c", HALFWAY, str(link)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "halfway\n"
        process.kill()
    assert path.with_name("budget-journal").exists()
    assert [file.name for file in folder.iterdir()] == ["link"]
    assert Budget(path).left("anna") == 7
    assert path.read_bytes() == before
    assert Budget(link).debit("anna", distinct=2) == 6
    assert not Budget(link, limit_bits=8).begun


def test_links_to_nothing_are_one_sentence(tmp_path: Path) -> None:
    dangling, loop = tmp_path / "dangling", tmp_path / "loop"
    dangling.symlink_to(tmp_path / "nothing")
    loop.symlink_to(loop)
    for link in (dangling, loop):
        for limits in ({}, {"limit_bits": 8}):
            with pytest.raises(SplitveilError):
                Budget(link, **limits)  # type: ignore[arg-type]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["dangling", "loop"]


MOUNTED = """
import sys
from pathlib import Path
from splitveil.budget import Budget
from splitveil.errors import BudgetError

for place in sys.argv[1:]:
    try:
        print(Budget(place).left("anna"))
    except BudgetError as error:
        print(error)
"""


def test_a_file_that_is_mounted_by_itself_is_refused(path: Path, tmp_path: Path) -> None:
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("mounting needs unshare and the right to")
    Budget(path, limit_bits=8).debit("anna", distinct=2)
    (tmp_path / "with space").mkdir()
    single, folder = tmp_path / "with space" / "single", tmp_path / "folder"
    single.touch()
    folder.mkdir()
    mounts = f"mount --bind '{path}' '{single}' && mount --bind '{path.parent}' '{folder}' && exec \"$@\""
    command = ["unshare", "-m", "sh", "-c", mounts, "sh", sys.executable, "-c", MOUNTED, str(single)]
    done = subprocess.run(
        [*command, str(folder / path.name)], capture_output=True, text=True, timeout=HANGING, check=False
    )
    assert done.returncode == 0, done.stderr
    refusal, left = done.stdout.splitlines()
    assert "is mounted as a single file" in refusal
    assert refusal.endswith("mount its folder")
    assert left == "7.0"


UNLINKED = [errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL]


@pytest.mark.parametrize("reason", [*UNLINKED, None], ids=lambda reason: errno.errorcode.get(reason, "missing"))
def test_a_ledger_begins_where_there_are_no_hard_links(
    path: Path, monkeypatch: pytest.MonkeyPatch, reason: int | None
) -> None:
    def refuse(*_: object) -> None:
        assert reason is not None
        raise OSError(reason, os.strerror(reason))

    if reason is None:
        monkeypatch.delattr(os, "link")  # as on Android
    else:
        monkeypatch.setattr(os, "link", refuse)
    budget = Budget(path, limit_bits=8)
    assert budget.begun
    assert [file.name for file in path.parent.iterdir()] == ["budget"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert budget.debit("anna", distinct=2) == 7
    assert not Budget(path, limit_bits=8).begun
    path.unlink()
    path.write_bytes(b"notes")
    with pytest.raises(BudgetError, match="damaged or no budget"):
        Budget(path, limit_bits=8)
    assert path.read_bytes() == b"notes"


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS], ids=errno.errorcode.get)
def test_the_reason_why_it_cannot_begin_is_the_right_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(BudgetError, match=f"cannot be begun \\({os.strerror(reason)}\\)"):
        Budget(path, limit_bits=8)
    assert list(path.parent.iterdir()) == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting needs the right to")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_nothing_of_a_ledger(tiny_disk: Path) -> None:
    with pytest.raises(BudgetError, match=r"does not fit on the disk|No space left|disk is there and has space"):
        Budget(tiny_disk / "budget", limit_bits=8)
    assert list(tiny_disk.iterdir()) == []


def test_what_a_killed_beginning_left_is_no_second_name(path: Path) -> None:
    Budget(path, limit_bits=8).debit("anna", distinct=2)
    draft = path.with_name(".budget.abcd1234")
    os.link(path, draft)  # killed after the link, and before the draft's name was taken away
    assert Budget(path).debit("anna", distinct=2) == 6
    assert not draft.exists()


def test_an_empty_file_is_waited_for_while_it_is_begun(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without hard links the name is taken before the ledger is in it; so here another opens it between the two."""
    opened, really = [], Path.replace

    def replace(draft: Path, place: Path) -> Path:
        with pytest.raises(BudgetError, match="damaged or no budget"):
            Budget(place)  # the draft never comes while this waits, so it ends in a sentence
        opened.append(place)
        really(draft, place)
        return place

    monkeypatch.delattr(os, "link")
    monkeypatch.setattr("splitveil.ledger._BEGUN_WITHIN", 0.05)
    monkeypatch.setattr(Path, "replace", replace)
    assert Budget(path, limit_bits=8).begun
    assert opened == [path]
    assert Budget(path).left("anna") == 8


GOOD = [8, 8.0, np.float32(8), np.float64(8), np.int64(8), np.uint8(8), Decimal(8), Decimal("8.0"), Fraction(16, 2)]
BAD = [
    "8", b"8", True, np.bool_(True), 8j, [8], np.array(8.0), np.array([8.0]), Decimal("NaN"), Decimal("sNaN"),
    Decimal("Infinity"), 10**400, np.float64("nan"), np.float32("inf"), -8, Fraction(-1, 8), Decimal("1e-999"),
    10**5000,
]  # fmt: skip


@pytest.mark.parametrize("number", GOOD, ids=lambda number: f"{type(number).__name__}-{number}")
def test_numbers_of_any_type_are_limits(path: Path, number: Any) -> None:
    assert Budget(path, limit_bits=number, window=number).limits == Limits(8, 8)
    assert Budget(path).debit("anna", distinct=2) == 7
    path.unlink()


@pytest.mark.parametrize("number", BAD, ids=lambda number: f"{type(number).__name__}")
def test_what_is_no_number_begins_no_ledger(path: Path, number: Any) -> None:
    for limits in ({"limit_bits": number}, {"limit_bits": 8, "window": number}):
        with pytest.raises(BudgetError, match="give such a number"):
            Budget(path, **limits)
    assert list(path.parent.iterdir()) == []
    budget = Budget(path, limit_bits=8)
    with pytest.raises(BudgetError, match="give such a number"):
        Budget(path, limit_bits=number, change=True)
    for debit in ({"distinct": number}, {"distinct": 2, "queries": number}):
        with pytest.raises((BudgetSpentError, SplitveilError)):
            budget.debit("anna", **debit)
    assert Budget(path, limit_bits=8).left("anna") == 8


@pytest.mark.parametrize("number", [np.int8(2), np.int64(2), np.uint64(2)], ids=lambda number: type(number).__name__)
def test_counts_of_numpy_are_debited(path: Path, number: Any) -> None:
    budget = Budget(path, limit_bits=8)
    assert budget.debit("anna", distinct=number, queries=number) == 6
    assert Budget(path).left("anna") == 6
    assert Certificate(number).leakage_bits(np.int64(2000)) == 2000


@pytest.mark.parametrize(
    "moment", [math.nan, math.inf, -math.inf, "now", None, True, np.float64("nan"), Decimal("NaN"), 10**400]
)
def test_a_clock_that_is_none_is_named_and_changes_nothing(path: Path, moment: Any) -> None:
    clock = Clock()
    budget = Budget(path, limit_bits=8, window=60, clock=clock)
    budget.debit("anna", distinct=4)
    before = path.read_bytes()
    wrong = Budget(path, clock=lambda: moment)
    for call in (lambda: wrong.debit("anna", distinct=2), lambda: wrong.left("anna"), lambda: wrong.spent("anna")):
        with pytest.raises(BudgetError, match="clock gives"):
            call()
    assert path.read_bytes() == before
    assert budget.left("anna") == 6


@pytest.mark.parametrize("moment", [np.float64(1e9), Decimal(10**9), Fraction(10**9), 10**9])
def test_a_clock_may_give_numbers_of_any_type(path: Path, moment: Any) -> None:
    budget = Budget(path, limit_bits=8, window=60, clock=lambda: moment)
    assert budget.debit("anna", distinct=4) == 6
    assert Budget(path, clock=lambda: 1e9 + 59).left("anna") == 6
    assert Budget(path, clock=lambda: 1e9 + 60).left("anna") == 8


def test_a_clock_too_coarse_for_the_window_frees_nothing(path: Path) -> None:
    for window, moment in ((60.0, 1e300), (1e-12, 1e9)):
        budget = Budget(path, limit_bits=2, window=window, clock=lambda moment=moment: moment)
        assert [budget.debit("anna", distinct=2), budget.debit("anna", distinct=2)] == [1, 0]
        with pytest.raises(BudgetSpentError):
            budget.debit("anna", distinct=2)
        path.unlink()
