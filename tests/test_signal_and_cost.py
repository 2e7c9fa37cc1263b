"""Figure 2 and the cost statements, against layers and counts that are known by hand."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import splitveil as sv
from splitveil.errors import ExperimentError
from splitveil.experiments import costs, signal
from splitveil.experiments.ablation import cells as ablation_cells
from splitveil.experiments.cells import Place, Row, compute_row, slug
from splitveil.experiments.signal import log_content
from splitveil.experiments.training import Settings


def test_half_of_a_feature_in_the_null_space_gives_log_a_half() -> None:
    layer = nn.Linear(4, 2, bias=False)
    layer.weight.data = torch.tensor([[3.0, 0, 0, 0], [0, 1.0, 0, 0]])
    factors = sv.factorise(layer, feature_shape=(4,))
    z = torch.tensor([[1.0, 1, 1, 1], [2.0, 0, 0, 0], [0.0, 0, 0, 0], [1.0, 0, 0, math.sqrt(3)]])
    expected = torch.tensor([0.5, 1.0, 1.0, 0.25]).double().log()
    torch.testing.assert_close(log_content(factors, z), expected, atol=1e-6, rtol=0)
    with pytest.raises(ExperimentError, match="no signal content"):
        log_content(factors, torch.tensor([[0.0, 0, 1, 0]]))
    with pytest.raises(ExperimentError, match="all factors"):
        log_content(sv.factorise(layer, feature_shape=(4,), rank=1), z)


def test_a_layer_of_full_column_rank_has_content_zero() -> None:
    z = torch.randn(3, 1, 6, 8)
    layer = nn.Conv2d(1, 16, 3, padding=1)
    for operator in ("dense", "patch"):
        factors = sv.factorise(layer, feature_shape=(1, 6, 8), operator=operator, rank=1)
        assert factors.null_dimension == 0
        assert log_content(factors, z).tolist() == [0.0] * 3


def test_patch_content_equals_brute_force() -> None:
    torch.manual_seed(0)
    layer, z = nn.Conv2d(3, 5, 3, stride=2, padding=1), torch.randn(4, 3, 7, 8)
    layer.weight.data[4] = layer.weight.data[3]  # a rank below the number of filters
    factors = sv.factorise(layer, feature_shape=(3, 7, 8), operator="patch")
    patches = functional.unfold(z, 3, padding=1, stride=2).double()
    matrix = layer.weight.detach().flatten(1).double()[:4]
    kept = torch.linalg.pinv(matrix) @ matrix @ patches
    expected = (kept.square().sum((1, 2)) / patches.square().sum((1, 2))).log()
    torch.testing.assert_close(log_content(factors, z), expected, atol=1e-5, rtol=0)


def test_models_are_shared_with_the_ablation() -> None:
    by_label = {cell.label: cell.recipe for cell in ablation_cells(Settings(data=("qmnist",)))}
    cells = signal.cells(Settings(data=("qmnist",)))
    assert [cell.label for cell in cells] == [f"qmnist-{way}-{seed}" for seed in (0, 1, 2) for way in ("plain", "all")]
    assert all(cell.recipe == by_label[cell.label] for cell in cells)
    assert len(set(map(slug, cells))) == 6


@cache
def quick_row(experiment: Any, folder: Path) -> Row:
    cell = experiment.cells(Settings(quick=True, epochs=1))[0]
    return compute_row("quick", experiment.compute, cell, Place(folder), lambda *_: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def test_the_signal_content_end_to_end(folder: Path) -> None:
    row = quick_row(signal, folder)
    found = {(one["operator"], one["cut"]): one for one in row.numbers["content"]}
    assert len(found) == 12
    for operator in ("patch", "dense"):
        total = 0.0
        for cut in range(1, 7):
            total += found[operator, cut]["layer"]["value"]
            assert found[operator, cut]["cumulative"]["value"] == pytest.approx(total)
    assert [found["dense", cut]["cumulative"]["value"] for cut in (1, 2, 3)] == [0.0, 0.0, 0.0]
    assert found["patch", 2]["layer"]["value"] < -0.5
    assert found["patch", 5]["layer"] == found["dense", 5]["layer"]
    page = signal.table([row])
    assert "## digit-pairs" in page
    assert "| dense | plain | cumulative | 0.000 | 0.000 | 0.000 | -" in page
    figure = signal.plot([row])
    assert [axes.get_title().split()[0] for axes in figure.axes] == ["patch", "dense"]
    drawn = figure.axes[1].containers[0].lines[0].get_ydata()
    assert list(drawn) == [found["dense", cut]["cumulative"]["value"] for cut in range(1, 7)]


def test_the_costs_end_to_end(folder: Path) -> None:
    row = quick_row(costs, folder)  # images 1×16×32, 10 classes
    found = {(one["cut"], one["operator"], one["m"]): one for one in row.numbers["costs"]}
    patch, dense, connected = found[2, "patch", 4], found[2, "dense", 4], found[4, "dense", 8]
    assert (patch["client_macs"], patch["layer_macs"]) == (9 * 16 * 512, 9 * 16 * 32 * 128)
    assert patch["encoder_macs"] == 4 * 9 * 16 * 128
    assert patch["macs_share"] == patch["m_share"] == 4 / 32
    assert dense["encoder_macs"] == 4 * 16 * 128
    assert dense["macs_share"] == pytest.approx(4 / (9 * 32))
    assert dense["m_share"] == pytest.approx(4 / (32 * 128))
    assert (connected["encoder_macs"], connected["layer_macs"]) == (8 * 512, 512 * 128)
    assert connected["macs_share"] == connected["m_share"] == 8 / 128
    assert (patch["raw_bytes"], patch["message_bytes"]) == (16 + 4 * 2048, 16 + 4 * 4 * 128)
    assert connected["message_bytes"] == 16 + 4 * 8
    assert (patch["coefficients_share"], patch["n_share"]) == (4 * 128 / 2048, 4 / 2048)
    assert connected["coefficients_share"] == connected["n_share"] == 8 / 512
    assert (6, "dense", 8) in found
    assert (6, "dense", 16) not in found  # ten classes
    assert all(time["ratio"] == time["encoder"] / time["layer"] for time in patch["times"].values())
    page = costs.table([row])
    assert "## digit-pairs: 1×16×32, 10 classes" in page
    assert "| 2 | patch | 4 | 73,728 | 73,728 | 589,824 | 12.5 | 12.5 |" in page
    counted, _ = costs.plot([row]).axes
    (line,) = (one for one in counted.lines if one.get_label() == "cut 4, dense")
    assert list(line.get_xdata()) == list(line.get_ydata())
