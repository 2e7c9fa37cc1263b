"""Write requirements/*.txt anew: every package with its version and the SHA-256 of each file that the index lists.

    python scripts/lock.py        # needs uv, and pip set up for the index that has the CPU build of torch

cpu.txt      the CPU build of torch, which `make setup` tries first
setup.txt    all that `make setup` installs; versions are those of constraints.txt
cuda.txt     the libraries that torch needs where it was built for CUDA, as the default build for Linux is
release.txt  the tools of `make release-check` and of this script
"""

import hashlib
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "requirements"
EXTRAS = ("train", "serve", "sign", "ray", "dev")
PYTHON = "3.11"  # the oldest that is supported; markers cover the newer ones
# Not an extra: `--no-deps`, as only the Triton binary inside it is wanted. setuptools builds the editable install.
ALONE = "nvidia-pytriton\nsetuptools\n"
CUDA = re.compile(r"(nvidia|cuda|triton)\b(?!-pytriton|client)")
HASH = re.compile(r"--hash=(sha256:[0-9a-f]{64})")


def main() -> None:
    extras = [part for extra in EXTRAS for part in ("--extra", extra)]
    pinned = ["--constraint", "constraints.txt"]
    found = compiled("pyproject.toml", *extras, *pinned) | compiled("-", "--no-deps", *pinned, given=ALONE)
    cuda = {head: hashes for head, hashes in found.items() if CUDA.match(head)}
    (torch,) = (head for head in found if head.startswith("torch=="))
    cpu = f"{torch}+cpu"
    write("cpu.txt", {cpu: kept(cpu) | {hash_of(cpu)}})
    write("setup.txt", {head: hashes for head, hashes in found.items() if head not in cuda})
    write("cuda.txt", cuda)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tools = "\n".join(project["optional-dependencies"]["release"])
    write("release.txt", compiled("-", *pinned, given=tools))


def compiled(*arguments: str, given: str = "") -> dict[str, set[str]]:
    """Hashes of each pinned requirement, by "name==version ; marker"."""
    command = [
        "uv", "pip", "compile", "--quiet", "--universal", "--python-version", PYTHON, "--generate-hashes",
        "--no-header", "--no-annotate", *arguments,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, input=given, stdout=subprocess.PIPE, text=True, check=True)
    return read(done.stdout)


def read(text: str) -> dict[str, set[str]]:
    """Hashes of each requirement of a file."""
    lines = text.replace("\\\n", " ").splitlines()
    return {line.split(" --hash")[0].strip(): set(HASH.findall(line)) for line in lines if "==" in line}


def kept(requirement: str) -> set[str]:
    """Hashes of the last run for the same requirement: builds for other machines than this one."""
    path = FOLDER / "cpu.txt"
    return read(path.read_text(encoding="utf-8")).get(requirement, set()) if path.is_file() else set()


def hash_of(requirement: str) -> str:
    """Of the file that pip takes here; its index lists no hashes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, requirement]
        subprocess.run(command, check=True)
        (path,) = Path(folder).iterdir()
        with path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def write(name: str, found: dict[str, set[str]]) -> None:
    blocks = [
        " \\\n".join([head, *(f"    --hash={digest}" for digest in sorted(found[head]))])
        for head in sorted(found, key=str.lower)
    ]
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / name).write_text(
        "# Written by scripts/lock.py; change pyproject.toml or constraints.txt and run 'make lock'.\n"
        + "\n".join(blocks)
        + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
