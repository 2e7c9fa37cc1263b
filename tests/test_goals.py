"""The goal judged by data set and cut, and the frontier's tables and plots, from rows with known answers."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from made_rows import entry, row, share
from splitveil.experiments import excess, reproduction
from splitveil.experiments.cells import Row, row_path, write_row
from splitveil.experiments.goals import Reach, fewest, reaches
from splitveil.experiments.grids import frontier
from splitveil.experiments.results import summary_page
from splitveil.experiments.training import Settings


def ours(*errors: tuple[int, float, float], **more: Any) -> Row:
    """Of real numbers: m, target error and attack error of each setting; the reference on logits errs in 50 %."""
    entries = [entry({"m": m}, target, {"race": attack}, components=m) for m, target, attack in errors]
    return row(more.pop("defence", "distilled"), entries, **more)


def finite(*errors: tuple[int, float, float], used: int = 0, **more: Any) -> Row:
    """Of so many messages, of which ``used`` are not; the reference on labels errs in 55 %."""
    entries = [
        entry({"messages": count}, target, {"race": attack}, messages=count - used) for count, target, attack in errors
    ]
    return row("codebook", entries, **more)


def one(*rows: Row, name: str = "distilled") -> Reach:
    (found,) = reaches(rows, (name,))
    return found


@pytest.mark.parametrize(
    ("target", "attack", "word"),
    [
        (0.1, 0.5, "reached"),
        (0.1, 0.495, "reached"),
        (0.109, 0.5, "point estimate only"),
        (0.1, 0.491, "point estimate only"),
        (0.13, 0.5, "missed by 2.00 (drop)"),
        (0.1, 0.45, "missed by 4.00 (excess)"),
        (0.13, 0.45, "missed by 2.00 (drop) and 4.00 (excess)"),
    ],
)
def test_reached_means_that_both_intervals_end_within_the_goal(target: float, attack: float, word: str) -> None:
    found = one(ours((8, target, attack)))
    assert found.word == word
    assert found.drop == pytest.approx(target - 0.1)
    assert found.excess == pytest.approx(0.5 - attack)


def test_the_weakest_attack_within_the_drop_is_chosen_and_at_most_16_coefficients_are() -> None:
    found = one(ours((32, 0.1, 0.9), (16, 0.1, 0.45), (8, 0.105, 0.5), (4, 0.105, 0.48), (1, 0.2, 0.6)))
    assert found.points[0].setting == {"m": 8}
    assert found.within == 1


def test_where_no_setting_is_within_the_drop_the_most_accurate_one_tells_how_far_it_is() -> None:
    found = one(ours((8, 0.12, 0.5), (2, 0.3, 0.6)), ours((8, 0.1, 0.5), seed=1))
    assert {seed: point.setting for seed, point in found.points.items()} == {0: {"m": 8}, 1: {"m": 8}}
    assert found.within == 1
    assert found.drop == pytest.approx(0.01)


def test_of_settings_alike_on_validation_the_one_that_sends_least_counts() -> None:
    found = one(finite((64, 0.105, 0.55), (10, 0.105, 0.55), (2, 0.3, 0.6)), name="codebook")
    assert found.points[0].setting == {"messages": 10}
    missed = one(ours((8, 0.12, 0.5), (4, 0.12, 0.5), (2, 0.3, 0.6), plain=0.1))
    assert (missed.within, missed.points[0].setting) == (0, {"m": 4})


def test_the_drop_is_against_the_best_model_and_the_own_drop_against_the_seeds_own() -> None:
    found = one(ours((8, 0.12, 0.5), plain=0.12), ours((8, 0.1, 0.5), seed=1, plain=0.1))
    assert found.drop == pytest.approx(0.01)
    assert found.own == 0


def test_finite_messages_are_held_to_the_label_and_may_be_many() -> None:
    found = one(finite((64, 0.1, 0.52), (10, 0.1, 0.55), (2, 0.3, 0.6)), name="codebook")
    assert found.finite
    assert found.points[0].setting == {"messages": 10}
    assert (found.excess, found.word) == (0, "reached")
    assert one(finite((10, 0.1, 0.5)), name="codebook").word == "missed by 4.00 (excess)"


def test_cuts_are_judged_apart_and_in_the_goals_order() -> None:
    rows = [ours((8, 0.1, 0.5), cut=cut) for cut in (2, 3, 6, 4)]
    assert [found.cut for found in reaches(rows, ("distilled",))] == [4, 6, 3, 2]
    assert reaches(rows, ("server-aware",)) == []
    assert reaches([ours((8, 0.1, 0.5), training="paper")], ("distilled",)) == []  # nothing to measure drops against


def heads(*errors: tuple[int, float, int], **more: Any) -> Row:
    """Answers on the device: width, target error and edge compute."""
    return row(
        "device", [entry({"width": w}, error, {"race": 0.5}, edge_macs=macs) for w, error, macs in errors], **more
    )


def test_the_answer_on_the_device_costs_the_edge_no_more_than_ours() -> None:
    rows = [ours((8, 0.1, 0.5)), ours((8, 0.1, 0.5), seed=1)]
    ahead = one(*rows, heads((0, 0.3, 900), (4, 0.14, 1005), (16, 0.05, 2000))).ahead
    assert ahead is not None
    assert ahead == pytest.approx(0.04)  # not against the wide head, which is better and dearer
    assert one(*rows, heads((0, 0.14, 900))).ahead_word == "yes"
    assert one(*rows, heads((0, 0.102, 900))).ahead_word == "point estimate only"
    assert one(*rows, heads((0, 0.1, 900))).ahead_word == "no"
    assert one(*rows, heads((16, 0.05, 2000))).ahead_word == "not measured"
    assert one(*rows, heads((0, 0.14, 900), seed=2)).ahead is None
    assert one(*rows, heads((0, 0.14, 900), cut=5)).ahead is None


def test_how_much_a_head_must_cost_to_answer_as_well_stands_beside_it() -> None:
    rows = [ours((8, 0.1, 0.5)), ours((8, 0.1, 0.5), seed=1)]
    assert one(*rows, heads((0, 0.3, 900), (4, 0.1, 1020), (16, 0.05, 2000))).even == {0: pytest.approx(1.02)}
    assert one(*rows, heads((0, 0.101, 900))).even == {0: None}
    assert one(*rows).even == {}
    table = excess.table([*rows, heads((0, 0.3, 900), (4, 0.1, 1020))])
    assert ": yes | ×1.02 |" in table
    assert "yes | none |" in excess.table([*rows, heads((0, 0.3, 900))])


def test_the_fewest_messages_are_those_that_most_seeds_keep_the_drop_with() -> None:
    rows = [
        finite((16, 0.1, 0.5), (8, 0.105, 0.5), (4, 0.105, 0.5), (2, 0.3, 0.5), used=1),
        finite((16, 0.1, 0.5), (8, 0.105, 0.5), (4, 0.12, 0.5), seed=1),
    ]
    (found,) = fewest(rows, ("codebook",))
    assert (found.messages, found.seeds) == (8, (2, 2))  # of one seed one codeword is unused
    (alone,) = fewest(rows[:1], ("codebook",))
    assert (alone.messages, alone.seeds) == (3, (1, 1))
    few = [finite((4, 0.2, 0.5), (2, 0.3, 0.5)), ours((8, 0.1, 0.5))]
    (none,) = fewest(few, ("codebook", "distilled"))
    assert (none.messages, none.most, none.seeds, none.points) == (None, 4, (0, 1), {})
    assert "| utkface, race | 4 | codebook | none up to 4 | – | 0 of 1 | – | – |" in excess.table(few)
    assert "| utkface, race | 4 | codebook | 3 | 1.58 | 1 of 1 | 60.0 | 50.0 [49.0, 51.0] |" in excess.table(rows[:1])


ROWS = [
    ours((16, 0.1, 0.45), (8, 0.1, 0.5)), finite((64, 0.1, 0.55), (2, 0.105, 0.55)),
    heads((4, 0.14, 900), (0, 0.2, 800)),
    ours((32, 0.1, 0.4), (1, 0.2, 0.6), defence="top"), ours((32, 0.1, 0.4), defence="top", training="plain"),
    ours((8, 0.1, 0.4), defence="server-aware", cut=3), row("adversarial", [entry({"gamma": 1}, 0.1, {"race": 0.4})]),
    ours((8, 0.1, 0.4), data="qmnist", cut=2),
]  # fmt: skip


def legend(figure: Figure) -> set[str]:
    figure.canvas.draw()
    return {text.get_text() for text in figure.legends[0].get_texts()}


def test_the_table_has_the_verdicts() -> None:
    table = excess.table(ROWS)
    assert "| utkface, race | 4 | distilled | m'=8 | 1 of 1 | 0.0 [-0.4, 0.4] | 0.0 [-0.4, 0.4] | 0.0 [-0.4, 0.4] | **reached** | 4.0" in table  # fmt: skip # noqa: E501
    assert "| utkface, race | 4 | codebook | messages=64 |" in table
    assert "| utkface, race | 3 | server-aware | m'=8 |" in table
    assert "| utkface, race | 4 | top, paper's training | m'=1 | – | 1 | 20.0 [" in table
    assert "**missed by 9.00 (excess)** | – |" in table
    for name in ("Real numbers", "The fewest messages", "Every setting"):
        assert name in table


def test_the_plots_show_each_defence_the_device_and_the_goal() -> None:
    names = {"distilled", "codebook", "top", "top, paper's training", "device", "adversarial"}
    lines = {"undefended", "goal", "answer on device, best head"}
    first = excess.plot(ROWS)
    assert legend(first) == names | lines  # of cut 4
    assert [axes.get_title() for axes in first.axes] == ["utkface: race, cut 4"]
    every = excess.cuts_plot(ROWS)
    assert legend(every) == names | lines | {"server-aware"}
    assert [axes.get_title() for axes in every.axes[:3]] == ["cut 2", "cut 3", "cut 4"]
    assert len(every.axes) == 6
    (device,) = [each for each in first.axes[0].lines if each.get_label() == "answer on device, best head"]
    assert device.get_ydata()[0] == pytest.approx(14)


def test_a_defence_without_a_colour_of_its_own_is_shown_too() -> None:
    new = row("new", [entry({"m": 8}, 0.1, {"race": 0.5}, components=8)])
    assert "new" in legend(excess.plot([*ROWS, new]))


@pytest.mark.parametrize("index", range(len(ROWS)))
def test_a_sweep_that_has_just_begun_shows_what_there_is(index: int) -> None:
    rows = ROWS[index : index + 1]
    for draw in (excess.plot, excess.cuts_plot):
        draw(rows).canvas.draw()
    assert excess.table(rows).startswith("# Target error against excess leakage")


def test_the_frontier_writes_both_plots(tmp_path: Path) -> None:
    quick = Settings(quick=True)
    cell = frontier(quick)[0]
    made = row("distilled", [entry({"m": 8}, 0.1, {"digit": 0.5}, components=8)], hidden=("digit",))
    row_path(tmp_path / "points" / "rows", cell).parent.mkdir(parents=True)
    known = made.model_copy(update={"config": asdict(cell)})
    write_row(row_path(tmp_path / "points" / "rows", cell), known)
    written = reproduction.show("frontier", quick, tmp_path, tmp_path)
    assert [path.name for path in written] == ["table.md", "plot.svg", "cuts.svg", "page.html"]
    assert "**reached**" in written[0].read_text(encoding="utf-8")
    assert all(path.read_text(encoding="utf-8").startswith("<?xml") for path in written[1:3])


def test_the_page_of_results_begins_with_the_goal_once_ours_is_measured() -> None:
    page = summary_page({"frontier": ROWS})
    assert page.index("## The goal") < page.index("## The paper's claims")
    assert "../results/frontier/plot.svg" in page
    assert "The goal" not in summary_page({"frontier": ROWS[2:5]})


def test_other_measures_than_accuracy_stand_beside_the_goal() -> None:
    def leaking(auc: float) -> list[Row]:
        one = entry({"m": 8}, 0.1, {"race": 0.5})
        one["leaks"]["race"] |= {"auc": share(1 - auc), "balanced": share(0.8), "bits": share(0.98)}
        return [row("distilled", [one], plain=0.1)]

    told, equal = (excess.table(leaking(auc)).split("## The fewest")[0] for auc in (0.79, 0.755))
    assert "| utkface, race | 4 | distilled | m'=8 | 20.0 [19.0, 21.0] / 50.0 [49.0, 51.0] |" in told
    assert "| **79.0 [78.0, 80.0] / 75.0 [74.0, 76.0]** | 0.020 [0.010, 0.030] / 0.500 [0.490, 0.510] |" in told
    assert "| 75.5 [74.5, 76.5] / 75.0 [74.0, 76.0] |" in equal


def test_rows_in_which_accuracy_chose_for_all_scores_are_marked() -> None:
    one = entry({"m": 8}, 0.1, {"race": 0.5})
    del one["leaks"]["race"]["best_by"]
    told = excess.table([row("distilled", [one], plain=0.1)]).split("## The fewest")[0]
    assert "| utkface, race | 4 | distilled* | m'=8 |" in told
    assert "| 0.500 / 0.500 |" in told
