"""After `os.fork()`: a child's clients, encoders and ledgers answer, and never touch what is the parent's."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from made_bundles import made_finite_bundle
from made_servers import Answering, listening
from splitveil.budget import Budget

HANGING = 60  # seconds after which a child or a parent counts as hanging

# What every program here begins with. A child that hangs is killed by its alarm, and its status says so.
BEGIN = f"""
import asyncio, gc, os, signal, ssl, sys, threading, traceback
import numpy as np
import splitveil as sv
from splitveil.client import Access, EdgeEncoder, Patience

place, url, ca = sys.argv[1:4]
photo = np.random.default_rng(0).integers(0, 256, (1, 16, 32), np.uint8)
settings = dict(access=Access(ca=ca or None), patience=Patience(timeout=5, deadline=20))

def child(work, leave=sys.exit):  # as workers of gunicorn end: destructors run
    pid = os.fork()
    if not pid:
        signal.alarm({HANGING})
        try:
            work()
        except Exception:
            traceback.print_exc()
            os._exit(1)
        leave(0)
    return pid

def same(given, wanted):  # numpy.testing is imported when it is first used, and a fork may cut that in two
    assert np.array_equal(given, wanted)

def ended(pid):
    status = os.waitpid(pid, 0)[1]
    assert status == 0, status
"""


@pytest.fixture(scope="module")
def finite(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finite") / "bundle"
    return made_finite_bundle(folder, exported, (4, 2))


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(params=["http", "https"])
def server(
    request: pytest.FixtureRequest, exported: Path, authority: trustme.CA, tmp_path: Path
) -> Iterator[list[str]]:
    """The arguments of a program: the edge bundle, and how its server is reached."""
    context, ca = None, ""
    if request.param == "https":
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        ca = str(tmp_path / "ca.pem")
        authority.cert_pem.write_to_path(ca)
    with listening(Answering(exported / "server"), context) as (url, _):
        yield [str(exported / "edge"), url, ca]


def run(program: str, *arguments: object) -> str:
    command = [sys.executable, "-c", BEGIN + program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * HANGING, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_parent_and_children_answer_side_by_side(server: list[str]) -> None:
    """Each on connections of its own: of a shared one, TLS would break and answers would be mixed up."""
    run(
        """
client = sv.EdgeClient(place, url, **settings)
want = client.answer(photo).logits

def work():
    for _ in range(5):
        same(client.answer(photo).logits, want)
    gc.collect()
    client.close()

children = [child(work) for _ in range(3)]
for _ in range(5):
    same(client.answer(photo).logits, want)
for pid in children:
    ended(pid)
same(client.answer(photo).logits, want)
client.close()
""",
        *server,
    )


def test_a_child_need_not_use_or_close_what_it_inherits(server: list[str]) -> None:
    run(
        """
client, encoder = sv.EdgeClient(place, url, **settings), EdgeEncoder(place, threads=4)
encoder.frames([photo])
with client:
    client.answer(photo)
    ended(child(lambda: None))
    ended(child(client.close))
    ended(child(gc.collect))
    client.answer(photo)
encoder.frames([photo])
""",
        *server,
    )


def test_a_fork_while_other_threads_ask(server: list[str]) -> None:
    run(
        """
client = sv.EdgeClient(place, url, **settings)
want, stop, wrong = client.answer(photo).logits, threading.Event(), []

def ask():
    while not stop.is_set():
        try:
            same(client.answer(photo).logits, want)
        except BaseException as error:
            wrong.append(repr(error))
            return

def work():
    same(client.answer(photo).logits, want)
    gc.collect()

threads = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(8):
    ended(child(work))
stop.set()
for thread in threads:
    thread.join(60)
    assert not thread.is_alive()
assert not wrong, wrong
client.close()
""",
        *server,
    )


def test_an_asynchronous_client_opens_its_own_connections_in_each_loop_and_process(server: list[str]) -> None:
    run(
        """
client = sv.AsyncEdgeClient(place, url, **settings)
want = asyncio.run(client.answer(photo)).logits

def work():
    same(asyncio.run(client.answer(photo)).logits, want)

ended(child(work))
work()

async def inside():
    asked = [asyncio.ensure_future(client.answer(photo)) for _ in range(3)]
    await asyncio.sleep(0)
    # In another thread, while three requests are under way.
    await asyncio.to_thread(lambda: ended(child(work, os._exit)))
    for answer in await asyncio.gather(*asked):
        same(answer.logits, want)
    await client.close()

asyncio.run(inside())
""",
        *server,
    )


@pytest.mark.parametrize("threads", [1, 3])
def test_an_encoder_runs_in_a_child_whatever_its_threads(exported: Path, threads: int) -> None:
    run(
        f"""
encoder = EdgeEncoder(place, threads={threads})
want = encoder.frames([photo] * 3)

def work():
    assert encoder.frames([photo] * 3) == want
    gc.collect()

def twice():
    work()
    ended(child(work))

ended(child(twice))
work()
""",
        exported / "edge",
        "",
        "",
    )


def test_a_fork_while_another_thread_encodes(exported: Path) -> None:
    run(
        """
encoder = EdgeEncoder(place)
want, stop = encoder.frames([photo] * 3), threading.Event()

def encode():
    while not stop.is_set():
        encoder.frames([photo] * 3)

def work():
    assert encoder.frames([photo] * 3) == want

thread = threading.Thread(target=encode, daemon=True)
thread.start()
for _ in range(5):
    ended(child(work))
stop.set()
thread.join(60)
assert not thread.is_alive()
""",
        exported / "edge",
        "",
        "",
    )


SPENDING = """
from splitveil.budget import Budget
from splitveil.errors import BudgetSpentError

budget, granted = Budget(place), []

def spend():
    mine = 0
    try:
        while True:
            budget.debit("anna", distinct=2)
            mine += 1
    except BudgetSpentError:
        granted.append(mine)

def work():
    spend()
    os.write(1, b"%d\\n" % granted[-1])

threads = [threading.Thread(target=spend, daemon=True) for _ in range(3)]
for thread in threads:
    thread.start()
children = [child(lambda: (granted.clear(), work())) for _ in range(5)]
for thread in threads:
    thread.join(60)
    assert not thread.is_alive()
for pid in children:
    ended(pid)
print(sum(granted))
"""


def test_a_ledger_is_debited_by_children_of_a_process_that_is_debiting(tmp_path: Path) -> None:
    Budget(tmp_path / "ledger", limit_bits=150)
    granted = run(SPENDING, tmp_path / "ledger", "", "")
    assert sum(map(int, granted.split())) == 150
    assert Budget(tmp_path / "ledger").left("anna") == 0


def test_a_transport_of_the_parent_is_refused_in_one_sentence(server: list[str]) -> None:
    run(
        """
import httpx
from splitveil.errors import RemoteError

transport = httpx.AsyncHTTPTransport(verify=ssl.create_default_context(cafile=ca or None))
client = sv.EdgeClient(place, url, transport=transport, **settings)
client.answer(photo)

def work():
    try:
        client.answer(photo)
    except RemoteError as error:
        assert "belongs to the process" in str(error)
    else:
        raise AssertionError

ended(child(work))
client.answer(photo)
client.close()
""",
        *server,
    )


def test_a_fork_waits_for_what_must_not_be_torn(monkeypatch: pytest.MonkeyPatch) -> None:
    from splitveil import forking

    entered, leave, forked = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        with forking.undivided():
            entered.set()
            leave.wait(HANGING)
            assert not forked.is_set()

    def fork() -> None:
        forking._before()
        forked.set()
        forking._in_parent()

    working, forker = threading.Thread(target=work), threading.Thread(target=fork)
    working.start()
    assert entered.wait(HANGING)
    forker.start()
    assert not forked.wait(0.05)
    leave.set()
    assert forked.wait(HANGING)
    working.join(HANGING)
    forker.join(HANGING)
    monkeypatch.setattr(forking, "_LONGEST_WAIT", 0.01)
    with forking.undivided():  # whoever forks in the midst of its own work does not wait for itself
        fork()
    with forking.undivided(), forking.undivided():
        pass
    assert forking._gate.running == 0
