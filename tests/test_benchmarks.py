"""Every benchmark of the Makefile runs on a small setting, and keeps what has landed when it is stopped."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from splitveil.attack import Perceptron, Training
from test_data_published import write_celeba

ROOT = Path(__file__).parent.parent
COMMANDS = re.findall(r"\$\(BIN\)/python benchmarks/(\w+)\.py --out (\S+)", (ROOT / "Makefile").read_text())
LINEAR = Perceptron("linear", hidden=(), dropout=(0.0, 0.0), training=Training(epochs=1, weight_decays=(0.1,)))
SMALL = {
    "factorise": (("--data", "qmnist", "--cuts", "6"), {}),
    "training": (("--data", "digit-pairs", "--images", "128", "--rounds", "1"), {}),
    "adversaries": (
        ("--data", "celeba", "--seeds", "1", "--epochs", "1", "--images", "60", "--threads", "1"),
        {"SIZES": (1,), "NETWORKS": [LINEAR]},
    ),
    "edge": (
        (),
        {"INPUTS": {"celeba": (3, 73, 60, 2)}, "CUTS": {6: (1,)}, "BATCHES": (1,), "ROUNDS": 25, "STARTS": 1},
    ),
    "serving": (
        ("--rounds", "1", "--seconds", "0.1"),
        {"BATCHING": {"as it comes": ()}, "BATCHING_MODES": ("8 connections, HTTP binary",)},
    ),
    "attacks": (("--rounds", "1", "--seconds", "0.3", "--attacks", "half-closes"), {}),
}  # fmt: skip
MUST_HOLD = {
    "factorise": "rows", "training": "ratios", "adversaries": "in all", "edge": "times", "serving": "medians",
    "attacks": "ratio_of_p99_to_idle",
}  # fmt: skip


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Runs a benchmark's `main` on its small setting; returns what it wrote, and what it kept."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setenv("SPLITVEIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SPLITVEIL_DATA", str(tmp_path))
    threads = torch.get_num_threads()

    def run(name, **changed):
        module = importlib.import_module(name)
        options, constants = SMALL[name]
        for key, value in {**constants, **changed}.items():
            monkeypatch.setattr(module, key, value)
        if name == "serving":
            monkeypatch.setattr(module, "STARTS", {module.OURS: module.STARTS[module.OURS]})
            monkeypatch.setattr(module, "MODES", {key: module.MODES[key] for key in module.HTTP_LOADED})
        out = tmp_path / "result.json"
        monkeypatch.setattr(sys, "argv", [name, *options, "--out", str(out)])
        try:
            module.main()
        finally:
            found = [path for path in (out, tmp_path / "result.partial.json") if path.is_file()]
            contents.update({path.name: json.loads(path.read_text(encoding="utf-8")) for path in found})
        return contents

    contents: dict = {}
    yield run, contents
    torch.set_num_threads(threads)


def test_the_makefile_has_the_benchmarks_that_are_tested():
    assert [name for name, _ in COMMANDS] == list(SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_it_runs_on_a_small_setting(call, tmp_path, name):
    if name in ("adversaries", "edge"):
        write_celeba(tmp_path, (45, 55))
    contents = call[0](name)
    assert list(contents) == ["result.json"]
    assert contents["result.json"][MUST_HOLD[name]]


def test_what_has_landed_is_kept_when_it_is_stopped(call, tmp_path):
    write_celeba(tmp_path, (45, 55))

    class Broken(Perceptron):
        def fit_many(self, _jobs):
            raise KeyboardInterrupt

    run, contents = call
    with pytest.raises(KeyboardInterrupt):
        run("adversaries", NETWORKS=[LINEAR, Broken("broken")])
    assert list(contents) == ["result.partial.json"]
    assert contents["result.partial.json"]["data"]["celeba"]["linear"]["together"] > 0
