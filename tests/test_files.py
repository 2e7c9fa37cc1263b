"""Files that are there whole or not at all, also where their writer is killed."""

import subprocess
import sys
from pathlib import Path

from splitveil.files import write_bytes, write_with

HANGING = 60.0
WRITER = """
import sys, time
from pathlib import Path
from splitveil.files import write_with
def save(temporary):
    Path(temporary).write_bytes(b"half")
    print("writing", flush=True)
    sys.stdin.readline()
write_with(Path(sys.argv[1]), save)
"""


def writer(path: Path) -> "subprocess.Popen[str]":
    """A process in the midst of writing a file, until it is sent a line."""
    command = [sys.executable, "-c", WRITER, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    others = [tmp_path / ".checkpoint.safetensors", tmp_path / ".other.0123456789abcdef"]
    for other in others:
        other.write_bytes(b"not ours")
    with writer(path) as process:
        process.kill()
    assert len(list(tmp_path.iterdir())) == 3
    write_bytes(path, b"whole")
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])
    assert path.read_bytes() == b"whole"


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    with writer(path) as process:
        write_bytes(path, b"first")
        assert path.read_bytes() == b"first"
        process.communicate("go on\n", HANGING)
    assert process.returncode == 0
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"half"]


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    class StopHereError(Exception):
        pass

    def save(temporary: str) -> None:
        Path(temporary).write_bytes(b"half")
        raise StopHereError

    try:
        write_with(tmp_path / "file", save)
    except StopHereError:
        assert not list(tmp_path.iterdir())
    else:
        raise AssertionError("it was written")
