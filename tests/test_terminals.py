"""What a terminal cannot show is escaped, since it was paid for; and who reads no more ends a command quietly."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from made_servers import Answering, listening
from splitveil.bundle import read_edge, write_bundle

NAMES = ("日本", "caf\u00e9", "\x1b[2Jgone", "two\nlines")


@pytest.fixture(scope="module")
def named(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The edge bundle with names of classes that few terminals can show, and a photo beside it."""
    folder = tmp_path_factory.mktemp("named")
    bundle = read_edge(exported / "edge")
    classes = tuple(f"{NAMES[index % 4]}{index}" for index in range(len(bundle.manifest.classes)))
    write_bundle(folder / "edge", bundle.manifest.model_copy(update={"classes": classes}), bundle.files)
    Image.fromarray(np.zeros((16, 32), np.uint8)).save(folder / "日本.png")
    return folder


def splitveil(*arguments: object, encoding: str, **settings: Any) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "splitveil", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=120, check=False, env=environment, **settings)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8", "ascii:surrogateescape"])
def test_every_answer_is_shown(exported: Path, named: Path, encoding: str) -> None:
    server = Answering(exported / "server")
    with listening(server) as (url, _):
        asked = ("infer", named / "edge", named / "日本.png", "--url", url, "--quiet")
        table = splitveil(*asked, encoding=encoding)
        one = splitveil(*asked, "--json", encoding=encoding)
    assert (table.returncode, table.stderr, one.returncode, one.stderr) == (0, b"", 0, b"")
    (answer,) = json.loads(one.stdout)["answers"]
    name = encoding.partition(":")[0]
    shown = answer["label"].replace("\x1b", "\\x1b").replace("\n", "\\n")
    assert shown.encode(name, "backslashreplace") in table.stdout
    assert "日本.png".encode(name, "backslashreplace") in table.stdout
    assert b"\x1b" not in table.stdout


def test_names_in_errors_are_escaped(named: Path) -> None:
    for name in ("日本", "\x1b[2J", "a\nb", "\udcff"):
        done = splitveil("budget", named / name, encoding="ascii")
        assert done.returncode == 2
        assert done.stderr.startswith(b"splitveil: there is no budget")
        assert done.stderr.count(b"\n") == 1
        assert done.stderr.isascii()
        assert b"\x1b" not in done.stderr


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_pipe_ends_quietly(exported: Path, named: Path, closed: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "splitveil", "infer", str(named / "edge"), str(named / "日本.png"), "--url"]
    other = "stderr" if closed == "stdout" else "stdout"
    try:
        with listening(Answering(exported / "server")) as (url, _):
            for options in ([], ["--json"]):
                streams: Any = {closed: writer, other: subprocess.PIPE}
                done = subprocess.run([*command, url, *options], timeout=120, check=False, **streams)
                assert done.returncode == 0
                if closed == "stdout":
                    assert done.stderr == b"1/1 reading\n1/1 asking\n"
                else:
                    assert b"frame" in done.stdout
    finally:
        os.close(writer)
