"""Runs on disk: what is recorded, what is refused, and that nothing is overwritten."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import splitveil as sv
from splitveil import files
from splitveil import tensors as tensor_files
from splitveil.errors import RunError
from splitveil.runs import MANIFEST, WEIGHTS, Run, train_run
from splitveil.train import CHECKPOINT

RECIPE = sv.Recipe(epochs=2, seed=3)


def arrays(seed: int = 0) -> sv.Dataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(120, 1, 8, 8, generator=generator)
    return sv.Dataset.from_arrays(x, (x[:, 0, 0, 0] > 0.5).long(), {"odd": torch.arange(120) % 2}, name="here")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run."""
    train_run(tmp_path / "run", arrays(), RECIPE, source="here", options={"size": (8, 8)})
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_records_what_it_came_from(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["model"] == {"name": "Table1Net", "input_shape": [1, 8, 8], "n_classes": 2}
    assert manifest["data"] == {"name": "here", "options": {"size": [8, 8]}, "digest": arrays().digest}
    assert manifest["recipe"] == asdict(sv.Recipe(epochs=2, seed=3))
    assert set(manifest["versions"]) == {"splitveil", "python", "torch", "numpy", "safetensors"}
    assert manifest["versions"]["torch"] == importlib.metadata.version("torch")
    assert manifest["versions"]["splitveil"] == sv.__version__
    assert set(contents(folder)) == {MANIFEST, WEIGHTS, CHECKPOINT}


def test_a_run_gives_back_the_trained_model(folder: Path, tmp_path: Path) -> None:
    model = Run(folder).model()
    assert not model.training
    with torch.random.fork_rng():
        torch.manual_seed(RECIPE.seed)
        same = sv.Table1Net((1, 8, 8), 2)
    sv.fit(same, arrays(), RECIPE)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, same.state_dict()[name], rtol=0, atol=0, msg=name)
    train_run(tmp_path / "other", arrays(), replace(RECIPE, seed=4), source="here")
    assert not torch.equal(Run(tmp_path / "other").model().layer6.weight, model.layer6.weight)


def test_a_finished_run_is_not_trained_again(folder: Path) -> None:
    before, reports = contents(folder), []
    history = train_run(
        folder, arrays(), RECIPE, source="here", options={"size": (8, 8)}, progress=lambda *r: reports.append(r)
    )
    assert len(history) == 2
    assert not reports
    assert contents(folder) == before


def test_training_a_run_leaves_the_callers_generator_alone(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    train_run(tmp_path, arrays(), replace(RECIPE, epochs=1), source="here")
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"recipe": replace(RECIPE, seed=4)}, "a run with another recipe"),
        ({"recipe": replace(RECIPE, epochs=3)}, "a run with another recipe"),
        ({"data": arrays(1)}, "a run with another data"),
        ({"data": arrays().without_hidden()}, "a run with another data"),
        ({"source": "there"}, "a run with another data"),
        ({"options": {"size": (9, 9)}}, "a run with another data"),
        ({"data": replace(arrays(), classes=("0", "1", "2"))}, "a run with another data"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(folder: Path, change: dict[str, Any], sentence: str) -> None:
    before = contents(folder)
    asked: dict[str, Any] = {"data": arrays(), "recipe": RECIPE, "source": "here", "options": {"size": (8, 8)}}
    with pytest.raises(RunError, match=sentence):
        train_run(folder, **{**asked, **change})
    assert contents(folder) == before


def test_weights_without_a_manifest_are_not_overwritten(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    before = contents(folder)
    with pytest.raises(RunError, match=r"holds weights but no run\.json"):
        train_run(folder, arrays(), RECIPE, source="here")
    assert contents(folder) == before


def edited(**changes: Any) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), **changes})


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda _: "", "cannot be read as JSON"),
        (lambda text: text[: len(text) // 2], "cannot be read as JSON"),
        (lambda _: "\udcff", "cannot be read as JSON"),
        (lambda _: "[" * 100_000, "cannot be read as JSON"),
        (lambda _: "[]", "is not a run of this version of splitveil"),
        (lambda _: "{}", r"is not a run of this version of splitveil \(model: Field required\)"),
        (edited(extra=1), r"\(extra: "),
        (edited(schema_version=2), r"\(schema_version: "),
        (edited(model={"name": "os.system", "input_shape": [1, 8, 8], "n_classes": 2}), r"\(model: .*'os.system'"),
        (edited(model={"name": "Table1Net", "input_shape": [1, 8], "n_classes": 2}), r"\(model.Table1Net.input_shape"),
    ],
)
def test_a_damaged_manifest_is_a_run_error(folder: Path, damage: Callable[[str], str], sentence: str) -> None:
    path = folder / MANIFEST
    path.write_bytes(damage(path.read_text()).encode("utf-8", "surrogateescape"))
    before = contents(folder)
    with pytest.raises(RunError, match=sentence) as caught:
        Run(folder)
    assert str(path) in str(caught.value)
    with pytest.raises(RunError, match=sentence):
        train_run(folder, arrays(), RECIPE, source="here")
    assert contents(folder) == before


def test_a_run_that_is_not_there_or_not_finished_is_a_run_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match="does not exist; name a folder that 'splitveil train' or 'obfuscate' has written"
    ):
        Run(tmp_path / "nowhere")
    with pytest.raises(RunError, match="cannot be"):
        Run("x" * 300)
    (folder / WEIGHTS).unlink()
    with pytest.raises(RunError, match="holds no finished training"):
        Run(folder)


def test_weights_that_do_not_belong_to_the_manifest_are_refused(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["model"]["n_classes"] = 5
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="are of another model"):
        Run(folder).model()
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-5])
    with pytest.raises(RunError, match="is damaged or not a file of splitveil"):
        Run(folder).model()


def test_data_that_has_changed_since_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(name: str, **options: Any) -> sv.Dataset:
        asked.append((name, options))
        return arrays(len(asked) - 1)

    monkeypatch.setattr("splitveil.runs.run.load_data", load)
    assert Run(folder).data("root").digest == arrays().digest
    assert asked == [("here", {"root": "root", "progress": None, "size": [8, 8]})]
    with pytest.raises(RunError, match="'here' has changed since"):
        Run(folder).data("root")


def test_a_run_cannot_be_written_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in ("file", "file/x", "x" * 300):
        with pytest.raises(RunError, match=r"cannot be (written|looked up).*choose another folder"):
            train_run(tmp_path / place, arrays(), RECIPE, source="here")
    assert (tmp_path / "file").read_text() == "in the way"


def test_files_are_as_readable_as_the_owner_wants(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "deep" / "page.html", "ε ≤ 1")
    finally:
        assert os.umask(before) == 0o027
    assert (tmp_path / "deep" / "page.html").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "deep" / "page.html").read_text(encoding="utf-8") == "ε ≤ 1"


def test_tensors_and_facts_survive_the_disk(tmp_path: Path) -> None:
    tied = torch.rand(3, 4)
    tensors = {"a": tied, "b": tied.T, "c": torch.tensor(5), "d": torch.zeros(0, 2)}
    tensor_files.write_tensors(tmp_path / "x", tensors, {"list": [1, 0.1, None]})
    back, facts = tensor_files.read_tensors(tmp_path / "x")
    assert facts == {"list": [1, 0.1, None]}
    for name, tensor in tensors.items():
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=0)
    with pytest.raises(RunError, match="does not exist; train first"):
        tensor_files.read_tensors(tmp_path / "y")
    with pytest.raises(RunError, match="is damaged"):
        tensor_files.read_tensors(tmp_path)


def train_command(out: Path) -> list[str]:
    options = ["--data", "digit-pairs", "--epochs", "4", "--seed", "5", "--recipe", "paper"]
    return [sys.executable, "-m", "splitveil", "train", *options, "--out", str(out), "--json"]


@pytest.mark.slow
def test_a_run_killed_in_mid_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    killed = subprocess.Popen(train_command(tmp_path / "killed"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    checkpoint, deadline = tmp_path / "killed" / CHECKPOINT, time.monotonic() + 120
    while not checkpoint.exists():
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)  # into the next epoch
    killed.send_signal(signal.SIGKILL)
    assert killed.communicate()[0] == b""
    assert killed.returncode == -signal.SIGKILL
    assert len(tensor_files.read_tensors(checkpoint)[1]["history"]) < 4
    with pytest.raises(RunError, match="holds no finished training"):
        Run(tmp_path / "killed")

    outputs = {}
    for name in ("killed", "whole"):
        done = subprocess.run(train_command(tmp_path / name), capture_output=True, check=True)
        outputs[name] = {**json.loads(done.stdout), "run": None}
    assert outputs["killed"] == outputs["whole"]
    weights = [tensor_files.read_tensors(tmp_path / name / WEIGHTS)[0] for name in ("killed", "whole")]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=0, atol=0, msg=name)
