"""What ``splitveil doctor`` says, by itself and where something is amiss."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from splitveil import extras
from splitveil.doctor import diagnose
from splitveil.extras import EXTRAS, missing_packages
from splitveil.telemetry import OFF
from splitveil.version import __version__

DOCTOR = "import sys; sys.argv[:] = ['splitveil', *sys.argv[1:]]; from splitveil.cli import main; main()"


def doctor(*arguments: str, first: str = "") -> str:
    """Stdout of the command line, after ``first`` has run in its process."""
    command = [sys.executable, "-c", first + DOCTOR, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_versions_telemetry_and_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITVEIL_CACHE", str(tmp_path / "not" / "yet"))
    found = json.loads(doctor("doctor", "--json"))
    assert found["splitveil"] == __version__
    assert found["python"] == sys.version.split()[0]
    assert found["packages"]["onnxruntime"] == version("onnxruntime")
    assert set(found["missing"]) == set(EXTRAS)
    assert (found["telemetry"], found["variables"]) == ("off", OFF)
    assert (found["cache_folder"], found["cache_writable"]) == (str(tmp_path / "not" / "yet"), True)
    assert not list(tmp_path.iterdir())
    assert str(found["packages"]["numpy"]) in doctor("doctor")


def test_a_cache_folder_that_is_a_file_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPLITVEIL_CACHE", str(tmp_path / "file"))
    assert not diagnose().cache_writable


def test_missing_packages_are_named_by_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "EXTRAS", {"sign": ("json", "no_such_package", "no_such.package")})
    assert missing_packages("sign") == ["no_such_package", "no_such.package"]


@pytest.mark.parametrize("arguments", [("doctor", "--json"), ("doctor",), ("-VV",)])
def test_reports_that_may_have_been_sent_are_said(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    # The home folder is a temporary one, since this ONNX Runtime writes its identifier there.
    setting = f"import os, warnings; os.environ.update(HOME={str(tmp_path)!r}, XDG_CACHE_HOME={str(tmp_path)!r}); "
    before = (
        setting + "os.environ.pop('ORT_DISABLE_TELEMETRY', 0); warnings.simplefilter('ignore'); import onnxruntime; "
    )
    assert "possibly on" in doctor(*arguments, first=before)
    assert "possibly on" not in doctor(*arguments)


def test_version_once_is_one_line_and_twice_names_packages() -> None:
    assert doctor("-V") == doctor("--version") == f"splitveil {__version__}\n"
    assert doctor("--version", "--version") == doctor("-VV")
    assert f"onnxruntime {version('onnxruntime')}\n" in doctor("-VV")
