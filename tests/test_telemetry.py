"""Nothing but the frame leaves: no report to a maker, no name look-up, no file that the documents do not name."""

import ast
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from made_traces import SOURCE, Trace, Traced
from splitveil.telemetry import OFF

ROOT = Path(__file__).parents[1]
PYTHON = sys.executable
ENCODE = """
import sys
from splitveil.client import EdgeEncoder
assert len(EdgeEncoder(sys.argv[1]).frames([sys.argv[2]])) == 1
"""
EXPORT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import splitveil as sv
from splitveil.export import export
from splitveil.figures import profile_figure, write_figure
from splitveil.profile import write_profile

out = Path(sys.argv[1])
data = sv.load_data("digit-pairs")
model = sv.Table1Net(data.input_shape, data.n_classes).eval()
images = data.val.images(slice(0, 64))
profile = sv.measure_profile(model, images, cuts=[4], kept=[8], epsilons=[], codings=["float32"])
write_profile(out / "profile.json", profile)
write_figure(out / "profile.svg", profile_figure(profile))
export(model, data, out / "bundles", cut=4, method="top", m=8, name="pairs")
"""


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Traced]:
    """What the profiler and the exporter wrote into a folder, and their trace."""
    folder = tmp_path_factory.mktemp("profiled")
    out = folder / "out"
    out.mkdir()
    traced = Traced([PYTHON, "-c", EXPORT, out], folder / "run")
    code, _, err = traced.end()
    assert code == 0, err
    return out, traced


@pytest.fixture(scope="module")
def bundles(profiled: tuple[Path, Traced]) -> Path:
    return profiled[0] / "bundles"


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.linear_gradient("L").save(path)
    return path


def test_the_profiler_and_the_exporter_write_where_they_are_told(profiled: tuple[Path, Traced]) -> None:
    out, traced = profiled
    assert {"edge", "server"} <= {path.name for path in (out / "bundles").iterdir()}
    caches = [traced.home / ".cache", traced.home / ".config"]
    assert traced.trace().unexpected(folders=[out, traced.temporary, *caches]) == []
    kept = sorted(str(path.relative_to(traced.home)) for path in traced.home.glob(".*/*"))
    assert kept == [".cache/matplotlib", ".config/matplotlib"]  # as docs/threat-model.md says


def test_the_server_and_a_client_exchange_frames_and_nothing_else(bundles: Path, photo: Path, tmp_path: Path) -> None:
    ports = ("--http-port", "0", "--grpc-port", "0", "--json")
    server = Traced([PYTHON, "-m", "splitveil", "serve", bundles / "server", *ports], tmp_path / "server")
    try:
        url = json.loads(server.stdout.readline())["rest"]
        command = [PYTHON, "-m", "splitveil", "infer", bundles / "edge", photo, "--url", url, "--json"]
        edge = Traced(command, tmp_path / "edge")
        code, out, err = edge.end()
        assert code == 0, err
        assert len(json.loads(out)["answers"]) == 1
    finally:
        os.kill(server.child, signal.SIGTERM)
        code, _, err = server.end()
    assert code == 0, err
    assert server.trace().unexpected() == []
    assert edge.trace().peers == {url.removeprefix("http://")}  # so that the trace is known to see connections
    assert edge.trace().unexpected(peers=[url.removeprefix("http://")]) == []


def encoding(bundles: Path, photo: Path, folder: Path, first: str = "", **variables: str) -> tuple[Trace, str]:
    """The trace of one photo's encoding, and what was written to stderr."""
    traced = Traced([PYTHON, "-c", first + ENCODE, bundles / "edge", photo], folder, **variables)
    code, _, err = traced.end()
    assert code == 0, err
    return traced.trace(), err


@pytest.mark.parametrize("value", ["", "0"])
def test_the_encoder_neither_connects_nor_writes_whatever_the_user_set(
    bundles: Path, photo: Path, tmp_path: Path, value: str
) -> None:
    trace, err = encoding(bundles, photo, tmp_path / "edge", ORT_DISABLE_TELEMETRY=value)
    assert (trace.unexpected(), err) == ([], "")


@pytest.mark.parametrize("later", ["", "import splitveil, os; os.environ['ORT_DISABLE_TELEMETRY'] = '0'\n"])
def test_an_onnxruntime_imported_before_is_seen_by_the_trace_and_said(
    bundles: Path, photo: Path, tmp_path: Path, later: str
) -> None:
    """What the other tests look for is there where nothing switches it off, so that they can fail."""
    trace, err = encoding(bundles, photo, tmp_path / "edge", later + "import onnxruntime\n")
    assert any("onnxruntime" in path for path in trace.unexpected())
    assert err.count("TelemetryWarning: onnxruntime was imported before splitveil") == 1


def run(program: str, **variables: str) -> str:
    """Stdout of a program that says nothing else; the variables that switch reports off are not set."""
    environment = {name: value for name, value in os.environ.items() if name not in OFF} | variables
    done = subprocess.run([PYTHON, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("room", ["splitveil", "splitveil.bundle", "splitveil.version", "splitveil.cli"])
def test_any_import_of_splitveil_switches_reports_off_for_this_process_and_its_children(room: str) -> None:
    child = "import os; print({name: os.environ.get(name) for name in %r})" % list(OFF)  # noqa: UP031
    program = f"import {room}, subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    found = ast.literal_eval(run(program, ORT_DISABLE_TELEMETRY="0", RAY_USAGE_STATS_ENABLED="1"))
    assert found == OFF


def test_a_user_who_switched_reports_off_before_is_not_warned() -> None:
    program = "import onnxruntime, splitveil.bundle, splitveil.telemetry as t; print(t.state())"
    assert run(program, ORT_DISABLE_TELEMETRY="1") == "off\n"


def test_ray_takes_our_variable_for_off() -> None:
    program = (
        "import splitveil; from ray._common.usage.usage_lib import usage_stats_enabled; print(usage_stats_enabled())"
    )
    assert run(program, RAY_USAGE_STATS_ENABLED="1") == "False\n"


OLD_SPLITVEIL = f"""
import os, runpy, sys, types
for name in ("triton_python_backend_utils", "splitveil", "splitveil.bundle", "splitveil.errors"):
    sys.modules[name] = types.ModuleType(name)
vars(sys.modules["splitveil.bundle"]).update(Graph=None, from_frames=None, read_server=None)
sys.modules["splitveil.errors"].WireError = ValueError
runpy.run_path({str(SOURCE / "splitveil" / "deploy" / "triton_model.py")!r})
print(os.environ.get("ORT_DISABLE_TELEMETRY"))
"""


def test_the_backend_in_triton_switches_reports_off_beside_any_splitveil() -> None:
    assert run(OLD_SPLITVEIL, ORT_DISABLE_TELEMETRY="0") == "1\n"


def imports_of_onnxruntime(path: Path) -> list[int]:
    """Lines at which a file imports it directly."""
    found, text = [], path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)) if "onnxruntime" in text else ():
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        found += [node.lineno for name in names if name.split(".")[0] == "onnxruntime"]
    return found


def test_one_place_imports_onnxruntime() -> None:
    files = [path for folder in ("src", "tests", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    rivals = ROOT / "benchmarks" / "rivals"  # programs for environments without splitveil
    importers = {path for path in files if imports_of_onnxruntime(path)}
    assert importers - set(rivals.iterdir()) == {SOURCE / "splitveil" / "bundle" / "runtime.py"}
    for path in importers & set(rivals.iterdir()):
        before = path.read_text(encoding="utf-8").splitlines()[: imports_of_onnxruntime(path)[0] - 1]
        assert any(line.startswith('os.environ["ORT_DISABLE_TELEMETRY"] = "1"') for line in before), path
