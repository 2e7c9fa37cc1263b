"""The client and its budget: debited before the first byte of a frame leaves, once, and refused whole; the commands."""

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import splitveil as sv
from made_bundles import made_finite_bundle
from made_servers import Answering, listening
from splitveil import cli
from splitveil.client import EdgeClient, Patience
from splitveil.errors import BudgetError, BudgetSpentError, RemoteError, WireError

URL = "https://server.example"
AT_ONCE = Patience(retries=2, first_wait=0)


@pytest.fixture(scope="module")
def finite(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles of eight different messages: three bits each."""
    folder = tmp_path_factory.mktemp("finite") / "bundle"
    made_finite_bundle(folder, exported, (4, 2))
    return folder


@pytest.fixture
def server(finite: Path) -> Answering:
    return Answering(finite / "server")


@pytest.fixture
def pictures() -> list[np.ndarray]:
    return list(sv.load_data("digit-pairs").test.images(slice(0, 5)).numpy())


@pytest.fixture
def budget(tmp_path: Path) -> sv.Budget:
    return sv.Budget(tmp_path / "budget", limit_bits=12)


@pytest.fixture
def connect(finite: Path, server: Answering, budget: sv.Budget) -> Iterator[Any]:
    made: list[EdgeClient] = []

    def connect(handler: Callable[[httpx.Request], Any] = server, **settings: Any) -> EdgeClient:
        settings = {"budget": budget, "patience": AT_ONCE, **settings}
        made.append(EdgeClient(finite / "edge", URL, transport=httpx.MockTransport(handler), **settings))
        return made[-1]

    yield connect
    for client in made:
        client.close()


def test_every_photo_is_debited_before_its_frame_leaves(
    connect: Any, server: Answering, budget: sv.Budget, pictures: list[np.ndarray]
) -> None:
    spent_on_arrival = []

    def handler(request: httpx.Request) -> httpx.Response:
        spent_on_arrival.append((request.method, sv.Budget(budget.path).spent("anna")))
        return server(request)

    client = connect(handler)
    plain = connect(budget=None).answers(pictures[:3])
    found = [*client.answers(pictures[:2], subject="anna"), client.answer(pictures[2], subject="anna")]
    assert spent_on_arrival == [("GET", 0), ("POST", 6), ("POST", 9)]
    assert [one.frame for one in found] == [one.frame for one in plain]
    assert (budget.spent("anna"), budget.spent("bert")) == (9, 0)
    client.answer(pictures[2], subject="bert")
    assert (budget.spent("anna"), budget.spent("bert")) == (9, 3)


def test_what_exceeds_it_is_not_sent_and_not_debited(
    connect: Any, server: Answering, budget: sv.Budget, pictures: list[np.ndarray]
) -> None:
    client = connect()
    with pytest.raises(BudgetSpentError, match="up to 15 bits of a subject of whom 12 of 12 bits"):
        client.answers(pictures, subject="anna")
    assert not server.inferences
    assert budget.spent("anna") == 0
    client.answers(pictures[:4], subject="anna")
    server.requests.clear()
    with pytest.raises(BudgetSpentError):
        client.answer(pictures[0], subject="anna")
    assert not server.requests
    assert client.answer(pictures[0], subject="bert").index >= 0


def test_a_request_that_is_repeated_is_debited_once(
    connect: Any, server: Answering, budget: sv.Budget, pictures: list[np.ndarray]
) -> None:
    server.next = [httpx.Response(503), httpx.ReadError("gone")]
    assert connect().answer(pictures[0], subject="anna").sent.attempts == 3
    assert len({request.content for request in server.inferences}) == 1
    assert budget.spent("anna") == 3


def test_a_bundle_that_moved_is_asked_again_for_the_same_debit(
    connect: Any, server: Answering, budget: sv.Budget, pictures: list[np.ndarray]
) -> None:
    client = connect()
    client.answer(pictures[0], subject="anna")
    server.versions, server.identity = {"7": server.identity}, "0" * 64
    server.next = [httpx.Response(404)]
    assert client.answer(pictures[1], subject="anna").index >= 0
    assert [request.url.path.endswith("/versions/7/infer") for request in server.inferences] == [False, False, True]
    assert budget.spent("anna") == 6


def test_what_was_never_answered_stays_debited(
    connect: Any, server: Answering, budget: sv.Budget, pictures: list[np.ndarray]
) -> None:
    for failure in (httpx.ConnectError("gone"), httpx.Response(503), httpx.Response(400)):
        server.next = [failure] * 3
        with pytest.raises(RemoteError):
            connect().answer(pictures[0], subject="anna")
        server.next = []
    assert budget.spent("anna") == 9


def test_a_server_of_another_bundle_costs_nothing(
    connect: Any, server: Answering, budget: sv.Budget, pictures: list[np.ndarray]
) -> None:
    server.identity = "0" * 64
    with pytest.raises(RemoteError, match="holds another bundle"):
        connect().answer(pictures[0], subject="anna")
    assert budget.spent("anna") == 0


def test_a_budget_that_cannot_be_used_sends_nothing(
    connect: Any, server: Answering, budget: sv.Budget, pictures: list[np.ndarray]
) -> None:
    client = connect()
    budget.path.write_bytes(b"nonsense" * 512)
    with pytest.raises(BudgetError, match="damaged or no budget"):
        client.answer(pictures[0], subject="anna")
    budget.path.unlink()
    with pytest.raises(BudgetError, match="cannot be opened"):
        client.answer(pictures[0], subject="anna")
    assert not server.inferences


def test_budget_and_subject_go_together(
    connect: Any, server: Answering, budget: sv.Budget, pictures: list[np.ndarray]
) -> None:
    with pytest.raises(BudgetError, match="go together"):
        connect().answer(pictures[0])
    with pytest.raises(BudgetError, match="go together"):
        connect(budget=None).answer(pictures[0], subject="anna")
    with pytest.raises(BudgetError, match="not empty"):
        connect().answer(pictures[0], subject="")
    assert not server.inferences
    assert budget.spent("anna") == 0


def test_only_a_certified_bundle_has_a_budget(exported: Path, budget: sv.Budget) -> None:
    for kind in (sv.EdgeClient, sv.AsyncEdgeClient):
        with pytest.raises(BudgetError, match="the bundle pairs is not certified"):
            kind(exported / "edge", URL, budget=budget)


def test_only_frames_of_the_bundle_are_debited_and_sent(
    connect: Any, exported: Path, server: Answering, budget: sv.Budget, pictures: list[np.ndarray]
) -> None:
    client = connect()
    good = client.encoder.frames(pictures[:1])
    others = sv.EdgeClient(exported / "edge", URL)
    with others:
        stranger = others.encoder.frames(pictures[:1])
    for frames in (stranger, [*good, b""], [good[0] + b"\0"]):
        with pytest.raises(WireError):
            client.ask(frames, subject="anna")
    assert not server.inferences
    assert budget.spent("anna") == 0
    assert len(client.ask(good, subject="anna")) == 1
    assert client.ask([], subject="anna") == []
    assert budget.spent("anna") == 3


def test_several_bundles_use_up_one_budget(
    connect: Any, exported: Path, tmp_path: Path, budget: sv.Budget, pictures: list[np.ndarray]
) -> None:
    made_finite_bundle(tmp_path / "next", exported, (32, 16), seed=1)
    other = Answering(tmp_path / "next" / "server")
    connect().answer(pictures[0], subject="anna")
    with sv.EdgeClient(tmp_path / "next" / "edge", URL, transport=httpx.MockTransport(other), budget=budget) as rotated:
        rotated.answer(pictures[0], subject="anna")
        assert budget.left("anna") == 0
        with pytest.raises(BudgetSpentError):
            rotated.answer(pictures[0], subject="anna")
    with pytest.raises(BudgetSpentError):
        connect().answer(pictures[0], subject="anna")


def test_requests_at_once_never_exceed_it(
    finite: Path, server: Answering, budget: sv.Budget, pictures: list[np.ndarray]
) -> None:
    async def main() -> list[Any]:
        async with sv.AsyncEdgeClient(
            finite / "edge", URL, transport=httpx.MockTransport(server), budget=budget
        ) as client:
            asked = (client.answer(picture, subject="anna") for picture in [*pictures, *pictures])
            return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(asyncio.wait_for(main(), 120))
    refused = [one for one in found if isinstance(one, BudgetSpentError)]
    assert (len(found) - len(refused), len(server.inferences)) == (4, 4)
    assert budget.left("anna") == 0


def test_more_photos_than_one_request_carries_are_refused_before_the_first(
    connect: Any, server: Answering, budget: sv.Budget, pictures: list[np.ndarray]
) -> None:
    client = connect()
    client.batch = client._client.batch = 2
    with pytest.raises(BudgetSpentError, match="up to 15 bits of a subject of whom 12 of 12 bits"):
        client.answers(pictures, subject="anna")
    assert not server.inferences
    assert budget.spent("anna") == 0
    assert len(client.answers(pictures[:4], subject="anna")) == 4
    assert len(server.inferences) == 2


def test_what_was_paid_for_is_shown_although_the_rest_fails(
    splitveil: Any, finite: Path, server: Answering, pictures: list[np.ndarray], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    photo, file = tmp_path / "a.png", tmp_path / "ledger"
    Image.fromarray(np.rint(pictures[0][0] * 255).astype(np.uint8)).save(photo)
    monkeypatch.setattr("splitveil.client.remote.LARGEST_BATCH", 2)
    with listening(server) as (url, _):
        asked = ("infer", finite / "edge", photo, photo, photo, "--url", url, "--quiet", "--retries", 0, "--json")
        server.next = [None, httpx.Response(503)]
        code, out, err = splitveil(*asked, "--budget", file, "--subject", "anna", "--budget-bits", 24)
    assert code == 2
    found = json.loads(out)
    assert [len(found["answers"]), found["bits_left"]] == [2, 24 - 9]
    assert "2 of 3 photos were answered before this" in err
    assert "has no room for the request" in err


@pytest.fixture
def splitveil(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def call(*arguments: object) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["splitveil", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return (exit_.value.code, *capsys.readouterr())

    return call


def test_the_commands(
    splitveil: Any, finite: Path, exported: Path, server: Answering, pictures: list[np.ndarray], tmp_path: Path
) -> None:
    photo, file = tmp_path / "a.png", tmp_path / "ledger"
    Image.fromarray(np.rint(pictures[0][0] * 255).astype(np.uint8)).save(photo)
    with listening(server) as (url, _):
        asked = ("infer", finite / "edge", photo, photo, "--url", url, "--quiet", "--json")
        spending = (*asked, "--budget", file, "--subject", "anna")
        code, out, err = splitveil(*spending)
        assert (code, out) == (2, "")
        assert "give a limit in bits to begin one" in err
        code, out, err = splitveil(*spending, "--budget-bits", 7)
        assert (code, err) == (0, f"note: began the budget {file}; nothing that was told before counts in it\n")
        assert json.loads(out)["bits_left"] == 1
        sent = len(server.inferences)
        for options, sentence in (
            ((), "1 of 7 bits in all are left, and was not sent"),
            (("--budget-bits", 9), "allows 7 bits in all, not 9"),
        ):  # fmt: skip
            code, out, err = splitveil(*spending, *options)
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert sentence in err
        for options, sentence in (
            (("--budget", file), "go together"), (("--subject", "anna"), "go together"),
            (("--budget-bits", 9), "name its file with --budget"),
        ):  # fmt: skip
            code, out, err = splitveil(*asked, *options)
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert sentence in err
        unused = ("--url", url, "--budget", tmp_path / "unused", "--budget-bits", 7, "--subject", "anna")
        for bundle, sentence in ((exported / "edge", "not certified"), (tmp_path / "nowhere", "nowhere")):
            code, _, err = splitveil("infer", bundle, photo, *unused)
            assert code == 2
            assert sentence in err
        assert not (tmp_path / "unused").exists()
        assert len(server.inferences) == sent
        assert json.loads(splitveil(*asked)[1])["bits_left"] is None
        code, _, err = splitveil(*asked[:-1], "--budget", file, "--subject", "bert")
        assert (code, err) == (0, "note: left of this subject's budget: 1 bit\n")
    look = ("budget", file, "--subject", "anna")
    code, out, err = splitveil(*look, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "budget": str(file), "limit_bits": 7, "window_seconds": None, "subject": "anna", "spent_bits": 6, "left_bits": 1
    }  # fmt: skip
    code, out, _ = splitveil(*look, "--bits", 24, "--window", 60)
    assert code == 0
    assert "24 bits in 60 s" in out
    rows = {cells[1].strip(): cells[2].strip() for line in out.splitlines() if len(cells := line.split("│")) == 4}
    assert (rows["spent bits"], rows["left bits"], rows["window seconds"]) == ("6", "18", "60")
    assert "30 bits in 60 s" in splitveil("budget", file, "--bits", 30)[1]  # another limit leaves the window
    assert "forever" in splitveil("budget", file, "--bits", 24, "--forever")[1]
    assert "began the budget" in splitveil("budget", tmp_path / "mistyped", "--bits", 24)[2]
    for wrong in ((tmp_path / "none",), (photo,), (file, "--bits", "0"), (file, "--window", "5"), (file, "--forever"),
                  (file, "--bits", "24", "--window", "5", "--forever")):  # fmt: skip
        code, out, err = splitveil("budget", *wrong)
        assert (code, out, err.count("\n")) == (2, "", 1)
