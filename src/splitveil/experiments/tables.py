"""Rows to Markdown tables."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from splitveil.experiments.ablation import variants_of
from splitveil.experiments.cells import Row

Estimate = dict[str, float]


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left."""
    assert all(len(line) == len(heads) for line in lines), "a line has other columns than the heads"
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *lines))


def percent(share: float) -> str:
    """A share of 1 in percent, without the sign."""
    return f"{100 * share:.1f}"


def summary(estimates: Sequence[Estimate]) -> Estimate:
    """One seed: the estimate with its interval. Several: their mean, with the smallest and the largest."""
    if len(estimates) == 1:
        return estimates[0]
    values = [estimate["value"] for estimate in estimates]
    return {"value": fmean(values), "low": min(values), "high": max(values)}


def at_cut(row: Row, m: int, part: str) -> Estimate | None:
    """Accuracy from m' components at the attacked cut."""
    cut = row.config["attacked"]
    return next((one[part] for one in row.numbers["kept"] if (one["cut"], one["m"]) == (cut, m)), None)


def attack_at(row: Row, m: int) -> Estimate | None:
    """Accuracy of the attack on m' components."""
    return next((one["attack"] for one in row.numbers["attack"]["kept"] if one["m"] == m), None)


def over_cuts(row: Row, m: int, convolutions: str = "patch") -> float:
    """Mean validation accuracy from m' components over the cuts that have them, with this operator at convolutions."""
    found = row.numbers["kept"]
    both = {one["cut"] for one in found if one["operator"] == "patch"}
    return fmean(
        one["val"]["value"]
        for one in found
        if one["m"] == m and (one["cut"] not in both or one["operator"] == convolutions)
    )


def ablation_table(rows: Sequence[Row]) -> str:
    """The ablation's page: test accuracy and attack at one cut, and validation accuracy over all cuts."""
    pages = [_ablation_of(rows, name) for name in dict.fromkeys(row.config["data"] for row in rows)]
    return (
        "# Does each ingredient earn its place?\n\n"
        "Accuracies in %. One seed: the estimate and its 95 % interval over the part's images. Several seeds: their "
        "mean, and the smallest and the largest.\n\n" + "\n\n".join(pages) + "\n"
    )


def _ablation_of(rows: Sequence[Row], data: str) -> str:
    by_variant = variants_of(rows, data)
    first = next(iter(by_variant.values()))[0]
    kept, cut, hidden = first.config["kept"], first.config["attacked"], first.config["hidden"]
    sent = [f"m'={m}" for m in kept]
    accuracy = [
        _line(variant, its, [_undefended(its, "test"), *(_kept(its, m) for m in kept)])
        for variant, its in by_variant.items()
    ]
    attack = [
        _line(variant, its, [*_reference_lines(its), *(_attack(its, m) for m in kept)])
        for variant, its in by_variant.items()
    ]
    validation = [
        _line(variant, its, [_undefended(its, "val"), *(_mean(its, m, operator) for m in kept)], operator)
        for operator in ("patch", "dense")
        for variant, its in by_variant.items()
    ]
    return "\n\n".join([
        f"## {data}",
        f"Test accuracy at cut {cut}:", markdown(["variant", "seeds", "undefended", *sent], accuracy),
        f"Attack on the hidden {hidden} at cut {cut}:",
        markdown(["variant", "seeds", "prior", "label", "logits", "raw", *sent], attack),
        f"Validation accuracy, mean over the cuts {', '.join(map(str, first.config['cuts']))} that have m' components:",
        markdown(["variant", "at convolutions", "seeds", "undefended", *sent], validation),
    ])  # fmt: skip


def _line(variant: str, rows: Sequence[Row], cells: Sequence[Estimate | None], *more: str) -> list[str]:
    return [variant, *more, str(len(rows)), *(_shown(cell) for cell in cells)]


def _shown(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    if estimate["low"] == estimate["high"]:
        return percent(estimate["value"])
    return f"{percent(estimate['value'])} [{percent(estimate['low'])}, {percent(estimate['high'])}]"


def _undefended(rows: Sequence[Row], part: str) -> Estimate:
    return summary([row.numbers["undefended"][part] for row in rows])


def _kept(rows: Sequence[Row], m: int) -> Estimate | None:
    found = [one for row in rows if (one := at_cut(row, m, "test"))]
    return summary(found) if found else None


def _attack(rows: Sequence[Row], m: int) -> Estimate | None:
    found = [one for row in rows if (one := attack_at(row, m))]
    return summary(found) if found else None


def _reference_lines(rows: Sequence[Row]) -> list[Estimate]:
    attacks: list[dict[str, Any]] = [row.numbers["attack"] for row in rows]
    scored = [summary([one[name]["accuracy"] for one in attacks]) for name in ("label", "logits", "raw")]
    return [summary([one["prior"] for one in attacks]), *scored]


def _mean(rows: Sequence[Row], m: int, convolutions: str) -> Estimate:
    # A mean over cuts has no interval of one test set's kind: with one seed it stands alone.
    values = [over_cuts(row, m, convolutions) for row in rows]
    return {"value": fmean(values), "low": min(values), "high": max(values)}
