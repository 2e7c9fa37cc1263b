"""Matched points, the area between two curves, and their intervals, on rows with known answers."""

from typing import Any

import numpy as np
import pytest

from made_rows import tradeoff
from splitveil.errors import ExperimentError
from splitveil.experiments.areas import area
from splitveil.experiments.frontier import OURS, Point, at_equal_drop, curves, matched, undefended
from splitveil.experiments.paired import gap, over_seeds
from splitveil.statistics import holm, isotonic

OWN = [(0.1, 0.4), (0.12, 0.5), (0.2, 0.6)]
WORSE = [(x, y - 0.1) for x, y in OWN]


def found(*rows: Any) -> dict[str, Any]:
    return curves(rows, "utkface", "race")


def test_rows_of_one_defence_and_several_files_come_together() -> None:
    its = found(
        tradeoff("pruning", WORSE[:1]), tradeoff("pruning", WORSE[1:]), tradeoff("top", OWN),
        tradeoff("top", OWN, training="plain"),
    )  # fmt: skip
    assert list(its) == [OURS, "ours, plain training", "pruning"]
    assert len(its["pruning"][0]) == 3


def test_other_cuts_operators_data_and_trainings_stay_out() -> None:
    strangers: list[dict[str, Any]] = [
        {"cut": 3}, {"operator": "patch"}, {"data": "celeba"}, {"training": "paper"}, {"defence": "bounded"},
    ]  # fmt: skip
    for stranger in strangers:
        assert found(tradeoff(stranger.pop("defence", "pruning"), WORSE, **stranger)) == {}


def test_rows_on_models_that_differ_are_not_compared() -> None:
    here = [tradeoff("pruning", WORSE), tradeoff("random", WORSE)]
    # Other seeds, trainings and data have models of their own.
    apart = [{"seed": 1}, {"training": "paper"}, {"data": "celeba"}]
    assert found(*here, *(tradeoff("pca", WORSE, plain=0.2, **each) for each in apart))
    for sentence, rows in (
        (r"utkface, plain training, seed 0, stand .* away: pca at cut 4 \(the other 2 rows", here),
        (r"away: pca at cut 4 \(the other 1 rows", here[:1]),
    ):
        with pytest.raises(ExperimentError, match=sentence):
            found(tradeoff("pca", WORSE, plain=0.11), *rows)
    with pytest.raises(ExperimentError, match="seed 3, stand on models that answer differently"):
        undefended(
            [tradeoff("pca", WORSE, seed=3, plain=plain, cut=cut) for plain, cut in ((0.1, 4), (0.2, 6))], "utkface"
        )


def test_rows_of_two_budgets_are_not_compared() -> None:
    with pytest.raises(ExperimentError, match="2 epochs in float32 and 20 epochs in float32"):
        found(tradeoff("top", OWN), tradeoff("pruning", OWN, epochs=2))


def test_drops_need_a_plain_model() -> None:
    with pytest.raises(ExperimentError, match="trained plainly"):
        undefended([tradeoff("top", OWN)], "utkface")


def test_matched_takes_the_weakest_attack_within_the_drop_and_extrapolates_nothing() -> None:
    rows = [tradeoff("top", OWN), tradeoff("top", OWN, training="plain"), tradeoff("pruning", WORSE[1:])]
    its = matched(found(*rows), undefended(rows, "utkface"), (0.0, 0.02, 0.2))
    assert its["pruning"][0] is None  # its least drop is 2 points
    assert [match and match.settings[0]["m"] for match in its[OURS]] == [1, 2, 4]
    match = its["pruning"][1]
    assert match is not None
    assert match.difference is not None
    assert match.p is not None
    assert match.difference == pytest.approx(0.1)
    assert match.drop == pytest.approx(0.02)
    assert match.difference.interval[0] > 0.07
    assert match.p < 0.05
    same = its["ours, plain training"][1]
    assert same is not None
    assert same.difference == 0
    assert same.p == 1


def test_the_same_comparison_is_corrected_for_once_and_a_clear_one_survives_many() -> None:
    rows = [tradeoff("top", OWN[:1]), tradeoff("top", OWN[:1], training="plain")]
    rows.append(tradeoff("pruning", WORSE[:1]))
    plain, drops = undefended(rows, "utkface"), (0.02, 0.05, 0.2)
    every = matched(found(rows[0], rows[2]), plain, drops)["pruning"]
    assert {match and match.p for match in every} == {2 / 10_001}  # the smallest that 10,000 resamples can give
    many = found(rows[0], *(tradeoff(f"p{index}", WORSE[:1]) for index in range(50)))
    assert all(match.p == pytest.approx(50 * 2 / 10_001) for match in (matched(many, plain, drops)["p7"]) if match)


def test_a_seed_that_reaches_no_drop_is_left_out_and_named() -> None:
    rows = [
        tradeoff("top", OWN), tradeoff("top", OWN[1:], seed=1), tradeoff("top", OWN[1:], seed=2),
        tradeoff("pruning", WORSE),
    ]  # fmt: skip
    match, later = matched(found(*rows), undefended(rows, "utkface"), (0.0, 0.02))[OURS]
    assert match is not None
    assert (list(match.settings), match.missing) == ([0], (1, 2))
    assert match.attack == pytest.approx(0.6)
    assert later is not None
    assert later.missing == ()


def test_at_equal_drop_is_the_smallest_that_both_reach() -> None:
    its = found(tradeoff("top", OWN), tradeoff("pruning", WORSE[1:]))
    at = at_equal_drop(its[OURS], its["pruning"], 0.9, (0.0, 0.02, 0.2))
    assert at is not None
    assert at.permitted == 0.02
    assert at.attack == pytest.approx(0.1)
    assert at.target == 0
    assert at_equal_drop(its[OURS], its["pruning"], 0.9, (0.0,)) is None


def test_a_gap_is_paired_by_sample_and_seed() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.random(1000) > 0.5, generator.random(1000) > 0.5
    same = gap({0: one}, {0: one})
    assert same == 0
    assert same.interval == pytest.approx((-0.0037, 0.0037), abs=1e-4)  # 1,000 samples may hide so many that differ
    assert gap({0: one}, {1: one}) is None
    worse = one & (np.arange(1000) >= 20)
    close = gap({0: one}, {0: worse})
    wide = gap({0: one}, {0: other})
    assert close is not None
    assert wide is not None
    assert close.interval[0] > 0
    assert close.interval[1] - close.interval[0] < 0.3 * (wide.interval[1] - wide.interval[0])
    seeds = {0: one, 1: one, 2: one}
    assert over_seeds(np.arange(7.0)[:, None].repeat(3, axis=1))[0] == 3  # each seed once, in the estimate
    both = gap(seeds, {0: one, 1: worse})
    assert both is not None
    assert both == pytest.approx(close / 2)
    assert both.interval[0] == 0  # a resample may draw the seed without a difference twice


def test_area_between_parallel_lines_is_width_times_gap() -> None:
    its = found(tradeoff("top", [(0.1, 0.4), (0.2, 0.6)]), tradeoff("p", [(0.1, 0.3), (0.2, 0.5)]))
    between = area(its[OURS], its["p"])
    assert between is not None
    assert between.width == pytest.approx(0.1)
    assert between.area == pytest.approx(0.1 * 0.1)
    assert between.area.interval[0] > 0
    back = area(its["p"], its[OURS])
    assert back is not None
    assert back.area == pytest.approx(-0.01)


def test_area_of_a_curve_with_itself_is_nothing_in_every_resample() -> None:
    own = found(tradeoff("top", OWN))[OURS]
    between = area(own, own)
    assert between is not None
    assert between.area == 0
    assert between.area.interval == (0, 0)


def test_area_ignores_points_dominated_on_validation_and_uses_the_common_range_only() -> None:
    clean = [(0.1, 0.4), (0.2, 0.6)]
    its = found(tradeoff("top", [*clean, (0.19, 0.1)]), tradeoff("p", [(0.15, 0.3), (0.3, 0.6)]))
    between = area(its[OURS], its["p"])
    # From 15 to 20 %: ours rises from 50 to 60 %, theirs from 30 to 40 %.
    assert between is not None
    assert between.area == pytest.approx(0.05 * 0.2)


@pytest.mark.parametrize("theirs", [[(0.15, 0.3)], [(0.3, 0.3), (0.4, 0.5)], [(0.1, 0.5), (0.2, 0.4)]])
def test_no_area_for_one_point_or_no_common_range(theirs: list[tuple[float, float]]) -> None:
    its = found(tradeoff("top", OWN), tradeoff("leace", theirs))
    assert area(its[OURS], its["leace"]) is None


def test_no_area_where_many_resamples_have_no_common_range() -> None:
    """Target errors of 10 and 10.2 % of 1,000 samples: paired, one in eight resamples has no range between them."""
    its = found(tradeoff("top", [(0.1, 0.4), (0.102, 0.6)]), tradeoff("p", [(0.1, 0.3), (0.102, 0.5)]))
    assert area(its[OURS], its["p"]) is None
    wide = found(tradeoff("top", [(0.1, 0.4), (0.11, 0.6)]), tradeoff("p", [(0.1, 0.3), (0.11, 0.5)]))
    assert area(wide[OURS], wide["p"]) is not None


def test_area_is_the_mean_over_common_seeds_and_its_interval_covers_them() -> None:
    level = [(0.1, 0.3), (0.2, 0.5)]
    rows = [tradeoff("p", level, seed=seed) for seed in (0, 1)]
    rows += [tradeoff("top", [(x, y + 0.1 + 0.2 * seed) for x, y in level], seed=seed) for seed in (0, 1, 2)]
    its = found(*rows)
    between = area(its[OURS], its["p"])
    assert between is not None
    assert between.seeds == 2
    assert between.area == pytest.approx(0.02)
    assert between.area.interval[0] < 0.011
    assert between.area.interval[1] > 0.029


def test_the_interval_covers_the_true_area_at_about_the_nominal_rate() -> None:
    generator = np.random.default_rng(0)
    hits, runs, n = 0, 80, 400

    def drawn(errors: list[tuple[float, float]]) -> dict[int, list[Point]]:
        return {0: [
            Point({}, 1 - x, 1 - y, generator.random(n) >= x, generator.random(n) >= y, {}) for x, y in errors
        ]}  # fmt: skip

    for _ in range(runs):
        between = area(drawn([(0.1, 0.4), (0.25, 0.5), (0.4, 0.6)]), drawn([(0.1, 0.3), (0.25, 0.4), (0.4, 0.5)]))
        assert between is not None
        low, high = between.area.interval
        hits += low <= 0.3 * 0.1 <= high
    assert hits >= 0.87 * runs


def test_holm_and_isotonic_have_their_textbook_values() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    fitted = isotonic(np.array([[1.0, 3.0, 2.0, 4.0], [3.0, 2.0, 1.0, 5.0]]))
    assert fitted == pytest.approx(np.array([[1, 2.5, 2.5, 4], [2, 2, 2, 5]]))
