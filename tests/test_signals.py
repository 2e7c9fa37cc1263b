"""Commands that are ended by a signal: one sentence, the shell's exit code, and nothing unfinished on disk."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from made_photos import scene

PROGRAM = "import splitveil.cli as cli; cli.main()"


def ended(command: list[str], number: int, folder: Path, *, after: str) -> tuple[int, list[str]]:
    """Exit code and stderr, from then on, of a command that gets a signal when its progress first names `after`."""
    environment = {**os.environ, "SPLITVEIL_CACHE": str(folder / "cache")}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *command], cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        text=True, env=environment,
    ) as process:  # fmt: skip
        assert process.stderr
        before = []
        for line in process.stderr:
            before.append(line)
            if after in line:
                break
        else:
            raise AssertionError("".join(before))
        process.send_signal(number)
        said = process.stderr.read().splitlines()
    return process.returncode, [line for line in said if not line[0].isdigit()]  # a report may come in between


def unfinished(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith(".")]


def test_a_training_that_is_terminated_says_that_it_goes_on(tmp_path: Path) -> None:
    call = ["train", "--data", "digit-pairs", "--out", "run", "--epochs", "400", "--recipe", "plain"]
    code, said = ended(call, signal.SIGTERM, tmp_path, after="1/400")
    assert (code, said) == (143, ["splitveil: stopped; the same command goes on after the last whole epoch"])
    assert (tmp_path / "run" / "checkpoint.safetensors").is_file()
    assert unfinished(tmp_path) == []


def test_a_command_that_is_interrupted_says_so(tmp_path: Path) -> None:
    pets = tmp_path / "pets"
    for seed in range(800):
        path = pets / ("cat", "dog")[seed % 2] / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        scene(90, 80, seed).save(path, compress_level=0)
    before = sorted(tmp_path.rglob("*"))
    code, said = ended(["data", f"folder:{pets}"], signal.SIGINT, tmp_path, after="decoding")
    assert (code, said) == (130, ["splitveil: stopped before it was done"])
    assert sorted(tmp_path.rglob("*")) == before
