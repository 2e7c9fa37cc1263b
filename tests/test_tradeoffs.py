"""Figures 3 to 7: plots and tables, from a few made rows."""

from typing import Any

import pytest
from matplotlib.figure import Figure

from made_rows import entry, line, row, share, tradeoff
from splitveil.experiments import tradeoffs
from splitveil.experiments.attributes import attributes_of, figure7
from splitveil.experiments.cells import Row
from splitveil.experiments.depth import Curve, cuts_of, kept_shares

OWN = [(0.25, 0.6), (0.15, 0.5), (0.1, 0.4)]
WORSE = [(x, y - 0.1) for x, y in OWN]
ROWS = [
    tradeoff("top", OWN), tradeoff("top", OWN, training="plain"), tradeoff("pruning", WORSE),
    tradeoff("adversarial", WORSE), tradeoff("device", WORSE),
]  # fmt: skip


def legend(figure: Figure) -> set[str]:
    figure.canvas.draw()
    return {text.get_text() for text in figure.legends[0].get_texts()}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("kept", {"ours: attack", "ours: target", "ours, plain training: attack", "prior", "logits, paper training"}),
        ("pruning", {"ours", "pruning", "device", "raw, paper training", "raw, plain training", "prior"}),
        ("adversarial", {"ours", "adversarial", "device"}),
        ("frontier", {"ours", "pruning", "adversarial", "device"}),
        ("attributes", {"undefended", "ours, m'=1", "adversarial training on race", "prior", "logits, plain training"}),
    ],
)
def test_every_figure_draws_and_has_its_table(name: str, shown: set[str]) -> None:
    assert shown <= legend(getattr(tradeoffs, f"{name}_plot")(ROWS))
    assert "| ---" in getattr(tradeoffs, f"{name}_table")(ROWS)


@pytest.mark.parametrize("name", ["kept", "pruning", "adversarial", "frontier", "attributes", "cuts"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_sweep_that_has_just_begun_draws_too(name: str, index: int) -> None:
    getattr(tradeoffs, f"{name}_plot")(ROWS[index : index + 1]).canvas.draw()
    assert getattr(tradeoffs, f"{name}_table")(ROWS[index : index + 1]).startswith("# ")


def test_the_table_has_the_numbers() -> None:
    assert "| utkface, race | ours | m'=1 | 25.0 [24.0, 26.0] | 60.0 [59.0, 61.0] |" in tradeoffs.kept_table(ROWS)
    assert "Several messages" not in tradeoffs.kept_table(ROWS)


def test_several_messages_of_one_subject_have_a_table() -> None:
    several = {str(count): share(1 - 0.1 * count) for count in (1, 10, 5)}  # as JSON sorts its keys
    one = tradeoff("top", OWN)
    numbers = one.numbers | {"points": [{**each, "leaks": {"race": {**each["leaks"]["race"], "several": several}}}
                                        for each in one.numbers["points"]]}  # fmt: skip
    numbers["lines"] = {"race": {name: {**line(0.5), "several": several} for name in ("label", "logits", "raw")}}
    table = tradeoffs.kept_table([one.model_copy(update={"numbers": numbers})])
    assert "| data, subject | defence | sent | from 1 | from 5 | from 10 |" in table
    assert "| utkface, race | ours | m'=1 | 10.0 [9.0, 11.0] | 50.0 [49.0, 51.0] | 100.0" in table
    assert "| utkface, race | ours | raw | 10.0" in table


def target(error: float, setting: dict[str, Any], *, taken: bool, best: float = 0.9) -> dict[str, Any]:
    return {"setting": setting, "index": 0, "val": share(error), "drop": best - (1 - error), "taken": taken}


def at_cut(cut: int, operator: str, raw: float, defence: str, entries: list[Any], **more: Any) -> Row:
    return row(defence, entries, training="paper", cut=cut, operator=operator, lines={"raw": raw}, **more)


def fig3(seed: int = 0) -> list[Row]:
    """Cut 3 (patch) and cut 4; the best plain model errs in 10 %."""
    ten = entry({"m": 10}, 0.105, {"race": 0.45}, components=10)
    loud = entry({"epsilon": 0.1}, 0.15, {"race": 0.5}, components=None)  # type: ignore[arg-type]
    quiet = entry({"epsilon": 0.3}, 0.105, {"race": 0.46})
    return [
        at_cut(3, "patch", 0.2, "free", [entry({}, 0.1, {"race": 0.3}, components=20)], seed=seed),
        at_cut(3, "patch", 0.2, "top", [ten], seed=seed,
               targets=[target(0.105, {"m": 10}, taken=True), target(0.3, {"m": 1}, taken=False)]),
        at_cut(3, "patch", 0.2, "bounded", [loud], seed=seed, targets=[target(0.15, {"epsilon": 0.1}, taken=True)]),
        at_cut(4, "dense", 0.4, "free", [entry({}, 0.1, {"race": 0.45}, components=8)], seed=seed),
        at_cut(4, "dense", 0.4, "top", [
            entry({"m": m}, error, {"race": 0.6 - 0.02 * m}, components=m)
            for m, error in ((6, 0.1), (2, 0.2), (5, 0.11))
        ], seed=seed),
        at_cut(4, "dense", 0.4, "bounded", [quiet], seed=seed, targets=[target(0.105, {"epsilon": 0.3}, taken=True)]),
    ]  # fmt: skip


def test_each_cut_shows_the_setting_chosen_on_validation() -> None:
    found = cuts_of(fig3(), "utkface", "race")
    assert {line.label for line in found} == {
        "undefended", "distortion-free, patch", "top m' within 1 point, patch", "top m' within 1 point, dense",
        "ε within 1 point, patch", "ε within 1 point, dense",
    }  # fmt: skip
    assert {cut: its[0].accuracy["value"] for cut, its in found[Curve("none", "dense")].items()} == {3: 0.8, 4: 0.6}
    top = found[Curve("top", "patch")]
    assert top[3][0].setting == {"m": 10}
    assert top[4][0].setting == {"m": 5}  # the fewest within 1 point, in whatever order they come
    assert top[4][0].drop == pytest.approx(0.01)
    assert found[Curve("top", "dense")].keys() == {4}
    bounded = found[Curve("bounded", "patch")]
    assert (bounded[3][0].within, bounded[4][0].within) == (False, True)


def test_a_seed_is_held_to_the_models_that_its_own_machine_trained() -> None:
    quiet = entry({"epsilon": 0.3}, 0.105, {"race": 0.46})
    better = [target(0.105, {"epsilon": 0.3}, taken=True, best=0.96)]
    other = [*fig3(seed=1)[3:5], at_cut(4, "dense", 0.4, "bounded", [quiet], seed=1, targets=better)]
    top = cuts_of([*fig3(), *other], "utkface", "race")[Curve("top", "dense")][4]
    assert {seed: one.setting for seed, one in top.items()} == {0: {"m": 5}, 1: {"m": 6}}
    assert {seed: one.drop for seed, one in top.items()} == {0: pytest.approx(0.01), 1: pytest.approx(0.06)}


def test_where_nothing_is_within_a_point_the_least_bad_is_hollow() -> None:
    rows = [
        *fig3()[:4],
        at_cut(4, "dense", 0.4, "top", [entry({"m": m}, 0.3 - 0.01 * m, {"race": 0.5}) for m in (9, 3)]),
    ]
    one = cuts_of(rows, "utkface", "race")[Curve("top", "patch")][4][0]
    assert one.setting == {"m": 9}
    assert not one.within
    figure = tradeoffs.cuts_plot(rows)
    assert {"undefended", "distortion-free, patch", "prior", "logits, cut 4"} <= legend(figure)
    hollow = [len(its.get_xdata()) for its in figure.axes[0].lines if its.get_markerfacecolor() == "white"]  # type: ignore[arg-type]
    assert sum(hollow) == 3  # top at cut 4 belongs to both operators' lines
    assert "| utkface, race | top m' within 1 point, patch | 4 | 50.0 [49.0, 51.0] | 1 | m'=9 | 11.0 | 0 of 1 |" in (
        tradeoffs.cuts_table(rows)
    )


def test_seeds_are_not_pooled_silently() -> None:
    table = tradeoffs.cuts_table([*fig3(), *fig3(seed=1)])
    assert "| utkface, race | top m' within 1 point, patch | 4 | 50.0 [50.0, 50.0] | 2 | m'=5 | 1.0 | 2 of 2 |" in table


def test_the_share_kept_is_of_what_distortion_free_sends() -> None:
    assert kept_shares(fig3(), "utkface", "race") == {3: [0.5], 4: [5 / 8]}


SIX = ("Male", "Heavy_Makeup")


def fig7() -> list[Row]:
    same: dict[str, Any] = {"hidden": SIX, "data": "celeba"}
    plain: dict[str, Any] = {"lines": {"raw": 0.1}, **same}
    return [
        row("top", [entry({"m": m}, 0.1, dict.fromkeys(SIX, 0.5 / m)) for m in (1, 2)], **same),
        row("top", [entry({"m": 1}, 0.1, dict.fromkeys(SIX, 0.3))], training="plain", **plain),
        row("adversarial", [entry({"gamma": 0.1}, 0.1, {"Male": 0.2, "Heavy_Makeup": 0.1})], **plain),
        row("adversarial", [entry({"gamma": 0.5}, 0.105, {"Male": 0.4, "Heavy_Makeup": 0.2})], **plain),
        row("adversarial", [entry({"gamma": 1.0}, 0.3, {"Male": 0.5, "Heavy_Makeup": 0.4})], **plain),
    ]


def test_figure_7_is_celebas_and_takes_the_best_hiding_setting_within_a_point() -> None:
    found = figure7([*ROWS, *fig7()])
    assert (found.data, found.told, found.hidden) == ("celeba", "Male", SIX)
    assert found.theirs["Male"][0].setting == {"gamma": 0.5}
    groups = attributes_of([*ROWS, *fig7()])
    assert groups["Male"]["undefended"]["value"] == pytest.approx(0.9)  # plain training's raw feature
    assert groups["Heavy_Makeup"]["ours, m'=1"]["value"] == pytest.approx(0.5)
    assert groups["Heavy_Makeup"]["adversarial training on Male"]["value"] == pytest.approx(0.8)
    assert "seed 0: gamma=0.5" in tradeoffs.attributes_table(fig7())
