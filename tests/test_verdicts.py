"""Each claim's rule, on rows whose verdict is known, both ways; and the page that is made of them."""

from collections.abc import Sequence
from typing import Any

import pytest

from made_rows import entry, row, tradeoff
from splitveil.experiments.cells import Row
from splitveil.experiments.results import summary_page
from splitveil.experiments.verdicts import CLAIMS, Verdict, together
from splitveil.experiments.verdicts.verdict import Part
from test_tradeoffs import at_cut, fig3, target

OWN = [(0.25, 0.6), (0.15, 0.5), (0.1, 0.4)]
WORSE = [(x, y - 0.1) for x, y in OWN]


def judged(start: str, rows: Sequence[Row]) -> Verdict:
    """The verdict of the claim that starts with these words."""
    (claim,) = [claim for claim in CLAIMS if claim.text.startswith(start)]
    return claim.judge(rows)


def test_parts_make_a_verdict() -> None:
    yes, no, unknown = Part("a", "one", True), Part("b", "two", False), Part("a", "three", None)
    assert together([yes, unknown]).word == "holds"
    assert together([yes, no]).word == "holds in part"
    assert together([no]).word == "does not hold here"
    assert together([unknown]).word == together([]).word == "not measured"
    assert together([yes, yes, no], most=True).word == "holds"
    assert together([yes, no], most=True).word == "holds in part"
    assert together([yes, no, unknown]).sentence == "a: holds: one. not measured: three. b: does not hold: two."


def content(layers: dict[str, list[float]], variant: str = "all") -> Row:
    its = [
        {"operator": operator, "cut": cut, "layer": {"value": value, "low": value - 0.01, "high": value + 0.01},
         "cumulative": {"value": sum(values[:cut]), "low": 0, "high": 0}}
        for operator, values in layers.items() for cut, value in enumerate(values, 1)
    ]  # fmt: skip
    config = {"data": "utkface", "variant": variant, "seed": 0, "operators": list(layers), "cuts": [1, 2]}
    return Row(
        experiment="fig2", config=config, data="d", versions={}, device="cpu", seconds={}, numbers={"content": its}
    )  # fmt: skip


def test_content_falls() -> None:
    falls, level = [-0.1, -0.2], [-0.1, -0.004]
    assert judged("The signal content", [content({"patch": falls}), content({"patch": level}, "plain")]).word == "holds"
    verdict = judged("The signal content", [content({"patch": falls, "dense": level})])
    assert verdict.word == "holds in part"
    assert "dense: cumulative -0.10 after layer 2, no fall at layer 2" in verdict.sentence
    assert judged("The signal content", [content({"patch": level})]).word == "does not hold here"


def undefended_at(*raw: float, seed: int = 0) -> list[Row]:
    """Rows of cuts 4, 5, … with these errors of the attack on the raw feature, and no message within 1 point."""
    free = [entry({}, 0.1, {"race": 0.5}, components=8)]
    return [at_cut(4 + index, "dense", error, "free", free, seed=seed) for index, error in enumerate(raw)]


def test_the_attack_falls_with_depth() -> None:
    text = "The attack's accuracy"
    assert "holds: undefended by 10.0 [" in judged(text, undefended_at(0.2, 0.3)).sentence
    rising = judged(text, undefended_at(0.2, 0.4, 0.3)).sentence
    assert "does not hold: undefended by 10.0 [" in rising
    assert "with a rise to cut 6" in rising
    assert "does not hold: undefended by 0.2 [" in judged(text, undefended_at(0.3, 0.302)).sentence
    assert judged(text, undefended_at(0.3)).word == "not measured"
    # A rise to the first cut that meets more attacks says nothing; one between cuts that meet the same does.
    maps = [at_cut(cut, "dense", error, "free", [], seed=0) for cut, error in ((2, 0.2), (3, 0.3), (4, 0.25), (5, 0.4))]
    assert judged(text, maps).word == "holds"
    back = [at_cut(cut, "dense", error, "free", [], seed=0) for cut, error in ((2, 0.3), (3, 0.2), (4, 0.4))]
    assert "with a rise to cut 3" in judged(text, back).sentence
    # One seed alone cannot speak of cuts that only other seeds have.
    apart = [*undefended_at(0.2), *undefended_at(0.2, 0.4, seed=1)[1:]]
    assert judged(text, apart).word == "not measured"


def test_distortion_free_hides_where_it_removes_anything() -> None:
    verdict = judged("Distortion-free", fig3())
    assert verdict.word == "holds in part"
    assert "does not hold: cut 3, dense: the identity" in verdict.sentence
    assert judged("Distortion-free", fig3()[3:]).word == "holds"
    same = at_cut(4, "dense", 0.4, "free", [entry({}, 0.1, {"race": 0.4})])
    assert judged("Distortion-free", [same]).word == "does not hold here"


def test_bounded_hides_more_than_free_within_a_point() -> None:
    verdict = judged("Bounded", fig3())
    assert verdict.word == "holds"
    assert "cut 3, patch, m': by 15.0 [" in verdict.sentence
    assert "cut 4, m': by 5.0 [" in verdict.sentence
    assert "not measured: cut 3, patch, ε: no setting within 1 point" in verdict.sentence
    louder = at_cut(4, "dense", 0.4, "bounded", [entry({"epsilon": 0.3}, 0.1, {"race": 0.44})],
                    targets=[target(0.1, {"epsilon": 0.3}, taken=True)])  # fmt: skip
    assert judged("Bounded", [fig3()[3], louder]).word == "does not hold here"


def test_on_a_dense_convolution_bounded_is_compared_with_the_raw_feature() -> None:
    dense = at_cut(3, "dense", 0.2, "top", [entry({"m": 64}, 0.105, {"race": 0.25}, components=64)],
                   targets=[target(0.105, {"m": 64}, taken=True)])  # fmt: skip
    assert "cut 3, dense, m': by 5.0 [" in judged("Bounded", [fig3()[0], dense]).sentence


def kept_at(cut: int, m: int, rank: int) -> list[Row]:
    return [
        at_cut(cut, "dense", 0.3, "free", [entry({}, 0.1, {"race": 0.5}, components=rank)]),
        at_cut(cut, "dense", 0.3, "top", [entry({"m": m}, 0.1, {"race": 0.5}, components=m)],
               targets=[target(0.1, {"m": m}, taken=True)]),
    ]  # fmt: skip


def test_deeper_cuts_keep_a_larger_share() -> None:
    assert judged("Deeper", [*kept_at(4, 8, 100), *kept_at(5, 8, 50), *kept_at(6, 1, 2)]).word == "holds"
    assert judged("Deeper", [*kept_at(4, 8, 100), *kept_at(5, 4, 100), *kept_at(6, 1, 2)]).word == "does not hold here"
    assert judged("Deeper", kept_at(4, 8, 100)).word == "not measured"


def test_both_errors_trade_off() -> None:
    text = "With more components"
    assert judged(text, [tradeoff("top", OWN)]).word == "holds"
    assert judged(text, [tradeoff("top", OWN[::-1])]).word == "does not hold here"
    assert judged(text, [tradeoff("top", [(0.25, 0.5), (0.1, 0.5)])]).word == "does not hold here"  # only the target's
    assert judged(text, [tradeoff("top", [(0.2, 0.6), (0.2, 0.4)])]).word == "does not hold here"  # only the attack's
    back = judged(text, [tradeoff("top", [(0.25, 0.6), (0.1, 0.3), (0.15, 0.5)])])
    assert back.word == "does not hold here"
    assert "with a fall between" in back.sentence
    assert judged(text, [tradeoff("top", OWN[:1])]).word == "not measured"
    assert judged(text, [tradeoff("top", OWN, training="plain")]).word == "not measured"


@pytest.mark.parametrize("name", ["pruning", "adversarial"])
def test_better_at_equal_target_error(name: str) -> None:
    text = f"In most cases better than {'pruning' if name == 'pruning' else 'adversarial training'}"
    assert judged(text, [tradeoff("top", OWN), tradeoff(name, WORSE)]).word == "holds"
    assert judged(text, [tradeoff("top", WORSE), tradeoff(name, OWN)]).word == "does not hold here"
    assert judged(text, [tradeoff("top", OWN), tradeoff(name, OWN)]).word == "does not hold here"
    assert judged(text, [tradeoff("top", OWN)]).word == "not measured"


def test_most_data_sets_are_enough() -> None:
    good = [one for data in ("utkface", "celeba") for one in
            (tradeoff("top", OWN, data=data), tradeoff("pruning", WORSE, data=data))]  # fmt: skip
    bad = [tradeoff("top", WORSE, data="pins"), tradeoff("pruning", OWN, data="pins")]
    assert judged("In most cases better than pruning", [*good, *bad]).word == "holds"
    assert judged("In most cases better than pruning", [*good[:2], *bad]).word == "holds in part"


def test_without_a_common_range_equal_drops_decide() -> None:
    ours, low, high = (
        tradeoff("top", [(0.1, 0.5)]),
        tradeoff("pruning", [(0.11, 0.4)]),
        tradeoff("pruning", [(0.11, 0.6)]),
    )
    text = "In most cases better than pruning"
    verdict = judged(text, [ours, low])
    assert verdict.word == "holds"
    assert "no common range; within a drop of 1.0 on validation its attack gains 10.0 [" in verdict.sentence
    assert "points, our target 1.0 [" in verdict.sentence
    assert judged(text, [ours, high]).word == "does not hold here"
    assert judged(text, [ours, tradeoff("pruning", [(0.3, 0.4)])]).word == "not measured"


def test_defences_without_a_common_seed_are_not_compared() -> None:
    rows = [tradeoff("top", OWN), tradeoff("adversarial", WORSE), tradeoff("noise", WORSE, seed=2)]
    verdict = judged("Adversarial training trades", rows)
    assert verdict.word == "not measured"
    assert "against noise, whose rows are of other seeds" in verdict.sentence


def test_every_baseline_and_the_strongest_of_prior_work() -> None:
    rows = [tradeoff("top", OWN), tradeoff("adversarial", WORSE), tradeoff("noise", [(x, y - 0.2) for x, y in OWN])]
    assert judged("Ours is better than every", rows).word == "holds"
    assert judged("Ours is better than every", [*rows, tradeoff("pca", OWN)]).word == "holds in part"
    assert judged("Adversarial training trades", rows).word == "holds"
    assert judged("Adversarial training trades", [rows[1], tradeoff("bottleneck", OWN)]).word == "does not hold here"


SIX = ("Male", "High_Cheekbones")


def fig7(ours: dict[str, float], theirs: dict[str, float], *, target_error: float = 0.1) -> list[Row]:
    """Errors of the attacks by attribute; the logits leave an error of 50 %, the prior one of 60 %."""
    same: dict[str, Any] = {"hidden": SIX, "data": "celeba"}
    return [
        row("top", [entry({"m": 1}, target_error, ours)], **same),
        row("top", [entry({"m": 1}, 0.1, ours)], training="plain", **same),
        row("adversarial", [entry({"gamma": 0.1}, 0.105, theirs)], **same),
    ]


def test_one_component_hides_as_far_as_the_answer_allows() -> None:
    text = "One component hides"
    assert judged(text, fig7(dict.fromkeys(SIX, 0.5), dict.fromkeys(SIX, 0.5))).word == "holds"
    verdict = judged(text, fig7({"Male": 0.48, "High_Cheekbones": 0.3}, dict.fromkeys(SIX, 0.5)))
    assert verdict.word == "does not hold here"
    assert verdict.sentence.startswith("Male: does not hold: 52.0 % for 70.0 % raw, over the prior by 12.0 [")
    assert "over the logits by 2.0 [" in verdict.sentence
    assert "Cheekbones" not in verdict.sentence


def test_what_correlates_with_smiling_is_left() -> None:
    text = "It does not hide those"
    assert judged(text, fig7(dict.fromkeys(SIX, 0.5), dict.fromkeys(SIX, 0.5))).word == "holds"
    assert judged(text, fig7(dict.fromkeys(SIX, 0.6), dict.fromkeys(SIX, 0.5))).word == "does not hold here"


def test_adversarial_training_hides_what_it_was_told_and_not_the_others() -> None:
    text, ours = "Adversarial training hides", dict.fromkeys(SIX, 0.5)
    assert judged(text, fig7(ours, {"Male": 0.5, "High_Cheekbones": 0.3})).word == "holds"
    assert judged(text, fig7(ours, {"Male": 0.3, "High_Cheekbones": 0.3})).word == "holds in part"
    assert judged(text, fig7(ours, {"Male": 0.3, "High_Cheekbones": 0.5})).word == "does not hold here"
    assert judged(text, fig7(ours, {})[:2]).word == "not measured"


def test_one_component_is_better_in_target_and_attack() -> None:
    text, theirs = "One component is better", dict.fromkeys(SIX, 0.4)
    assert judged(text, fig7(dict.fromkeys(SIX, 0.5), theirs)).word == "holds"
    assert judged(text, fig7(dict.fromkeys(SIX, 0.5), theirs, target_error=0.2)).word == "holds in part"
    assert judged(text, fig7(theirs, theirs, target_error=0.2)).word == "does not hold here"


def cost(cut: int, operator: str, macs: float, sent: float) -> dict[str, Any]:
    return {
        "cut": cut, "operator": operator, "m": 4, "macs_share": macs, "m_share": 0.25, "coefficients_share": sent,
        "n_share": 0.125, "times": {"32": {"ratio": 0.5}, "1": {"ratio": 0.9}},
    }  # fmt: skip


def test_costs_are_as_stated_or_not() -> None:
    its = [cost(4, "dense", 0.25, 0.125), cost(3, "patch", 0.25, 0.5), cost(3, "dense", 2.5, 0.125)]
    rows = [Row(
        experiment="cost", config={"data": "utkface"}, data="d", versions={}, device="cpu", seconds={},
        numbers={"costs": its},
    )]  # fmt: skip
    macs, sent = judged("The encoder costs", rows), judged("The message is", rows)
    assert {part.about: part.holds for part in macs.parts} == {
        "fully connected": True, "convolution, patch": True, "convolution, dense": False,
    }  # fmt: skip
    assert "counted 10 to 10 times what is stated, time of encoder over layer 50.0 % in the median" in macs.sentence
    assert {part.about: part.holds for part in sent.parts} == {
        "fully connected": True, "convolution, patch": False, "convolution, dense": True,
    }  # fmt: skip


def test_the_page_says_what_ran_and_links_what_is_there() -> None:
    rows = [tradeoff("top", OWN), tradeoff("top", OWN, training="plain"), tradeoff("pruning", WORSE)]
    page = summary_page(
        {"fig4": rows[:2], "fig5": [one.model_copy() for one in rows], "fig3": fig3(seed=1), "baselines": rows}
    )
    assert "| utkface | 4 | 6 | 0, 1 | 0 | 20 | float32 | race | linear, trees |" in page
    assert "| utkface | 3 | 3 | 1 | – | 20 | float32 | race | linear, trees |" in page
    assert "The 9 rows took 0.0 hours on cpu" in page  # each row once, however many figures show it
    assert "| utkface | 14 | **linear** | 14 / 0 |" in page  # at cut 4 alone
    assert "| utkface, race | pruning | 150.0 [" in page
    assert "**In most cases better than pruning at equal target error.** Verdict: **holds**." in page
    assert "| Figure 5 | In most cases better than pruning at equal target error. | **holds** | 1 / 0 / 0 |" in page
    assert "![Figure 5: ours and pruning](../results/fig5/plot.svg)" in page
    assert "results/fig6" not in page
    assert "The encoder costs m'/m of the server's first layer.** Verdict: **not measured**." in page


def test_the_page_says_how_far_each_baseline_is_from_ours() -> None:
    near, far, elsewhere = [(0.11, 0.3)], [(0.4, 0.2)], tradeoff("noise", WORSE, seed=2)
    ours = [tradeoff("top", OWN), tradeoff("top", OWN, training="plain")]
    lines = summary_page({"baselines": [*ours, tradeoff("pruning", near), tradeoff("pca", far), elsewhere]}).split("\n")
    (pruning,) = [line for line in lines if line.startswith("| utkface, race | pruning |")]
    (pca,) = [line for line in lines if line.startswith("| utkface, race | pca |")]
    assert "| no common range | – | 1 | 10.0 [" in pruning
    assert pruning.endswith("] | 1.0 |")
    assert pca.endswith("| no common range | – | 1 | – | – | none |")
    assert "| utkface, race | noise | no common seed | – | 0 | – | – | – |" in lines


def test_a_page_of_no_rows_measures_nothing() -> None:
    page = summary_page({})
    assert page.count("**not measured**") == 2 * len(CLAIMS)
    assert "holds" not in page.split("## The paper's claims")[1]
