"""The comparison of ways to tune: what a cell holds, and what table and plot make of rows."""

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

import splitveil as sv
from splitveil.experiments import tuning
from splitveil.experiments.cells import Place, Row, slug
from splitveil.experiments.ours import TUNED
from splitveil.experiments.training import Settings
from splitveil.experiments.tuning import TuningCell
from splitveil.runs import Run
from splitveil.statistics import proportion
from splitveil.train import predict

QUICK = Settings(quick=True, epochs=40)


@pytest.fixture(scope="module")
def few() -> sv.Dataset:
    """300 images 1×16×16: which quarter from above is bright is the target, named wrongly for every eighth image."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(300, 1, 16, 16, generator=generator) * 0.5, torch.randint(0, 4, (300,), generator=generator)
    for image, quarter in zip(x, y.tolist(), strict=True):
        image[:, 4 * quarter : 4 * quarter + 4] += 0.3
    y[::8] = (y[::8] + 1) % 4
    return sv.Dataset.from_arrays(x, y)


@pytest.fixture
def place(few: sv.Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Place:
    monkeypatch.setattr(tuning, "load_data", lambda *_, **__: few)
    return Place(tmp_path_factory.getbasetemp() / "tuning")  # trained once


def cell(variant: str, sizes: tuple[int, ...] = (4, 1)) -> TuningCell:
    return replace(tuning.cells(QUICK)[0], variant=variant, sizes=sizes)


def computed(variant: str, place: Place, sizes: tuple[int, ...] = (4, 1)) -> dict[str, Any]:
    return tuning.compute(cell(variant, sizes), place, lambda *_: None).numbers


def test_a_cell_holds_agreement_and_accuracy_on_the_validation_part(place: Place, few: sv.Dataset) -> None:
    numbers = computed("server-aware", place)
    (folder,) = (place.runs / "models").glob("digit-pairs-plain-0-*")
    split = sv.SplitModel(Run(folder).model(), at=4)
    veil = sv.ServerAware.fit(split, sv.Features.of(split, few.train), m=4)
    z, whole = predict(split.client, few.val), predict(split.model, few.val).argmax(1)
    for found, m in zip(numbers["sizes"], (4, 1), strict=True):
        answers = split.answer(veil.keep(m), veil.keep(m).encode(z)).argmax(1)
        assert found["size"] == m
        assert found["agreement"] == proportion((answers == whole).numpy()).as_row()
        assert found["val"] == proportion((answers == few.val.y).numpy()).as_row()
    assert not torch.equal(whole, few.val.y)  # else agreement and accuracy are the same
    assert numbers["undefended"] == proportion((whole == few.val.y).numpy()).as_row()


def test_variants_are_told_apart(place: Place, few: sv.Dataset) -> None:
    computed("server-aware", place)
    (folder,) = (place.runs / "models").glob("digit-pairs-plain-0-*")
    split = sv.SplitModel(Run(folder).model(), at=4)
    features = sv.Features.of(split, few.train)
    answers, z = set(), features.table(8).reshape(-1, *features.shape)
    for variant in tuning._DISTILLED:
        ((its, veil),) = tuning._fitted(cell(variant, (4,)), split, features, lambda *_: None)
        assert veil.message.shape == (4,)
        changed = its.model is not split.model
        assert changed == (variant == "server tuned along")
        with torch.no_grad():
            answers.add(tuple(its.answer(veil, veil.encode(z)).flatten().tolist()))
    assert len(answers) == len(tuning._DISTILLED)


def test_a_codebook_is_fitted_for_each_number_of_messages(place: Place) -> None:
    several, two = computed("codebook", place, (8, 2))["sizes"]
    assert (several["size"], two["size"]) == (8, 2)
    assert two["agreement"]["value"] < several["agreement"]["value"]  # of four answers two cannot be sent


def test_cells_compare_the_defaults_with_each_variant_and_know_their_tuning() -> None:
    cells = tuning.cells(Settings())
    assert {(one.data, one.cut) for one in cells} == {(name, cut) for name in ("utkface", "qmnist") for cut in (3, 4)}
    assert {one.variant for one in cells} == set(tuning.VARIANTS)
    expected = {"server-aware": None, "active subspaces": None, "codebook": TUNED["codebook"]}
    expected["codebook without mixing"] = TUNED["codebook"]
    assert {one.variant: expected.get(one.variant, TUNED["distilled"]) for one in cells} == {
        one.variant: one.tuning for one in cells
    }
    assert len({slug(one) for one in cells}) == len(cells)


def row(variant: str, agreement: float, size: int = 16) -> Row:
    share = {"value": agreement, "low": agreement - 0.01, "high": agreement + 0.01}
    sizes = (size,) if "codebook" not in variant else (2,)
    numbers = {"undefended": share, "sizes": [{"size": each, "val": share, "agreement": share} for each in sizes]}
    return Row(
        experiment="tuning", config=asdict(cell(variant, sizes)), data="d", versions={}, device="cpu",
        numbers=numbers, seconds={},
    )  # fmt: skip


def test_table_and_plot_show_what_changes() -> None:
    rows = [row("codebook", 0.8), row("without mixing", 0.9), row("distilled", 0.95)]
    told = [line for line in tuning.table(rows).splitlines() if "] / " in line]
    assert told == [
        "| distilled | 95.0 [94.0, 96.0] / 95.0 |", "| without mixing | 90.0 [89.0, 91.0] / 90.0 |",
        "| codebook | 80.0 [79.0, 81.0] / 80.0 |",
    ]  # fmt: skip
    (axes,) = tuning.plot(rows).axes
    drawn = [sorted(container[0].get_xdata()) for container in axes.containers if len(container[0].get_xdata())]
    assert drawn == [pytest.approx([5, 10])]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["distilled", "without mixing"]
