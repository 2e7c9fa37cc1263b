"""Build what would be published into dist/, and check it: python scripts/release_check.py PYTHON

PYTHON is the interpreter whose environment the bill of materials lists: that of `make setup`, with all extras.
"""

import json
import runpy
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
# What may be in a source distribution beside src/splitveil: what builds and tests it, and what setuptools adds.
AT_TOP = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg", "src", "tests"}


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = runpy.run_path(str(ROOT / "src" / "splitveil" / "version.py"))["__version__"]
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", DIST)
    wheel, source = one("*.whl"), one("*.tar.gz")
    check_wheel(wheel, project, version)
    check_source(source)
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, source)  # metadata, and that the README renders
    bill = DIST / f"{wheel.stem}.cdx.json"
    run("cyclonedx-py", "environment", "--pyproject", ROOT / "pyproject.toml", "--output-reproducible",
        "--output-format", "JSON", "--output-file", bill, sys.argv[1])  # fmt: skip
    check_bill(bill, project)
    print("checked", *(path.relative_to(ROOT) for path in sorted(DIST.iterdir())))


def run(*command: object) -> None:
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True)


def one(pattern: str) -> Path:
    (path,) = DIST.glob(pattern)
    return path


def expect(holds: bool, sentence: str) -> None:
    if not holds:
        sys.exit(f"release check: {sentence}")


def check_wheel(wheel: Path, project: dict, version: str) -> None:
    """The package whole and nothing else, with the metadata of pyproject.toml."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        found = Parser().parsestr(archive.read(metadata).decode())
        expect(any(name.endswith("licenses/LICENSE") for name in archive.namelist()), "the wheel lacks LICENSE")
    wanted = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "splitveil").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    expect(names == wanted, f"the wheel differs from src/splitveil in {sorted(names ^ wanted)}")
    check_metadata(found, project, version)


def check_metadata(found: Message, project: dict, version: str) -> None:
    wanted = {
        "Name": project["name"], "Version": version, "License-Expression": project["license"],
        "Requires-Python": project["requires-python"], "Summary": project["description"],
        "Description-Content-Type": "text/markdown",
    }  # fmt: skip
    for key, value in wanted.items():
        expect(found[key] == value, f"{key} is {found[key]!r}, not {value!r}")
    extras = set(found.get_all("Provides-Extra") or [])
    expect(extras == set(project["optional-dependencies"]), f"the extras are {sorted(extras)}")


def check_source(source: Path) -> None:
    """Nothing but what builds and tests the package: no results, no data, no environment."""
    with tarfile.open(source) as archive:
        top = {PurePosixPath(name).parts[1] for name in archive.getnames() if len(PurePosixPath(name).parts) > 1}
    expect(top <= AT_TOP, f"the source distribution holds {sorted(top - AT_TOP)}")
    needed = {"LICENSE", "README.md", "pyproject.toml", "src"}
    expect(needed <= top, f"the source distribution lacks {sorted(needed - top)}")


def check_bill(bill: Path, project: dict) -> None:
    """CycloneDX, with every direct dependency and its version."""
    content = json.loads(bill.read_text(encoding="utf-8"))
    expect(content["bomFormat"] == "CycloneDX", f"{bill.name} is not CycloneDX")
    expect(content["metadata"]["component"]["name"] == project["name"], f"{bill.name} describes another project")
    listed = {component["name"].lower().replace("_", "-") for component in content["components"]}
    released = [extra for extra in project["optional-dependencies"] if extra not in ("dev", "release")]
    direct = sum((project["optional-dependencies"][extra] for extra in released), project["dependencies"])
    names = {requirement.split(">")[0].split("[")[0].lower() for requirement in direct}
    expect(names <= listed | {"splitveil"}, f"{bill.name} lacks {sorted(names - listed)}")


if __name__ == "__main__":
    main()
