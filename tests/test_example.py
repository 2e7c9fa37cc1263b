"""The example with a residual network, on few images: it trains, is obfuscated, and reports what it printed."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from splitveil.runs import obfuscate_run

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "own_residual_network.py"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    names = runpy.run_path(str(EXAMPLE))
    names["draw_images"].__globals__.update(
        SIZES={"train": 256, "unlabelled": 60, "test": 40}, HEAD_EPOCHS=1, WIDTHS=(0, 3)
    )
    return names


@pytest.fixture
def command(example: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def run(*arguments: object) -> None:
        monkeypatch.setattr("sys.argv", [EXAMPLE.name, *map(str, arguments)])
        example["main"]()

    return run


@pytest.mark.slow
def test_its_report_holds_every_way_to_answer(
    command: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    try:
        command("--out", tmp_path, "--epochs", 1)
    finally:
        torch.set_num_threads(threads)
    for name in ("first", "again"):
        obfuscate_run(
            tmp_path / name, tmp_path / "model.pt2", at="layer1", method="distilled", m=2, width=0,
            images=tmp_path / "images",
        )  # fmt: skip
        command("--out", tmp_path, "--check", tmp_path / name)
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert list(report) == [
        "the whole network", "a linear head on the device", "a head with 3 hidden units on the device",
        "2 numbers to the server (distilled --width 0)",
    ]  # fmt: skip
    whole, *others = report.values()
    n = 8 * 8 * 24  # numbers of the feature
    assert [one["after_cut"] for one in others] == [10 * n, 3 * n + 3 * 10, 2 * n]
    assert len({one["edge"] - one["after_cut"] for one in others}) == 1
    assert whole["edge"] > max(one["edge"] for one in others)
    assert all(one["low"] <= one["value"] <= one["high"] and one["n"] == 40 for one in report.values())
    printed = capsys.readouterr().out
    assert all(f"{by}: {one['value']:.1%} [" in printed for by, one in report.items())
    (tmp_path / "report.json").write_text("damaged")
    for run in ("first", "none"):
        with pytest.raises(SystemExit, match="2"):
            command("--out", tmp_path, "--check", tmp_path / run)
        assert capsys.readouterr().err.count("\n") == 1
