"""House rules: imports in one direction, an edge without torch, one place for each thing, short files and functions."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import splitveil as sv

SOURCE = Path(sv.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
# From the ground up: a room imports from those before it only. The package's own face and `python -m` stand outside.
ROOMS = (
    "version", "errors", "telemetry", "message", "certificate", "codec", "wire", "extras", "files", "doctor",
    "forking", "ledger", "budget", "statistics", "profile", "bundle", "serve", "picture", "client", "tensors", "data",
    "models", "split", "soundness", "linear", "counting", "obfuscate", "exchange", "cost", "train", "runs", "attack",
    "baselines", "measure", "profiling", "export", "deploy", "figures", "report", "experiments", "demo", "cli",
)  # fmt: skip
FACES = ("__init__", "__main__")
EDGE = (
    "version", "errors", "telemetry", "message", "certificate", "codec", "wire", "extras", "files", "doctor",
    "forking", "ledger", "budget",
    "statistics", "profile", "bundle", "picture", "client", "cli",
)  # fmt: skip
HEAVY = ("torch", "scipy", "sklearn", "matplotlib", "safetensors", "onnx", "onnxscript")


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Full names of all that a file imports, wherever in it."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def names(path: Path) -> Iterator[str]:
    """The last part of everything that a file refers to."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Name):
            yield node.id


def relative(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def test_every_room_is_on_the_list_and_every_listed_room_exists() -> None:
    assert {room(path) for path in FILES} - set(FACES) == set(ROOMS)


@pytest.mark.parametrize("path", [path for path in FILES if room(path) not in FACES], ids=relative)
def test_imports_go_one_way(path: Path) -> None:
    earlier = ROOMS[: ROOMS.index(room(path)) + 1]
    used = {name.split(".")[1] for name in imports(path) if name.startswith("splitveil.")}
    assert "splitveil" not in set(imports(path))
    assert used <= set(earlier)
    if path.parent == SOURCE:
        assert room(path) not in used  # a file that is a room of its own does not import itself


def test_public_names_resolve_and_are_documented() -> None:
    assert len(set(sv.__all__)) == len(sv.__all__)
    assert set(sv.__all__) <= set(dir(sv))
    for name in sv.__all__:
        value = getattr(sv, name)
        assert name == "__version__" or value.__doc__, name
    for name, home in sv._ROOMS.items():
        assert getattr(importlib.import_module(home), name) is getattr(sv, name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = sv.nonsense


WITHOUT = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""


def without_extras(program: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in an interpreter that has the base installation only."""
    return subprocess.run([sys.executable, "-c", WITHOUT + program], capture_output=True, text=True, timeout=120)


def test_the_server_runs_without_torch() -> None:
    done = without_extras(f"import splitveil.serve\nassert not set({HEAVY}) & set(sys.modules)\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_edge_runs_without_the_extra() -> None:
    done = without_extras(
        f"for room in {EDGE}: __import__('splitveil.' + room)\n"
        "import numpy as np\n"
        "from splitveil.wire import Frame, decode, encode\n"
        "assert decode(encode(Frame(b'abcd', np.ones((2, 3), np.float32)))).values.sum() == 6\n"
        f"assert not set({HEAVY}) & set(sys.modules)\n"
        "import splitveil as sv\n"
        "try: sv.SplitModel\n"
        "except sv.MissingExtraError as error: print(error)\n"
    )
    assert done.stderr == ""
    assert done.stdout == "splitveil.SplitModel needs the package 'torch': pip install 'splitveil[train]'\n"


@pytest.mark.parametrize(
    ("arguments", "code", "out", "err"),
    [
        (["--version"], 0, f"splitveil {sv.__version__}", ""),
        (["--help"], 0, "Private split inference", ""),
        (["attack", "--help"], 0, "--operator", ""),
        (["train", "--data", "digit-pairs", "--out", "x"], 2, "", "pip install 'splitveil[train]'\n"),
        (["demo"], 2, "", "pip install 'splitveil[train]'\n"),
        (["doctor"], 0, "pip install 'splitveil[train]'", ""),
        (["-VV"], 0, "telemetry: off", ""),
    ],
)
def test_the_command_line_without_the_extra(arguments: list[str], code: int, out: str, err: str) -> None:
    done = without_extras(f"sys.argv = {['splitveil', *arguments]}\nfrom splitveil.cli import main\nmain()")
    assert done.returncode == code
    assert out in done.stdout
    assert bool(out) == bool(done.stdout)
    assert done.stderr.endswith(err)
    assert done.stderr.count("\n") == bool(err)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_each_thing_has_one_place(path: Path) -> None:
    used, imported, home = set(names(path)), set(imports(path)), room(path)
    if home != "linear":
        assert not used & {"svd", "svdvals", "svd_lowrank", "eigh", "eigvalsh", "eig", "pca_lowrank"}
    if home not in ("wire", "data"):  # data reads the headers of published files; wire reads what strangers send
        assert not any(name.split(".")[0] == "struct" for name in imported)
    if home != "cli":
        assert not used & {"print", "echo", "secho"}
        assert not any(name.split(".")[0] in {"typer", "rich", "click"} for name in imported)
    if home not in ("report", "figures", "experiments"):
        assert not any(name.split(".")[0] == "matplotlib" for name in imported)
    assert not any(name.split(".")[0] in {"pickle", "cloudpickle", "dill", "joblib", "shelve"} for name in imported)
    loads = [
        node for node in ast.walk(tree(path)) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert not loads


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]
            assert length <= 60, f"{node.name} has {length} lines"
