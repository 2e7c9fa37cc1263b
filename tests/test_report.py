"""Pages are made from rows alone, and say what the rows say."""

import re

import pytest
import torch

from splitveil.report import demo_report, demo_sentences


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def row(name: str, components: int, attack: float, target: float) -> dict:
    fixed = {"prior": 0.1, "label": 0.11, "logits": 0.17, "raw": 0.98, "undefended": 0.995, "excess": attack - 0.17}
    shares = {**fixed, "attack": attack, "target": target, "balanced": attack, "auc": 0.6, "bits": 0.3}
    row = {key: estimate(value) for key, value in shares.items()}
    return {"name": name, "components": components, "best": "<script>", "message_bytes": 16 + 4 * components, **row}


ROWS = [row("m'=1", 1, 0.12, 0.5), row("m'=8", 8, 0.31, 0.97), row("raw feature", 512, 0.98, 0.995)]


def page() -> str:
    return demo_report(ROWS, {"seed": 0, "data": "abc"}, {"seen": torch.rand(3, 1, 4, 8)}, "m'=8")[1]


def test_three_sentences_with_the_numbers_of_the_row():
    protected, price, not_protected = demo_sentences(ROWS[1])
    assert "8 numbers" in protected
    assert "31.0%" in protected
    assert "30.0% to 32.0%" in protected
    assert "98.0%" in protected
    assert "97.0%" in price
    assert "drop of 2.5 points" in price
    assert "48 bytes" in price
    assert "17.0%" in not_protected


def test_the_page_is_self_contained_and_shows_every_row():
    text = page()
    assert re.findall(r"(?:src|href)=['\"](?!data:)", text) == []
    assert text.count("data:image/svg+xml;base64,") == 2
    for name in ("m&#x27;=1", "m&#x27;=8", "raw feature"):
        assert f"<td>{name}</td>" in text
    assert "31.0 [30.0, 32.0]" in text
    for line in ("always guessing", "predicted label", "logits alone: 17.0 [16.0, 18.0]", "raw feature: 98.0"):
        assert line in text


def test_what_rows_hold_is_escaped():
    assert "<script>" not in page()
    assert "&lt;script&gt;" in page()


def test_the_same_rows_give_the_same_plot():
    plots = [re.findall(r"base64,([^']+)'", page())[0] for _ in range(2)]
    assert plots[0] == plots[1]


def test_an_unknown_row_is_not_reported():
    with pytest.raises(StopIteration):
        demo_report(ROWS, {}, {"seen": torch.rand(1, 1, 4, 8)}, "m'=3")
