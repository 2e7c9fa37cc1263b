"""Points: each defence at one cut, attacked or chosen on validation, as rows; which cells the figures share."""

import itertools
import json
import shutil
from dataclasses import asdict, replace
from math import log2, prod
from pathlib import Path
from typing import Any

import pytest
import torch

import splitveil as sv
from splitveil import measure
from splitveil.attack import ATTACKS, Guess, View
from splitveil.baselines import BASELINES
from splitveil.data import Part
from splitveil.errors import DistortionError, ExperimentError
from splitveil.experiments import grids, lines, ours, pictures, points, reproduction
from splitveil.experiments.cells import Place, slug
from splitveil.experiments.grids import (
    CELEBA,
    adversarial,
    attributes,
    baselines,
    cuts,
    frontier,
    pruning,
    tradeoff,
)
from splitveil.experiments.ours import FITTED, TUNED
from splitveil.experiments.points import PointsCell
from splitveil.experiments.training import Settings
from splitveil.measure.scores import unpack
from splitveil.obfuscate import fit_obfuscator
from splitveil.runs import Run
from splitveil.train import accuracy

REAL = Settings(precision="bfloat16")
ATTACK_NAMES = [attack.name for attack in ATTACKS]


def slugs(cells: list[PointsCell]) -> list[str]:
    return [slug(cell) for cell in cells]


# Which cells there are.


def test_figures_share_the_cells_of_our_method() -> None:
    shared = set(slugs(tradeoff(REAL)))
    assert len(shared) == 4 * 2 * 3  # data sets, recipes, seeds
    for figure in (pruning, adversarial, baselines, frontier):
        assert shared < set(slugs(figure(REAL)))
    at_cut_4 = [cell for cell in cuts(REAL) if (cell.cut, cell.defence) == (4, "top")]
    assert set(slugs(at_cut_4)) == {slug(cell) for cell in tradeoff(REAL) if cell.training == "paper"}
    assert set(slugs(attributes(REAL))) < set(slugs(adversarial(REAL)))


@pytest.mark.parametrize("figure", [tradeoff, pruning, adversarial, attributes, baselines, frontier, cuts])
def test_every_cell_has_a_name_of_its_own_and_json_values(figure: Any) -> None:
    for settings in (REAL, Settings(quick=True)):
        cells = figure(settings)
        assert len(set(slugs(cells))) == len(cells) > 0
        for cell in cells:
            assert json.loads(json.dumps(asdict(cell)))["data"] == cell.data


def test_every_baseline_has_its_whole_grid_on_every_data_set() -> None:
    cells = [cell for cell in baselines(REAL) if cell.defence in BASELINES]
    seeds = {"adversarial": {0, 2}, "noise": {2}, "gaussian": {2}, "leace": {2}, "blur": {2}, "device": {2}}
    for name, grid in BASELINES.items():
        for data in grids.DATA:
            its = [cell for cell in cells if (cell.defence, cell.data) == (name, data)]
            assert {(cell.training, cell.cut) for cell in its} == {("plain", 4)}
            assert {cell.seed for cell in its} == seeds.get(name, {0})
            for seed in seeds.get(name, {0}):
                of_seed = [cell for cell in its if cell.seed == seed]
                assert sum((cell.settings for cell in of_seed), ()) == points.settings_of(name)
                assert len(of_seed) == (len(grid) if name in grids.TRAIN_A_NETWORK else 1)
    ours = {(cell.data, cell.seed, cell.training) for cell in baselines(REAL) if cell.defence == "top"}
    assert {(cell.data, cell.seed, training) for cell in cells for training in ("plain", "paper")} <= ours
    assert {len(grid) for name, grid in BASELINES.items() if name != "leace"} == {5}


def test_figure_7_has_six_attributes_and_is_told_male() -> None:
    cells = attributes(REAL)
    assert {(cell.data, cell.hidden, cell.seed) for cell in cells} == {("celeba", CELEBA, 0)}
    assert cells[0].hidden[0] == "Male"
    assert {cell.defence for cell in cells} == {"top", "adversarial"}
    assert attributes(Settings(data=("utkface",))) == []


def test_figure_3_has_every_cut_and_both_operators_at_convolutions() -> None:
    found = {(cell.cut, cell.operator, cell.defence) for cell in cuts(REAL)}
    connected = {(cut, "dense", name) for cut in (4, 5, 6) for name in ("top", "free", "bounded")}
    patch = {(cut, "patch", name) for cut in (1, 2, 3) for name in ("top", "free", "bounded")}
    dense = {(cut, "dense", name) for cut in (1, 2, 3) for name in ("top", "bounded")}  # nothing to free there
    assert found == connected | patch | dense
    assert {(cell.cut >= 4, cell.seed) for cell in cuts(REAL)} == {(True, 0), (True, 1), (True, 2), (False, 2)}
    chosen = {(cell.cut, cell.defence) for cell in cuts(REAL) if cell.drop == 0.01}
    assert chosen == {(cut, "bounded") for cut in range(1, 7)} | {(cut, "top") for cut in (1, 2, 3)}


def test_the_frontier_has_every_cut_and_begins_with_what_the_goal_is_judged_on() -> None:
    cells = frontier(REAL)
    assert {cell.cut for cell in cells} == {1, 2, 3, 4, 5, 6}
    fitted = [cell for cell in cells if cell.defence in FITTED]
    assert {cell.training for cell in fitted} == {"plain"}
    assert all(cell.settings[0].get("m", 0) <= 16 for cell in fitted)
    assert {cell.defence for cell in cells[:24]} == {"distilled", "codebook"}
    assert {(cell.cut, cell.seed) for cell in cells[:24]} == {(4, 2), (5, 2), (6, 2)}
    assert {cell.seed for cell in cells if cell.defence == "device"} == {2}
    for cell in cells[24:]:  # what has one seed stands beside the goal's obfuscators on the same model
        if cell.training == "plain" and cell.cut > 4 and cell.defence in FITTED:
            assert cell.seed == 2 or cell.defence in ("distilled", "codebook")
    for name in ("distilled", "codebook"):
        its = {(cell.data, cell.cut, cell.seed) for cell in fitted if cell.defence == name and cell.cut > 1}
        assert its == set(itertools.product(grids.DATA, (2, 3, 4, 5, 6), (1, 2)))
    for cut in range(1, 7):
        assert {"distilled", "codebook", "server-aware", "device"} <= {
            cell.defence for cell in cells if cell.cut == cut
        }
    assert {len(cell.attacks) for cell in fitted if cell.cut >= 4} == {7}
    assert {set(ATTACK_NAMES) - set(cell.attacks) == {"de-censoring"} for cell in fitted if cell.cut < 4} == {True}


def test_the_frontier_shares_the_cells_of_the_paper_at_cut_4() -> None:
    assert set(slugs(baselines(REAL))) < set(slugs(frontier(REAL)))
    heads = [cell for cell in frontier(REAL) if (cell.defence, cell.cut) == ("device", 4)]
    widths = [setting["width"] for cell in heads for setting in cell.settings if cell.data == "pins"]
    assert sorted(widths) == [0, 2, 3, 4, 7, 16, 32, 80, 128]  # none twice


def test_there_are_at_least_as_many_messages_as_answers() -> None:
    cells = [cell for cell in frontier(REAL) if cell.defence == "codebook"]
    fewest = {(cell.data, cell.settings[-1]["messages"]) for cell in cells}
    assert fewest == {("utkface", 2), ("celeba", 2), ("pins", 2), ("qmnist", 10)}


def test_rows_of_another_tuning_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {repr(cell): cell for cell in frontier(REAL)}
    revisions = {(cell.defence, cell.tuning) for cell in before.values() if cell.cut != 2 and cell.tuning is not None}
    assert revisions == {*TUNED.items(), ("device", 2)}
    early = {(cell.defence, cell.tuning) for cell in before.values() if cell.cut == 2 and cell.tuning is not None}
    assert early == {("device", 2), *((defence, revision + 1) for defence, revision in TUNED.items())}
    monkeypatch.setitem(TUNED, "codebook", TUNED["codebook"] + 1)
    changed = [cell for cell in frontier(REAL) if repr(cell) not in before]
    assert {cell.defence for cell in changed} == {"codebook"}
    assert not set(slugs(changed)) & set(slugs(list(before.values())))


# What a cell computes, on few images.


class Regression:
    """A quick attack: linear regression of the secret's values."""

    name = "linear"
    fits = 0

    def fit(self, train: View, secret: torch.Tensor, *_: object, n_values: int, **__: object) -> Guess:
        type(self).fits += 1
        values = torch.nn.functional.one_hot(secret, n_values).double()
        weight = torch.linalg.pinv(with_one(train)) @ values
        return lambda view: torch.log_softmax(4 * with_one(view) @ weight, 1)


def with_one(view: View) -> torch.Tensor:
    return torch.nn.functional.pad(view.sent.flatten(1).double(), (0, 1), value=1.0)


@pytest.fixture(scope="module")
def few() -> sv.Dataset:
    """300 images 1×16×16: which half is bright is the target; hidden is which rows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(300, 1, 16, 16, generator=generator) * 0.3
    y, hidden = torch.randint(0, 2, (300,), generator=generator), torch.randint(0, 4, (300,), generator=generator)
    for image, half, row in zip(x, y.tolist(), hidden.tolist(), strict=True):
        image[:, :, 8 * half : 8 * half + 8] += 0.4
        image[:, 4 * row : 4 * row + 4] += 0.2
    return sv.Dataset.from_arrays(x, y, {"digit": hidden, "other": 1 - y})


@pytest.fixture
def place(few: sv.Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Place:
    for module in (points, pictures):
        monkeypatch.setattr(module, "load_data", lambda *_, **__: few)
    monkeypatch.setattr(points, "ATTACKS", (Regression(), *(one for one in ATTACKS if one.name != "linear")))
    return Place(tmp_path_factory.getbasetemp() / "points")  # trained once


def cell(**changes: Any) -> PointsCell:
    first = tradeoff(Settings(quick=True, epochs=3))[0]
    return replace(first, **changes)


@pytest.mark.filterwarnings("ignore:'other' follows from the target:splitveil.obfuscate.PrivacyWarning")
def test_a_cell_of_ours_holds_what_leakage_gives(few: sv.Dataset, place: Place) -> None:
    shares: list[float] = []
    one = cell(settings=({"m": 8}, {"m": 1}), hidden=("digit", "other"))
    result = points.compute(one, place, lambda share, _: shares.append(share))
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] <= 1
    numbers, n = result.numbers, len(few.test)
    (folder,) = (place.runs / "models").glob("*-all-0-*")
    model = sv.SplitModel(Run(folder).model(), at=4)
    assert numbers["n_test"] == n
    assert numbers["undefended"]["val"]["value"] == accuracy(model.model, few.val)
    assert unpack(numbers["undefended"]["right"], n).mean() == accuracy(model.model, few.test)
    factors = sv.factorise(model.server_layer, feature_shape=model.client(few.test.x).shape[1:])
    for found, m in zip(numbers["points"], (8, 1), strict=True):
        assert (found["setting"], found["components"], found["message_bytes"]) == ({"m": m}, m, 16 + 4 * m)
        for name in ("digit", "other"):
            mine = measure.leakage(model, sv.TopComponents(factors, m=m), few, hidden=name, attacks=[Regression()])
            leak = found["leaks"][name]
            assert leak["accuracy"]["value"] == pytest.approx(float(mine.attack), abs=0.03)
            assert unpack(leak["right"], n).mean() == pytest.approx(leak["accuracy"]["value"])
            assert found["target"]["test"]["value"] == pytest.approx(float(mine.target))
            assert unpack(found["target"]["right"], n).mean() == pytest.approx(float(mine.target))
            assert numbers["lines"][name]["raw"]["accuracy"]["value"] == pytest.approx(float(mine.raw), abs=0.03)
            assert numbers["prior"][name]["value"] == float(mine.prior)


def test_reference_lines_are_computed_once(few: sv.Dataset, place: Place, tmp_path: Path) -> None:
    split = sv.SplitModel(sv.Table1Net(few.input_shape, 2), at=4)
    same: dict[str, Any] = {"hidden": ("digit",), "attacks": [Regression()], "several": (1,)}
    mine = replace(place, runs=tmp_path)
    first = lines.kept_lines("few", split, few, mine, seed=0, **same)["digit"]
    before = Regression.fits
    again = lines.kept_lines("few", split, few, mine, seed=0, **same)["digit"]
    assert Regression.fits == before
    assert again.raw.accuracy == first.raw.accuracy
    assert again.raw.accuracy.interval == first.raw.accuracy.interval
    assert (again.raw.correct == first.raw.correct).all()
    assert again.raw.several[1] == first.raw.several[1]
    for changed in ({"seed": 1}, {"seed": 0, "several": ()}):
        lines.kept_lines("few", split, few, mine, **{**same, **changed})
        assert Regression.fits > before
        before = Regression.fits


def test_a_baseline_is_fitted_at_each_of_its_settings(place: Place) -> None:
    one = cell(training="plain", defence="pruning", settings=({"m": 16}, {"m": 1}))
    numbers = points.compute(one, place, lambda *_: None).numbers
    assert [found["setting"] for found in numbers["points"]] == [{"m": 16}, {"m": 1}]
    assert [found["message_shape"] for found in numbers["points"]] == [[16], [1]]


def test_the_shortest_message_within_the_drop_is_taken_and_alone_attacked(place: Place, few: sv.Dataset) -> None:
    grid = tuple({"m": m} for m in (16, 8, 4, 2, 1))
    numbers = points.compute(cell(settings=grid, drop=0.05, plain_seeds=(0,)), place, lambda *_: None).numbers
    (folder,) = (place.runs / "models").glob("*-plain-0-*")
    best = accuracy(Run(folder).model(), few.val)
    targets = {one["setting"]["m"]: one for one in numbers["targets"]}
    assert all(one["drop"] == pytest.approx(best - one["val"]["value"]) for one in targets.values())
    good = [m for m, one in targets.items() if one["drop"] <= 0.05]
    assert good  # else the case says nothing
    assert [m for m, one in targets.items() if one["taken"]] == [min(good)]
    assert [found["setting"] for found in numbers["points"]] == [{"m": min(good)}]
    nothing = points.compute(cell(settings=grid, drop=-1.0, plain_seeds=(0,)), place, lambda *_: None).numbers
    accurate = max(targets.values(), key=lambda one: one["val"]["value"])
    assert [found["setting"] for found in nothing["points"]] == [accurate["setting"]]


def test_a_setting_that_some_image_has_no_message_for_is_not_taken(
    place: Place, few: sv.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cell(settings=tuple({"m": m} for m in (16, 8, 4)), drop=1.0, plain_seeds=(0,))  # all are within the drop
    encode = sv.TopComponents.encode

    def refused(self: sv.TopComponents, z: torch.Tensor) -> torch.Tensor:
        if self.m == 4 and len(z) == len(few.train):
            raise DistortionError("too few factors")
        return encode(self, z)

    assert [found["setting"] for found in points.compute(one, place, lambda *_: None).numbers["points"]] == [{"m": 4}]
    monkeypatch.setattr(sv.TopComponents, "encode", refused)
    numbers = points.compute(one, place, lambda *_: None).numbers
    assert [found["setting"] for found in numbers["points"]] == [{"m": 8}]
    assert [target["taken"] for target in numbers["targets"]] == [False, True, False]
    assert (numbers["targets"][2]["why"], numbers["targets"][2]["drop"]) == ("too few factors", None)


def test_raw_features_are_computed_once(place: Place, few: sv.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    same: dict[str, Any] = {"drop": 0.05, "plain_seeds": (0,)}
    points.compute(cell(settings=({"m": 4},), **same), place, lambda *_: None)  # trains the models
    shutil.rmtree(place.runs / "lines")
    seen = dict.fromkeys(few.parts, 0)
    images = Part.images

    def counted(part: Part, rows: Any) -> torch.Tensor:
        found = images(part, rows)
        seen[next(name for name, each in few.parts.items() if each is part)] += len(found)
        return found

    monkeypatch.setattr(Part, "images", counted)
    grid = tuple({"m": m} for m in (16, 8, 4, 2, 1))
    points.compute(cell(settings=grid, **same), place, lambda *_: None)
    # Besides, the undefended model answers val and test, and the plain one val; 64 of val tell shapes, here all.
    passes = {name: seen[name] / len(part) for name, part in few.parts.items()}
    assert all(passes[name] < most + 0.9 for name, most in {"train": 1, "val": 4, "test": 2}.items()), passes


def test_what_is_not_possible_is_named(place: Place) -> None:
    at_3 = cell(cut=3, operator="patch", settings=({"m": 10_000}, {"m": 4}))
    numbers = points.compute(at_3, place, lambda *_: None).numbers
    assert [found["setting"] for found in numbers["points"]] == [{"m": 4}]
    assert numbers["left_out"] == [{"setting": {"m": 10_000}, "why": "the layer has 64 components"}]


def test_a_baseline_is_named_where_it_is_not_possible(place: Place) -> None:
    numbers = computed(place, cut=3, defence="pruning", settings=({"m": 65}, {"m": 4}))
    assert [found["setting"] for found in numbers["points"]] == [{"m": 4}]
    (left,) = numbers["left_out"]
    assert left["setting"] == {"m": 65}
    assert "channels" in left["why"]
    with pytest.raises(ExperimentError, match="pruning can be fitted at no setting here: m=65"):
        computed(place, cut=3, defence="pruning", settings=({"m": 65},))


def test_subjects_may_send_several_messages(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert points.SUBJECTS == ("writer", "identity")
    monkeypatch.setattr(points, "SUBJECTS", ("digit",))
    monkeypatch.setattr(points, "SEVERAL", (1, 3))
    found = points.compute(cell(settings=({"m": 8},)), place, lambda *_: None).numbers
    assert set(found["points"][0]["leaks"]["digit"]["several"]) == {"1", "3"}
    assert set(found["lines"]["digit"]["raw"]["several"]) == {"1", "3"}


def computed(place: Place, **changes: Any) -> dict[str, Any]:
    numbers: dict[str, Any] = points.compute(cell(training="plain", **changes), place, lambda *_: None).numbers
    return numbers


def test_one_fit_serves_all_numbers_of_coefficients(
    place: Place, few: sv.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counted(*args: Any, m: int, **more: Any) -> Any:
        asked.append(m)
        return fit_obfuscator(*args, m=m, **more)

    monkeypatch.setattr(ours, "fit_obfuscator", counted)
    numbers = computed(place, defence="server-aware", settings=({"m": 8}, {"m": 2}, {"m": 1}))
    assert asked == [8]
    assert [found["message_shape"] for found in numbers["points"]] == [[8], [2], [1]]
    (folder,) = (place.runs / "models").glob("*-plain-0-*")
    split = sv.SplitModel(Run(folder).model(), at=4)
    alone = fit_obfuscator("server-aware", split, few.train, m=2)
    answers = measure.view(split, alone, few.test)[1].argmax(1)
    assert numbers["points"][1]["target"]["test"]["value"] == float((answers == few.test.y).double().mean())
    assert all("messages" not in found for found in numbers["points"])


def test_where_fewer_directions_matter_the_most_that_there_are_is_fitted(place: Place) -> None:
    numbers = computed(place, cut=6, defence="server-aware", settings=({"m": 8}, {"m": 2}, {"m": 1}))
    assert [found["setting"] for found in numbers["points"]] == [{"m": 1}]  # two answers, one difference of logits
    assert [left["setting"] for left in numbers["left_out"]] == [{"m": 8}, {"m": 2}]


@pytest.mark.parametrize("defence", ["codebook", "quantised"])
def test_finite_messages_come_with_their_number_and_with_what_it_proves(
    place: Place, few: sv.Dataset, defence: str
) -> None:
    numbers = computed(place, defence=defence, settings=({"messages": 8}, {"messages": 2}))
    shares = sorted((few.test.hidden["digit"].bincount() / len(few.test)).tolist(), reverse=True)
    for found, asked in zip(numbers["points"], (8, 2), strict=True):
        assert 2 <= found["messages"] <= asked
        assert found["messages"] == prod(found["facts"]["levels"])
        assert found["bits"] == pytest.approx(log2(found["messages"]))
        assert found["guess_bound"]["digit"] == pytest.approx(sum(shares[: found["messages"]]))
        assert unpack(found["leaks"]["digit"]["right"], len(few.test)).mean() <= found["guess_bound"]["digit"]
        assert "frequencies" in found["leaks"]["digit"]["validation"]
    assert numbers["points"][-1]["guess_bound"]["digit"] < 0.7  # the case says something


def test_raw_maps_meet_few_attacks_and_the_other_lines_are_the_models(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(points, "ATTACKS", (Regression(), *(one for one in ATTACKS if one.name == "gradient-boosting")))
    monkeypatch.setattr(points, "ON_MAPS", ("linear",))
    names = ("linear", "gradient-boosting")
    same: dict[str, Any] = {"defence": "pruning", "settings": ({"m": 4},), "attacks": names}
    at_3, at_4 = (computed(place, cut=cut, **same)["lines"]["digit"] for cut in (3, 4))
    assert set(at_3["raw"]["validation"]) == {"linear"}
    assert set(at_4["raw"]["validation"]) == set(names)
    assert (at_3["label"], at_3["logits"]) == (at_4["label"], at_4["logits"])
    met = computed(place, cut=3, **same)["points"][0]["leaks"]["digit"]["validation"]
    assert set(met) == set(names)


def test_pictures_are_scored_and_kept_out_of_the_results(place: Place) -> None:
    one = replace(pictures.cells(Settings(quick=True, epochs=3))[0], kept=(8,), shown=4)
    numbers = pictures.compute(one, place, lambda *_: None).numbers
    scores = {name: each["ssim"]["value"] for name, each in numbers["messages"].items()}
    assert list(scores) == ["raw feature", "distortion-free", "m'=8", "mean image"]
    assert scores["raw feature"] > scores["mean image"]
    assert (place.runs / "pictures" / numbers["picture"]).read_bytes().startswith(b"\x89PNG")
    row = type("R", (), {"config": {"data": "few"}, "numbers": numbers})()
    assert "| mean image |" in pictures.table([row])
    assert pictures.plot([row]).axes


def test_pages_are_made_from_the_rows_alone(tmp_path: Path) -> None:
    quick = Settings(quick=True)
    assert reproduction.show("cost", quick, tmp_path, tmp_path) == []
    reproduction.reproduce("cost", quick, tmp_path, Place(tmp_path), jobs=1)
    pages = {path.name: path.read_bytes() for path in (tmp_path / "cost").iterdir() if path.is_file()}
    assert set(pages) == {"table.md", "plot.svg", "page.html"}
    for name in pages:
        (tmp_path / "cost" / name).unlink()
    written = reproduction.show("cost", quick, tmp_path, tmp_path)
    assert {path.name: path.read_bytes() for path in written} == pages
