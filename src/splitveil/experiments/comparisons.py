"""Rows of points by setting, their reference lines, and the tables that compare defences."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from splitveil.experiments.areas import area
from splitveil.experiments.cells import Row
from splitveil.experiments.frontier import (
    DROPS,
    OURS,
    OURS_PLAIN,
    Match,
    Point,
    Seeds,
    curves,
    matched,
    rows_of,
    undefended,
)
from splitveil.experiments.paired import Bits
from splitveil.experiments.tables import Estimate, markdown, percent, summary
from splitveil.measure.scores import unpack
from splitveil.statistics import Estimate as Interval

LINES = ("label", "logits", "raw")


def pairs_of(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Data sets, each with the first hidden attribute of its rows."""
    return list({row.config["data"]: (row.config["data"], row.config["hidden"][0]) for row in rows}.values())


def _by_seed(rows: Sequence[Row], data: str, hidden: str, cut: int, training: str) -> dict[int, dict[str, Any]]:
    """Numbers of one row of each seed that holds the reference lines; all rows of a model hold the same."""
    return {
        row.config["seed"]: row.numbers
        for row in rows_of(rows, data)
        if (row.config["cut"], row.config["training"]) == (cut, training) and hidden in row.numbers["lines"]
    }


def lines_of(rows: Sequence[Row], data: str, hidden: str, cut: int = 4, training: str = "paper") -> dict[str, Estimate]:
    """Reference attacks on the undefended models of one training: prior, label, logits and raw, over the seeds."""
    found = _by_seed(rows, data, hidden, cut, training).values()
    if not found:
        return {}
    lines = {name: summary([one["lines"][hidden][name]["accuracy"] for one in found]) for name in LINES}
    return {"prior": summary([one["prior"][hidden] for one in found]), **lines}


def line_bits(
    rows: Sequence[Row], data: str, hidden: str, name: str, cut: int = 4, training: str = "paper"
) -> dict[int, Bits]:
    """Which test samples a reference attack guesses right, by seed: "label", "logits" or "raw"."""
    return {
        seed: unpack(one["lines"][hidden][name]["right"], one["n_test"])
        for seed, one in _by_seed(rows, data, hidden, cut, training).items()
    }


def by_setting(seeds: Seeds, hidden: str) -> list[tuple[dict[str, Any], Estimate, Estimate, float]]:
    """Each setting with its target and attack accuracy over the seeds, and its validation target accuracy."""
    return [
        (
            its[0].setting,
            summary([one.numbers["target"]["test"] for one in its]),
            summary([one.numbers["leaks"][hidden]["accuracy"] for one in its]),
            fmean(one.target_validation for one in its),
        )
        for its in grouped(seeds)
    ]


def grouped(seeds: Seeds) -> list[list[Point]]:
    """The points of each setting, over the seeds."""
    groups: dict[str, list[Point]] = {}
    for points in seeds.values():
        for one in points:
            groups.setdefault(repr(sorted(one.setting.items())), []).append(one)
    return list(groups.values())


def error_of(accuracy: Estimate) -> Estimate:
    """An accuracy as an error in percent."""
    return {
        "value": 100 * (1 - accuracy["value"]),
        "low": 100 * (1 - accuracy["high"]),
        "high": 100 * (1 - accuracy["low"]),
    }


def in_percent(share: Estimate) -> Estimate:
    """A share with its interval in percent."""
    return {key: 100 * value for key, value in share.items()}


def shown(estimate: Estimate) -> str:
    """An estimate in percent with its interval."""
    return f"{estimate['value']:.1f} [{estimate['low']:.1f}, {estimate['high']:.1f}]"


def points_of(one: Interval, scale: float = 100) -> str:
    """A difference of shares with its interval, in points; areas take another scale."""
    return f"{scale * one:.1f} [{scale * one.interval[0]:.1f}, {scale * one.interval[1]:.1f}]"


def setting_text(setting: dict[str, Any]) -> str:
    """A setting in words, a dash where there is none."""
    return ", ".join(f"{'m' + chr(39) if key == 'm' else key}={value}" for key, value in setting.items()) or "–"


def points_table(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Both errors of each setting of these defences, in %, by data set."""
    lines = [
        [f"{data}, {hidden}", name, setting_text(one[0]), shown(error_of(one[1])), shown(error_of(one[2]))]
        for data, hidden in pairs_of(rows)
        for name, seeds in curves(rows, data, hidden).items()
        if name in names
        for one in by_setting(seeds, hidden)
    ]
    return markdown(["data, hidden", "defence", "setting", "target error", "attack error"], lines)


def lines_table(rows: Sequence[Row]) -> str:
    """The reference attacks at cut 4, accuracies in %, of each data set and training."""
    lines = [
        [f"{data}, {hidden}", training, *(shown(in_percent(one)) for one in found.values())]
        for data, hidden in pairs_of(rows)
        for training in ("paper", "plain")
        if (found := lines_of(rows, data, hidden, training=training))
    ]
    return markdown(["data, hidden", "training", "prior", *LINES], lines)


def matched_table(rows: Sequence[Row], data: str, hidden: str, drops: Sequence[float] = DROPS) -> str:
    """Test attack accuracy at equal validation drop, in %, and the area between our curve and each."""
    found = curves(rows, data, hidden)
    table = matched(found, undefended(rows, data), drops)
    lines = []
    for name, matches in table.items():
        between = area(found[OURS], found[name]) if OURS in found and name != OURS else None
        space = "–" if between is None else f"{points_of(between.area, 1e4)} over {percent(between.width)}"
        lines.append([name, *map(_match, matches), space])
    heads = ["defence", *(f"drop ≤ {percent(drop)}" for drop in drops), "area (points²) over width (points)"]
    return markdown(heads, lines)


def _match(match: Match | None) -> str:
    if match is None:
        return "–"
    text = f"{points_of(match.attack)}, drop {points_of(match.drop)}"
    if match.missing:
        text += f" ({len(match.settings)} of {len(match.settings) + len(match.missing)} seeds)"
    if match.difference is None or match.p is None:
        return text
    return f"{text}; less ours {points_of(match.difference)}, p {match.p:.3f}"


def several_table(rows: Sequence[Row]) -> str:
    """Attack accuracy in % from several messages of one subject at each m', beside raw and logits, or nothing."""
    lines, counts = [], list[str]()
    for data, hidden in pairs_of(rows):
        for name, seeds in curves(rows, data, hidden).items():
            if name not in (OURS, OURS_PLAIN):
                continue
            training = "paper" if name == OURS else "plain"
            known = list(_by_seed(rows, data, hidden, 4, training).values())
            sent = [
                (setting_text(its[0].setting), [one.numbers["leaks"][hidden].get("several", {}) for one in its])
                for its in grouped(seeds)
            ]
            sent += [
                (line, [one["lines"][hidden][line].get("several", {}) for one in known]) for line in ("logits", "raw")
            ]
            counts = counts or sorted({count for _, its in sent for each in its for count in each}, key=int)
            lines += [[f"{data}, {hidden}", name, what, *_several(its, counts)] for what, its in sent if all(its)]
    if not lines:
        return ""
    return markdown(["data, subject", "defence", "sent", *(f"from {count}" for count in counts)], lines)


def _several(its: Sequence[dict[str, Estimate]], counts: Sequence[str]) -> list[str]:
    return [shown(in_percent(summary([one[count] for one in its]))) for count in counts]
