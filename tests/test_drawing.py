"""Plots can be read: each defence has a mark of its own, and what has no order is not joined."""

from types import SimpleNamespace

from splitveil.baselines import BASELINES
from splitveil.experiments.drawing import STYLES
from splitveil.experiments.pictures import ordered, plot

NAMES = ["raw feature", "distortion-free", "m'=32", "m'=8", "m'=2", "mean image"]


def test_no_two_defences_share_a_colour_or_a_marker():
    colours, markers = zip(*STYLES.values(), strict=True)
    assert len(set(colours)) == len(set(markers)) == len(STYLES)
    assert set(BASELINES) <= set(STYLES)


def test_messages_stand_by_how_much_they_hold():
    assert ordered(sorted(NAMES)) == NAMES


def test_reconstructions_of_different_messages_are_not_joined():
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    messages = {name: {"ssim": score, "psnr": score} for name in sorted(NAMES)}
    rows = [SimpleNamespace(config={"data": data}, numbers={"messages": messages}) for data in ("one", "two")]
    for axes in plot(rows).axes:
        assert [label.get_text() for label in axes.get_xticklabels()] == NAMES
        assert len(axes.containers) == 2
        assert all(container.lines[0].get_linestyle() == "None" for container in axes.containers)
