"""Figure 2 and the cost statements of section 4.3."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from splitveil.experiments.cells import Row
from splitveil.experiments.tables import percent
from splitveil.experiments.verdicts.verdict import Part, Verdict, together

_CLOSE = 0.01  # relative: counts are exact, so only rounding is forgiven


def content_falls(rows: Sequence[Row]) -> Verdict:
    """Figure 2, by data set and operator, on the paper's training.

    Holds if every layer's own content lies below 0, in every seed with the upper limit of its 95 % interval, so that
    the sum falls at each layer. A dense convolution without null space has a content of exactly 0 and fails.
    """
    names = dict.fromkeys(row.config["data"] for row in rows if row.config["variant"] == "all")
    operators = dict.fromkeys(operator for row in rows for operator in row.config["operators"])
    return together(_content(rows, name, operator) for name in names for operator in operators)


def _content(rows: Sequence[Row], data: str, operator: str) -> Part:
    its = [row.numbers["content"] for row in rows if (row.config["data"], row.config["variant"]) == (data, "all")]
    layers: dict[int, list[dict[str, Any]]] = {}
    for one in (one for content in its for one in content if one["operator"] == operator):
        layers.setdefault(one["cut"], []).append(one)
    level = [cut for cut, ones in layers.items() if not all(one["layer"]["high"] < 0 for one in ones)]
    ends = [one["cumulative"]["value"] for one in layers[max(layers)]]
    span = f"{min(ends):.2f}" if len(ends) == 1 else f"{min(ends):.2f} to {max(ends):.2f} over {len(ends)} seeds"
    text = f"{operator}: cumulative {span} after layer {max(layers)}"
    return Part(data, f"{text}, no fall at layer {', '.join(map(str, level))}" if level else text, not level)


def takes_share(rows: Sequence[Row]) -> Verdict:
    """Section 4.3's edge compute, by kind of cut: fully connected, patch and dense convolutions.

    Holds if the counted multiply-accumulates of encoder over layer are within 1 % of m'/m at every cut, m' and data
    set. The times stand beside and do not decide: they depend on the machine.
    """
    return together(_share(rows, kind, "macs_share", "m_share") for kind in _kinds(rows))


def sends_share(rows: Sequence[Row]) -> Verdict:
    """Section 4.3's bytes, by kind of cut: holds if the numbers sent over n are within 1 % of m'/n, everywhere."""
    return together(_share(rows, kind, "coefficients_share", "n_share") for kind in _kinds(rows))


def _kind(one: dict[str, Any]) -> str:
    # Table 1's first three layers are convolutions.
    return f"convolution, {one['operator']}" if one["cut"] <= 3 else "fully connected"


def _kinds(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(_kind(one) for row in rows for one in row.numbers["costs"]))


def _share(rows: Sequence[Row], kind: str, counted: str, stated: str) -> Part:
    its = [one for row in rows for one in row.numbers["costs"] if _kind(one) == kind]
    ratios = [one[counted] / one[stated] for one in its]
    holds = all(abs(ratio - 1) <= _CLOSE for ratio in ratios)
    low, high = min(ratios), max(ratios)
    text = f"counted {'as stated' if holds else f'{low:.3g} to {high:.3g} times what is stated'}"
    if counted == "macs_share":
        times = [one["times"][max(one["times"], key=int)]["ratio"] for one in its]
        text += f", time of encoder over layer {percent(median(times))} % in the median"
    return Part(kind, text, holds)
