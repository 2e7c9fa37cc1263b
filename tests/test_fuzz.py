"""The fuzzing itself: each planted fault is found, kept and repeated by the command it names. `make fuzz` runs it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import splitveil.budget
import splitveil.bundle.coding
from fuzz import answers, frames, ledgers, manifests, messages, oracle, requests, running, servers
from fuzz.http1 import answers_in, requests_in
from fuzz.mix import MILLION, MIX, cases, target
from fuzz.target import Target, generator
from fuzz.work import Piece, run
from splitveil.errors import RemoteError

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, str(ROOT / "tests" / "fuzz")]
Planted = tuple[type[Target], Any, str, Callable[[Any], Any], int]


class Seen:
    """What a worker shows of itself."""

    value = -1


def finds(kind: type[Target], count: int) -> int:
    """How many of the first cases are finds; ten are enough."""
    name = next(name for name, entry in MIX.items() if entry.place.endswith(f".{kind.__name__}"))
    with kind() as opened:
        return len(run(opened, Piece(name, 0, 0, count), Seen()))


def swapped(decode: Any) -> Any:
    """A decoder that takes the first number for the last one."""

    def wrong(data: bytes) -> Any:
        frame = decode(data)
        return replace(frame, values=frame.values[::-1].copy())

    return wrong


def ones(found: Any) -> Any:
    return lambda *given, **named: np.minimum(found(*given, **named), 1)


def never_wrong(read: Any) -> Any:
    """A reader that believes what is none."""

    def wrong(body: bytes, headers: Any, rows: int, classes: int) -> Any:
        try:
            return read(body, headers, rows, classes)
        except RemoteError:
            return np.zeros((rows, classes), np.float32)

    return wrong


def generous(left: Any) -> Any:
    return lambda self, subject: left(self, subject) + 0.001


PLANTED: dict[str, Planted] = {
    "frames that are read in another order": (frames.Frames, frames, "decode", swapped, 2000),
    "frames that are not refused": (frames.Frames, splitveil.wire, "_check_index", lambda _: lambda _: None, 5000),
    "integers without their sign": (messages.Messages, splitveil.bundle.coding, "dequantise", ones, 500),
    "digits that are cut off": (messages.Finite, splitveil.wire, "from_index", ones, 500),
    "a body that is read in another way": (requests.Requests, requests, "read_coefficients", ones, 500),
    "answers that are believed": (answers.Answers, answers, "read_logits", never_wrong, 500),
    "servers that are believed": (servers.Servers, splitveil.client.remote, "read_logits", never_wrong, 200),
    "a ledger that gives more": (ledgers.Ledgers, splitveil.budget.Budget, "left", generous, 50),
    "a manifest with a fault": (manifests.Manifests, manifests, "_manifest", lambda _: lambda *_: 1 / 0, 50),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_fault_is_found(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, place, name, spoil, count = PLANTED[what]
    assert finds(kind, count) == 0
    monkeypatch.setattr(place, name, spoil(getattr(place, name)))
    assert finds(kind, count) > 0


@pytest.mark.parametrize("name", MIX)
def test_cases_are_the_same_whenever_they_are_made(name: str) -> None:
    """So that a number and a seed repeat a find."""
    made = []
    for _ in range(2):
        with target(name) if name == "ledgers" else _unopened(name) as kind:
            rng = generator(3, 0)
            made.append([kind.case(rng) for _ in range(20)])
    assert made[0] == made[1]
    assert len(set(made[0])) > 10


@pytest.mark.parametrize("name", MIX)
def test_valid_cases_are_valid(name: str) -> None:
    """Else the fuzzing would never get beyond the first check."""
    if name in ("http1", "http2", "grpc"):
        pytest.skip("which a server must answer: see make fuzz")
    with target(name) as kind:
        for data in kind.seeds():
            kind.check(data)


def test_the_second_reader_reads_the_examples_of_the_format() -> None:
    text = (ROOT / "docs" / "wire-format.md").read_text()
    first, second, third = (
        oracle.read_frame(bytes.fromhex(line)) for line in re.findall(r"^    (53 56 01 .*)$", text, re.MULTILINE)
    )
    assert first is not None
    assert second is not None
    assert third is not None
    assert (first.coding, first.components, first.positions) == (oracle.INT8, 3, 2)
    assert first.numbers == [1, -1, 127, -127, 0, 5]
    assert second.numbers == [1, -2, 7, -7, 0, 0, -1, 3, 4]
    facts = oracle.Facts(third.identity, 3, (), ("index",), {}, True, (5, 7, 11))
    assert oracle.read_message(oracle.write_frame(third), facts) == [4, 0, 9]
    for frame in (first, second, third):
        damaged = bytearray(oracle.write_frame(frame))
        assert oracle.read_frame(bytes(damaged)) == frame
        damaged[-1] ^= 1
        assert oracle.read_frame(bytes(damaged)) is None


def test_other_parsers_of_http_see_what_stands_there() -> None:
    data = b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\nPOST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET /c HTTP"
    assert [(found.method, found.body, found.complete) for found in requests_in(data)] == [
        (b"HEAD", b"", True), (b"POST", b"abc", True),
    ]  # fmt: skip
    said = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nHTTP/1.1 400 Bad\r\ncontent-length: 2\r\n\r\n{}"
    assert [(found.status, found.body) for found in answers_in(said, [b"HEAD"])] == [(200, b""), (400, b"{}")]
    for wrong in (said[:-1], said + b"x", b"HTTP/1.1 200\r\n\r\n"):
        with pytest.raises(AssertionError):
            answers_in(wrong, [b"HEAD"])


def test_a_run_has_as_many_cases_as_are_asked_for() -> None:
    for total in (MILLION, 10 * MILLION):
        assert 0.999 * total <= sum(cases(name, total) for name in MIX) <= 1.001 * total
        assert min(cases(name, total) for name in MIX) >= 3000
    assert min(cases(name, 1000) for name in MIX) >= 1


def test_a_find_is_kept_and_repeated_and_a_run_goes_on(tmp_path: Path) -> None:
    spoiled = tmp_path / "spoiled"
    spoiled.mkdir()
    # Python starts every process of the run by this.
    (spoiled / "sitecustomize.py").write_text(
        "import splitveil.wire as wire\nright = wire.decode\n"
        "def decode(data):\n"
        "    if len(data) == 25: raise ZeroDivisionError('planted')\n"
        "    return right(data)\n"
        "wire.decode = decode\n"
    )
    paths = [str(spoiled), *filter(None, [os.environ.get("PYTHONPATH")])]
    broken = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    options = ["--folder", str(tmp_path / "found"), "--seed", "5", "--workers", "1"]
    done = _said([*COMMAND, "frames", "--cases", "300", *options], broken)
    assert done.returncode == 1
    repeats = re.findall(r"(?:repeat|or): +python tests/fuzz (.*)", done.stderr)
    assert repeats
    for line in repeats[:2]:
        words = line.split()
        again = _said([*COMMAND, *words, *(options if "--first" in words else [])], broken)
        assert again.returncode == 1
        assert "planted" in again.stderr
        assert _said([*COMMAND, *words, *(options if "--first" in words else [])], dict(os.environ)).returncode == 0
    assert _said([*COMMAND, "frames", "--cases", "300", *options], dict(os.environ)).returncode == 0


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "PIECE_SECONDS", 0.005)
    whole = running.Run(["frames"], 1000, 0, 1, tmp_path)
    assert [piece.count for piece in whole.pieces] == [200] * 5
    tmp_path.mkdir(exist_ok=True)
    whole._take(whole.pieces[1], [], 0.5)
    rest = running.Run(["frames"], 1000, 0, 1, tmp_path)
    assert [piece.first for piece in rest.pieces] == [0, 400, 600, 800]
    assert (rest.done["frames"], rest.seconds["frames"]) == (200, 0.5)
    assert len(running.Run(["frames"], 1000, 0, 2, tmp_path).pieces) == 5  # another seed is another run
    state = next(tmp_path.glob("*.json"))
    state.write_text(json.dumps({**json.loads(state.read_text()), "commit": "another"}))
    assert len(running.Run(["frames"], 1000, 0, 1, tmp_path).pieces) == 5


@pytest.mark.parametrize("end", ["os._exit(3)", "__import__('time').sleep(1000)"], ids=["dies", "hangs"])
def test_a_process_that_dies_or_hangs_is_a_find(end: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nimport splitveil.wire as wire\nright = wire.decode\n"
        "def decode(data):\n"
        f"    if data[8:9] == b'\\7': {end}\n"
        "    return right(data)\n"
        "wire.decode = decode\n"
    )
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = _said(
        [*COMMAND, "frames", "--cases", "100", "--workers", "1", "--hanging", "3", "--folder", str(tmp_path / "found")],
        {**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 1
    assert "the process ended with" in done.stderr
    (kept,) = [path for path in (tmp_path / "found").iterdir() if not path.suffix]
    assert kept.read_bytes()[8:9] == b"\x07"


@pytest.mark.parametrize("name", ["frames", "requests"])
def test_guided_by_coverage(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="Atheris has no package for this version of Python")
    done = _said([*COMMAND, name, "--guided", "--cases", "2000", "--folder", str(tmp_path)], dict(os.environ))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Done 2000" in done.stderr


def _unopened(name: str) -> Any:
    """A target whose servers are not started: it makes cases all the same."""
    return nullcontext(target(name))


def _said(command: list[str], environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
