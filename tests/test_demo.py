"""The demonstration, whole but small."""

import json
from functools import partial

import pytest

from splitveil import demo
from splitveil.attack import Perceptron, Training, reconstruct
from splitveil.train import Recipe


@pytest.mark.slow
def test_the_demo_writes_rows_and_a_report_that_agree(tmp_path, monkeypatch):
    quick = Perceptron("quick", hidden=(64,), training=Training(epochs=3, least_steps=1))
    monkeypatch.setattr(demo, "ATTACKS", (quick,))
    monkeypatch.setattr(demo, "KEPT", (4, 24))
    monkeypatch.setattr(demo, "RECIPE", Recipe(epochs=2))
    monkeypatch.setattr(demo, "reconstruct", partial(reconstruct, epochs=1))
    calls = []
    result = demo.run_demo(tmp_path, progress=lambda *call: calls.append(call))
    recorded = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    names = [row["name"] for row in recorded["rows"]]
    assert names == ["m'=4", "m'=24", "distortion-free", "raw feature"]
    assert recorded["rows"] == json.loads(json.dumps(result["rows"]))
    assert recorded["facts"]["operator"] == "dense"
    few, _, free, raw = recorded["rows"]
    assert raw["target"] == free["target"] == raw["undefended"]  # distortion-free changes no answer
    assert raw["target"]["value"] > 0.9
    assert few["attack"]["value"] < raw["attack"]["value"] - 0.2
    assert [row["message_bytes"] for row in recorded["rows"]] == [16 + 4 * n for n in (4, 24, 128, 512)]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(name.replace("'", "&#x27;") in page for name in names)
    assert any("quick" in text for _, _, text in calls)

    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    again = demo.run_demo(tmp_path)
    assert again["rows"] == result["rows"]  # the same seed, the same numbers
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights
