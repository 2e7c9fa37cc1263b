"""The built wheel with the base dependencies alone: the edge, in an environment that has no torch."""

import os
import shutil
import subprocess
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def call(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, **options)  # type: ignore[call-overload, no-any-return]


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a fresh environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("edge")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / "bin"
    pip = [programs / "python", "-m", "pip"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    installed = call(*pip, "install", "-c", ROOT / "constraints.txt", *needed)
    if installed.returncode and not os.environ.get("CI"):
        pytest.skip(f"the base dependencies cannot be installed here: {installed.stderr.strip()[-300:]}")
    assert installed.returncode == 0, installed.stderr
    build = call(*pip, "wheel", folder, "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    assert build.returncode == 0, build.stderr
    added = call(*pip, "install", "--no-index", *folder.glob("splitveil-*.whl"))
    assert added.returncode == 0, added.stderr
    return programs


@pytest.mark.slow
def test_the_wheel_runs_the_edge_without_torch(edge: Path, tmp_path: Path) -> None:
    heavy = ("torch", "scipy", "sklearn", "matplotlib", "safetensors", "onnx", "starlette", "grpc")
    program = (
        "import importlib.util, numpy as np, splitveil\n"
        "from splitveil.wire import Frame, decode, encode\n"
        "from importlib.resources import files\n"
        "frame = decode(encode(Frame(b'edge', np.eye(3, dtype=np.float32))))\n"
        "assert frame.identity == b'edge' and frame.values.trace() == 3\n"
        "assert files('splitveil').joinpath('py.typed').is_file()\n"
        "from splitveil import AsyncEdgeClient, EdgeClient\n"
        f"print([name for name in {heavy} if importlib.util.find_spec(name)], splitveil.__file__)\n"
    )
    done = call(edge / "python", "-c", program, cwd=tmp_path)
    assert done.stderr == ""
    assert done.stdout.startswith("[] ")
    assert str(edge.parent) in done.stdout  # the wheel, not the checkout

    version = call(edge / "splitveil", "--version", cwd=tmp_path)
    assert (version.returncode, version.stderr) == (0, "")
    assert version.stdout.startswith("splitveil ")

    explained = call(edge / "splitveil", "infer", "--help", cwd=tmp_path)
    assert (explained.returncode, explained.stderr) == (0, "")
    assert "--show-wire" in explained.stdout
    mistake = call(edge / "splitveil", "infer", "bundle", "a.jpg", "--url", "https://server.example", cwd=tmp_path)
    assert (mistake.returncode, mistake.stdout) == (2, "")
    assert mistake.stderr.startswith("splitveil: bundle is no bundle")

    training = call(edge / "splitveil", "train", "--data", "digit-pairs", "--out", "x", cwd=tmp_path)
    assert (training.returncode, training.stdout) == (2, "")
    assert training.stderr.startswith("splitveil: this command needs the package ")
    assert training.stderr.endswith(": pip install 'splitveil[train]'\n")
    assert training.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
