"""The budget: exact, durable before anything is sent, shared by processes, and never more than its limit."""

import errno
import math
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import splitveil as sv
from splitveil.budget import Budget, Limits
from splitveil.errors import BudgetError, BudgetSpentError, CertificateError

HANGING = 120.0  # seconds after which a test gives up
NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "budget"


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


def test_debits_add_up_to_the_limit_and_no_further(path: Path) -> None:
    budget = sv.Budget(path, limit_bits=9)
    assert [budget.debit("a", distinct=8), budget.debit("a", distinct=2, queries=3)] == [6, 3]
    for messages, queries in ((9, 1), (2, 4), (10**400, 1), (2, 2**62)):
        with pytest.raises(BudgetSpentError, match=r"3 of 9 bits in all are left, and was not sent"):
            budget.debit("a", distinct=messages, queries=queries)
    assert (budget.spent("a"), budget.left("a")) == (6, 3)  # a refusal debits nothing
    assert budget.debit("a", distinct=8) == 0
    with pytest.raises(BudgetSpentError) as caught:
        budget.debit("a", distinct=2)
    assert isinstance(caught.value, sv.SplitveilError)
    assert budget.debit("a", distinct=1) == 0  # of one possible message nothing is learnt
    assert (budget.spent("b"), budget.left("b")) == (0, 9)
    assert budget.debit("b", distinct=8) == 6


@settings(max_examples=20)  # each waits for the disk
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 1000), st.integers(1, 5)), max_size=12))
def test_what_is_granted_is_what_fits(tmp_path_factory: Any, asked: list[tuple[str, int, int]]) -> None:
    budget = Budget(tmp_path_factory.mktemp("budget") / "file", limit_bits=20)
    told = {"a": 1, "b": 1}  # different sequences of messages, exactly
    for subject, messages, queries in asked:
        if told[subject] * messages**queries <= 2**20:
            budget.debit(subject, distinct=messages, queries=queries)
            told[subject] *= messages**queries
        else:
            with pytest.raises(BudgetSpentError):
                budget.debit(subject, distinct=messages, queries=queries)
    for subject, sequences in told.items():
        assert budget.spent(subject) == pytest.approx(math.log2(sequences), abs=1e-9)
        assert budget.left(subject) == pytest.approx(20 - math.log2(sequences), abs=1e-9)


def test_a_limit_that_is_no_whole_number_is_spent_to_the_end(path: Path) -> None:
    budget = Budget(path, limit_bits=1000 * math.log2(10))
    for _ in range(10):
        budget.debit("a", distinct=10, queries=100)
    assert budget.left("a") < 1e-9
    with pytest.raises(BudgetSpentError):
        budget.debit("a", distinct=2)


def test_bundles_programs_and_restarts_share_one_budget(path: Path) -> None:
    Budget(path, limit_bits=10).debit("a", distinct=8)
    again = Budget(path)
    assert again.limits == Limits(10)
    assert again.debit("a", distinct=100) == pytest.approx(10 - 3 - math.log2(100))
    assert Budget(path, limit_bits=10).spent("a") == pytest.approx(3 + math.log2(100))


def test_another_limit_is_refused_unless_it_is_meant(path: Path) -> None:
    first = Budget(path, limit_bits=10)
    first.debit("a", distinct=2, queries=6)
    for limits in ({"limit_bits": 20}, {"limit_bits": 10, "window": 60}):
        with pytest.raises(BudgetError, match=r"allows 10 bits in all, not .* change=True"):
            Budget(path, **limits)  # type: ignore[arg-type]
    assert Budget(path).limits == Limits(10)
    assert Budget(path, limit_bits=20, change=True).left("a") == 14
    assert first.debit("a", distinct=2, queries=14) == 0  # who has it open already heeds the new limit, too
    assert Budget(path, limit_bits=5, change=True).left("a") == 0
    with pytest.raises(BudgetSpentError, match="0 of 5 bits"):
        first.debit("a", distinct=2)


@pytest.mark.parametrize(
    "limits",
    [{"limit_bits": 0}, {"limit_bits": -1}, {"limit_bits": math.nan}, {"limit_bits": math.inf},
     {"limit_bits": 8, "window": 0}, {"limit_bits": 8, "window": math.nan}, {"window": 5}, {"change": True}, {}],
)  # fmt: skip
def test_limits_that_are_none(path: Path, limits: dict[str, Any]) -> None:
    with pytest.raises(BudgetError):
        Budget(path, **limits)
    assert not path.exists()


def test_what_is_no_query_is_refused(path: Path) -> None:
    budget = Budget(path, limit_bits=8)
    for messages, queries in ((0, 1), (2.5, 1), (2, 0), (2, -1), (2, 2**63)):
        with pytest.raises(CertificateError):
            budget.debit("a", distinct=messages, queries=queries)  # type: ignore[arg-type]
    for subject in ("", 3, None):
        with pytest.raises(BudgetError, match="a subject is a text that is not empty"):
            budget.debit(subject, distinct=2)  # type: ignore[arg-type]
    assert budget.spent("a") == 0


def test_names_stand_nowhere_in_the_file(path: Path, tmp_path: Path) -> None:
    budget = Budget(path, limit_bits=8)
    composed = "Zoë Example"
    budget.debit(composed, distinct=4)
    assert budget.spent(unicodedata.normalize("NFD", composed)) == 2
    budget.debit("\udcff", distinct=4)  # bytes of a command line that are no text
    other = Budget(tmp_path / "other", limit_bits=8)
    other.debit(composed, distinct=4)
    content = path.read_bytes()
    for form in ("NFC", "NFD"):
        assert unicodedata.normalize(form, composed).encode() not in content
    assert b"Example" not in content
    with closing(sqlite3.connect(path)) as one, closing(sqlite3.connect(other.path)) as two:
        names = [{name for (name,) in db.execute("SELECT subject FROM debits")} for db in (one, two)]
    assert not names[0] & names[1]  # files of two devices cannot be joined
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(BudgetSpentError) as caught:
        budget.debit(composed, distinct=2, queries=99)
    assert "Example" not in str(caught.value)


def test_in_a_window_debits_expire(path: Path) -> None:
    clock = Clock()
    budget = Budget(path, limit_bits=6, window=100, clock=clock)
    budget.debit("a", distinct=8)
    clock.now += 60
    budget.debit("a", distinct=8)
    with pytest.raises(BudgetSpentError, match="6 bits in 100 s are left, and was not sent; wait until"):
        budget.debit("a", distinct=8)
    clock.now += 39.5
    assert budget.left("a") == 0
    clock.now += 0.5
    assert (budget.spent("a"), budget.left("a")) == (3, 3)
    assert budget.debit("a", distinct=8) == 0
    with closing(sqlite3.connect(path)) as ledger:
        assert ledger.execute("SELECT count(*) FROM debits").fetchone() == (2,)  # nothing is kept longer than it counts
    clock.now += 1000
    assert budget.left("a") == 6


def test_without_a_window_nothing_expires(path: Path) -> None:
    clock = Clock()
    budget = Budget(path, limit_bits=6, clock=clock)
    budget.debit("a", distinct=8)
    for jump in (1e9, -2e9):
        clock.now += jump
        assert budget.left("a") == 3
    assert budget.debit("a", distinct=8) == 0


def test_a_clock_that_goes_back_frees_nothing(path: Path) -> None:
    clock = Clock()
    budget = Budget(path, limit_bits=6, window=100, clock=clock)
    budget.debit("a", distinct=8)
    clock.now -= 5000
    assert budget.left("a") == 3
    budget.debit("a", distinct=8)
    with pytest.raises(BudgetSpentError, match="the clock stands 5000 s before the last debit"):
        budget.debit("a", distinct=8)
    clock.now += 5000 + 99  # the debit of the wrong time counts until a window after the latest moment seen
    assert budget.left("a") == 0
    clock.now += 1
    assert budget.left("a") == 6


def test_a_file_of_another_kind_is_left_alone(path: Path, tmp_path: Path) -> None:
    for content in (b"x", b"some notes\n" * 1000, bytes(4096)):
        path.write_bytes(content)
        for limits in ({"limit_bits": 8}, {}):
            with pytest.raises(BudgetError, match="damaged or no budget"):
                Budget(path, **limits)  # type: ignore[arg-type]
        assert path.read_bytes() == content
    path.unlink()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE debits (subject)")
        other.commit()
    with pytest.raises(BudgetError, match="damaged or no budget"):
        Budget(path, limit_bits=8, change=True)
    with pytest.raises(BudgetError, match="cannot be opened"):
        Budget(tmp_path, limit_bits=8)
    with pytest.raises(BudgetError, match="cannot be begun"):
        Budget(tmp_path / "missing" / "budget", limit_bits=8)
    with pytest.raises(BudgetError, match="there is no budget"):
        Budget(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


def test_an_emptied_file_does_not_begin_anew(path: Path) -> None:
    budget = Budget(path, limit_bits=8)
    assert budget.begun
    budget.debit("a", distinct=8)
    assert not Budget(path, limit_bits=8).begun
    path.write_bytes(b"")
    for limits in ({"limit_bits": 8}, {"limit_bits": 8, "change": True}, {}):
        with pytest.raises(BudgetError, match="damaged or no budget"):
            Budget(path, **limits)  # type: ignore[arg-type]
    assert path.read_bytes() == b""


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, mode=0o644)
    for other in (pipe, tmp_path, Path(os.devnull)):
        mode = other.stat().st_mode
        with pytest.raises(BudgetError, match="no file"):
            Budget(other, limit_bits=8)
        assert other.stat().st_mode == mode


def test_a_file_is_begun_whole_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unlucky(draft: str, place: Path) -> None:
        assert not place.exists()
        with closing(sqlite3.connect(draft)) as ledger:
            assert ledger.execute("SELECT limit_bits FROM settings").fetchone() == (8,)  # whole before it has its name
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "link", unlucky)
    with pytest.raises(BudgetError, match="cannot be begun"):
        Budget(path, limit_bits=8)
    assert list(path.parent.iterdir()) == []


def test_a_damaged_file_sends_nothing(path: Path) -> None:
    budget = Budget(path, limit_bits=1e6)
    for subject in range(60):
        budget.debit(str(subject), distinct=8)
    whole = path.read_bytes()
    last = whole[:-4096] + bytes(4096)  # of debits or their index, not of the limits
    for damage in (whole[:4096], whole[: len(whole) // 2], whole[:4096] + bytes(len(whole) - 4096), last):
        path.write_bytes(damage)
        with pytest.raises(BudgetError, match="damaged or no budget"):
            Budget(path, limit_bits=1e6)
    path.write_bytes(b"")
    with pytest.raises(BudgetError, match="damaged or no budget"):
        budget.debit("0", distinct=8)  # an open budget does not begin anew
    path.unlink()
    with pytest.raises(BudgetError, match="cannot be opened"):
        budget.debit("0", distinct=8)
    assert not path.exists()
    path.write_bytes(whole)
    assert budget.spent("0") == 3


def test_a_file_of_a_later_version_is_left_alone(path: Path) -> None:
    Budget(path, limit_bits=8)
    with closing(sqlite3.connect(path)) as ledger:
        ledger.execute("PRAGMA user_version = 3")
    with pytest.raises(BudgetError, match="another version of splitveil"):
        Budget(path)


@contextmanager
def nobody() -> Iterator[None]:
    """Root may write everything; so the test goes on as somebody who may not."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_that_cannot_be_written_sends_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    budget = Budget(folder / "budget", limit_bits=8)
    budget.debit("a", distinct=8)
    budget.path.chmod(0o444)
    folder.chmod(0o555)
    # pytest's folders, which are closed to others.
    above = [place for place in folder.parents if "pytest-of-" in str(place)]
    before = {place: place.stat().st_mode for place in above}
    try:
        for place in above:
            place.chmod(0o755)
        with nobody():
            with pytest.raises(BudgetError, match="cannot be written"):
                budget.debit("a", distinct=8)
            with pytest.raises(BudgetError, match="cannot be written"):
                Budget(budget.path, limit_bits=9, change=True)
            assert Budget(budget.path, limit_bits=8).left("a") == 5  # looking is allowed
            with pytest.raises(BudgetError, match="cannot be begun"):
                Budget(folder / "new", limit_bits=8)
    finally:
        for place, mode in before.items():
            place.chmod(mode)
        folder.chmod(0o755)
    budget.path.chmod(0o600)
    assert budget.spent("a") == 3


def test_a_file_that_another_program_holds_is_waited_for_and_then_named(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget(path, limit_bits=8)
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        waiting = threading.Thread(target=budget.debit, args=("a",), kwargs={"distinct": 8}, daemon=True)
        waiting.start()
        with monkeypatch.context() as patched:
            patched.setattr("splitveil.budget._WAIT", 0.05)
            for call in (
                lambda: budget.debit("a", distinct=8),
                lambda: budget.left("a"),
                lambda: Budget(path, limit_bits=8),
            ):
                with pytest.raises(BudgetError, match="held by another program"):
                    call()
        other.execute("COMMIT")
        waiting.join(HANGING)
    assert budget.spent("a") == 3


def test_a_full_disk_sends_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget(path, limit_bits=1e6)
    real = sqlite3.connect

    def full(*arguments: Any, **settings: Any) -> sqlite3.Connection:
        ledger = real(*arguments, **settings)
        ledger.execute("PRAGMA max_page_count = 6")
        return ledger

    granted = []

    def spend() -> None:
        for _ in range(1000):
            granted.append(budget.debit("a", distinct=8))

    with monkeypatch.context() as patched:
        patched.setattr(sqlite3, "connect", full)
        with pytest.raises(BudgetError, match="does not fit on the disk"):
            spend()
        assert budget.left("a") == granted[-1]
    assert budget.debit("a", distinct=8) == granted[-1] - 3


def test_a_file_that_may_not_grow_sends_nothing(path: Path) -> None:
    """The same with the operating system's own refusal, in the middle of a write."""
    budget = Budget(path, limit_bits=1e6)
    budget.debit("a", distinct=8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(BudgetError) as caught:
            budget.debit("a", distinct=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be read or written" in str(caught.value) or os.strerror(errno.EFBIG) in str(caught.value)
    assert budget.spent("a") == 3
    assert budget.debit("a", distinct=8) == 1e6 - 6


def test_a_debit_is_on_the_disk_before_it_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No power can be cut here; so this sees to it that SQLite is told to wait for the file and for its folder."""
    commits = []

    class Watched(sqlite3.Connection):
        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            if statement == "COMMIT":
                commits.append(super().execute("PRAGMA synchronous").fetchone())
                commits.append(super().execute("PRAGMA journal_mode").fetchone())
            return super().execute(statement, *values)

    budget, real = Budget(path, limit_bits=8), sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *given, **more: real(*given, **more, factory=Watched))
    budget.debit("a", distinct=8)
    assert commits == [(3,), ("delete",)]  # 3 is EXTRA


def run(program: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


SPENDER = """
import sys
from splitveil.budget import Budget
from splitveil.errors import BudgetSpentError

budget, granted = Budget(sys.argv[1], limit_bits=float(sys.argv[2])), 0
print("ready", flush=True)
sys.stdin.readline()
try:
    while True:
        budget.debit("a", distinct=8)
        granted += 1
except BudgetSpentError:
    print(granted)
"""


def test_processes_that_debit_at_once_never_exceed_the_limit(path: Path) -> None:
    limit = 3 * 100 + 1
    command = [sys.executable, "-c", SPENDER, str(path), str(limit)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(5)  # all of which begin the file at once, too
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        ended = [process.communicate(timeout=HANGING) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [error for _, error in ended] == [""] * 5
    assert sum(int(out) for out, _ in ended) == 100
    assert Budget(path).spent("a") == 300


def test_threads_share_one_budget(path: Path) -> None:
    budget, granted = Budget(path, limit_bits=3 * 40), []

    def spend() -> None:
        for _ in range(20):
            try:
                budget.debit("a", distinct=8)
            except BudgetSpentError:
                return
            granted.append(1)

    threads = [threading.Thread(target=spend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANGING)
    assert len(granted) == 40
    assert budget.left("a") == 0


KILLED = """
import itertools, sys
from splitveil.budget import Budget

budget = Budget(sys.argv[1])
for number in itertools.count(1):
    budget.debit("a", distinct=8)
    print(number, flush=True)  # this is where a frame would leave
"""


def test_every_debit_that_returned_survives_a_kill(path: Path) -> None:
    budget = Budget(path, limit_bits=1e6)
    for debits in (1, 2, 7, 20):
        before = budget.spent("a")
        with run(KILLED, path) as process:
            watchdog = threading.Timer(HANGING, process.kill)
            watchdog.start()
            assert process.stdout is not None
            for number in range(1, debits + 1):
                assert process.stdout.readline() == f"{number}\n"
            process.send_signal(signal.SIGKILL)
            printed = debits + len([line for line in process.stdout if line.endswith("\n")])
            assert process.wait(HANGING) == -signal.SIGKILL
            watchdog.cancel()
        told = (budget.spent("a") - before) / 3
        assert told in (printed, printed + 1)  # one may have been debited, and not printed any more
    assert budget.debit("b", distinct=8) == 1e6 - 3


HALFWAY = """
import sqlite3, sys

ledger = sqlite3.connect(sys.argv[1], isolation_level=None)
ledger.execute("PRAGMA cache_size = 1")  # so that pages reach the file before the commit
ledger.execute("BEGIN IMMEDIATE")
ledger.execute("UPDATE debits SET bits = 0")
ledger.executemany("INSERT INTO debits VALUES (?, 0, 1, 3)", [(bytes([n % 256]) * 32,) for n in range(2000)])
print("halfway", flush=True)
sys.stdin.readline()
"""


def test_a_transaction_that_was_killed_halfway_is_undone(path: Path) -> None:
    budget = Budget(path, limit_bits=100)
    budget.debit("a", distinct=8)
    before = path.read_bytes()
    command = [sys.executable, "-c", HALFWAY, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "halfway\n"
        process.kill()
    assert path.read_bytes() != before  # half of it is in the file …
    assert path.with_name("budget-journal").exists()  # … and what undoes it beside
    assert Budget(path, limit_bits=100).spent("a") == 3
    assert path.read_bytes() == before
    assert budget.debit("a", distinct=8) == 94
