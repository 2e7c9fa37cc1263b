"""Choosing a cut and m' from a profile, with a guarantee that holds although many rows were looked at."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from splitveil.codec import FRAME_CODINGS, FrameCoding
from splitveil.errors import NoChoiceError, ProfileError
from splitveil.profile.schema import Method, Profile, Row
from splitveil.statistics import drop_p_value, drop_upper_limit, share_p_value, share_upper_limit

CONFIDENCE = (0.5, 0.999)  # beyond the upper end the p-values' own allowance for the nuisance parameter uses it up
_FAMILY: tuple[Method, ...] = ("top", "free")  # components of one layer, some of them or all


@dataclass(frozen=True)
class Choice:
    """A row of a profile, and what was proven of it.

    Attributes:
        row: the cut, m' or number of messages, and coding.
        proven: points that the answer's accuracy is proven to drop by at most.
        confidence: chance, over validation samples, that the statement holds.
        level: the part of 1 − confidence that each cut's tests may use.
        cuts: how many cuts share it.
        by: "drop": proven from labels; "disagreement": proven from answers that differ from the uncut model's, which
            are at least as many as those that it loses.
        reference: "own uncut model", or "plainly trained model" where the profile has one.
    """

    row: Row
    proven: float
    confidence: float
    level: float
    cuts: int
    by: str
    reference: str

    @property
    def sentence(self) -> str:
        """The choice in words."""
        how = " (from disagreement, since the profile has no labels)" if self.by == "disagreement" else ""
        bits = "" if self.row.bits is None else f" that can tell at most {self.row.bits:.4g} bits"
        return (
            f"{_named(self.row)}: {_macs(self.row.edge_macs)} multiply-accumulates on the edge, {self.row.bytes_most} "
            f"bytes per query{bits}, proven at {100 * self.confidence:g} % confidence to drop at most {self.proven:g} "
            f"points against the {self.reference}{how}"
        )

    def as_row(self) -> dict[str, Any]:
        """For JSON: the row's fields, and what was proven."""
        proof = {key: getattr(self, key) for key in ("proven", "confidence", "level", "cuts", "by", "reference")}
        more = {"edge_macs": self.row.edge_macs, "bits": self.row.bits, "proven_drop_points": proof.pop("proven")}
        return {**_plain(self.row), **more, **proof}


def choose(
    profile: Profile,
    *,
    max_edge_macs: float | None = None,
    max_drop: float | None = None,
    max_bytes: float | None = None,
    cut: int | str | None = None,
    method: Method | None = None,
    coding: FrameCoding | None = None,
    confidence: float = 0.95,
) -> Choice:
    """The deepest cut that the edge can afford, and there the smallest m' that is proven to keep the answer.

    At every cut of the profile, "its drop is above max_drop" is tested from the largest m' down, and testing stops at
    the first m' that fails: of such a sequence each test may use the cut's whole level, which is (1 − confidence) /
    (number of cuts). With probability at least ``confidence`` over the profile's samples no row that passes has a
    true drop above max_drop, whichever is picked among them and by whatever other wishes (Learn then Test:
    Angelopoulos et al. 2021, arXiv 2110.01052, fixed-sequence testing and Bonferroni). The p-values are
    `drop_p_value`'s, valid at every sample size. Only max_drop, confidence, method and coding must be settled
    before the samples are looked at. Each obfuscator at a cut counts as a cut of its own.

    Candidates are rows of fixed length (all but "bounded") and of one coding, whose message has fewer coefficients
    than the feature has numbers. The deepest cut with a candidate that passed and meets the wishes is taken, and there
    the smallest m'. Without max_drop nothing is tested: the largest m' at the deepest cut is taken, and ``proven`` is
    its upper limit.

    Args:
        profile: of the model.
        max_edge_macs: multiply-accumulates per query of client and obfuscator, at most.
        max_drop: points (of 100) by which accuracy may drop against the profile's reference.
        max_bytes: bytes per frame, at most.
        cut: a cut's number or its layer's name; all cuts where not given.
        method: the obfuscator; "top" and "free" are one family, each with the rows of the other. All where not given.
        coding: of the messages; where not given int8 if the profile has it, else float32; index
            where all of them are finite.
        confidence: chance that the guarantee holds, 0.5 to 0.999.

    Raises:
        NoChoiceError: no row meets the wishes; it says which wish cannot be met, and carries the nearest row.
        ProfileError: a wish is no sensible number, or the profile has no such cut or coding.
    """
    _check_wishes(max_edge_macs, max_drop, max_bytes, confidence)
    every = _of_coding(_of_method([row for row in profile.rows if row.fixed_length], method), coding)
    fitting = [row for row in _of_cut(every, cut) if row.shorter_than_feature]
    if not fitting:
        raise ProfileError(
            "every message there has as many coefficients as the feature itself, which hides nothing; choose a deeper "
            "cut"
        )
    cheap = _within(fitting, "edge_macs", max_edge_macs, _too_dear)
    wished = _within(cheap, "bytes_most", max_bytes, _too_long)
    if max_drop is None:
        row, level = _deepest_first(wished)[0][0], 1 - confidence
        return _choice(profile, row, _points(_upper_limit(row, level)), confidence, level, 1)
    cuts = _deepest_first(every)
    level = (1 - confidence) / len(cuts)
    for rows in cuts:
        if kept := [row for row in _proven(rows, max_drop / 100, level) if row in wished]:
            return _choice(profile, kept[-1], max_drop, confidence, level, len(cuts))
    limits = [_provable(rows, wished, level) for rows in cuts if any(row in wished for row in rows)]
    limit, nearest = min(limits, key=lambda found: found[0])
    raise NoChoiceError(
        f"no m' at {_affordable(wished, max_edge_macs, max_bytes)} is proven to drop at most {max_drop:g} points at "
        f"{100 * confidence:g} % confidence; nearest: {_named(nearest)}, at most {_points(limit):g} points",
        _choice(profile, nearest, _points(limit), confidence, level, len(cuts)).as_row(),
    )


def _choice(profile: Profile, row: Row, points: float, confidence: float, level: float, cuts: int) -> Choice:
    by = "drop" if profile.data.labelled else "disagreement"
    reference = "own uncut model" if profile.reference.own else "plainly trained model"
    return Choice(row, points, confidence, level, cuts, by, reference)


def _proven(rows: Sequence[Row], limit: float, level: float) -> list[Row]:
    """The rows, from the largest m' down, before the first that is not proven."""
    return list(itertools.takewhile(lambda row: _p_value(row, limit) <= level, rows))


def _provable(rows: Sequence[Row], wished: Sequence[Row], level: float) -> tuple[float, Row]:
    """The smallest drop at which a wished row would pass, with all larger m' before it; and that row."""
    first = next(index for index, row in enumerate(rows) if row in wished)
    return max(_upper_limit(row, level) for row in rows[: first + 1]), rows[first]


def _p_value(row: Row, limit: float) -> float:
    if row.lost is None or row.gained is None:
        return share_p_value(row.samples - row.agreeing, row.samples, limit)
    return drop_p_value(row.samples, row.lost, row.gained, limit)


def _upper_limit(row: Row, level: float) -> float:
    if row.lost is None or row.gained is None:
        return share_upper_limit(row.samples - row.agreeing, row.samples, level)
    return drop_upper_limit(row.samples, row.lost, row.gained, level)


def _deepest_first(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows by cut (and operator and obfuscator there), most client work first; at each from the largest m' down."""
    cuts: dict[tuple[str, str, str | None], list[Row]] = {}
    for row in rows:
        cuts.setdefault((row.layer, row.operator, row.obfuscator), []).append(row)
    ordered = sorted(cuts.values(), key=lambda group: (-(group[0].cut or 0), -group[0].client_macs))
    return [sorted(group, key=lambda row: -(row.m or 0)) for group in ordered]


def _of_method(rows: list[Row], method: Method | None) -> list[Row]:
    """The rows of one method, which no sample has a say in."""
    if method is None:
        return rows
    if method not in get_args(Method):
        raise ProfileError(f"there is no method {method!r}; choose one of {', '.join(get_args(Method))}")
    alike = _FAMILY if method in _FAMILY else (method,)
    if not (found := [row for row in rows if row.method in alike]):
        there = ", ".join(dict.fromkeys(row.method for row in rows)) or "none of fixed length"
        raise ProfileError(f"the profile has no rows of method {method} to choose from; it has: {there}")
    return found


def _of_coding(rows: list[Row], coding: FrameCoding | None) -> list[Row]:
    """The rows of one coding, which no sample has a say in."""
    if coding is not None and coding not in FRAME_CODINGS:
        raise ProfileError(f"coding must be {', '.join(FRAME_CODINGS[:-1])} or {FRAME_CODINGS[-1]}, not {coding!r}")
    if not rows:
        raise ProfileError("the profile has no rows of fixed length to choose from; profile with method top")
    there = {row.coding for row in rows}
    wanted = coding or ("int8" if "int8" in there else "index" if there == {"index"} else "float32")
    found = [row for row in rows if row.coding == wanted]
    if not found:
        raise ProfileError(
            f"the profile has no rows coded as {wanted}; it has: {', '.join(sorted(there))}; choose one of these with "
            "--coding, or profile the run again"
        )
    return found


def _of_cut(rows: list[Row], cut: int | str | None) -> list[Row]:
    found = [row for row in rows if cut is None or str(cut) in (row.layer, row.place.removeprefix("cut "))]
    if not found:
        there = ", ".join(dict.fromkeys(row.place.removeprefix("cut ") for row in rows))
        raise ProfileError(f"the profile has no cut {cut}; it has: {there}")
    return found


def _within(
    rows: list[Row], what: str, most: float | None, refuse: Callable[[Row, float, list[Row]], str]
) -> list[Row]:
    """The rows whose cost is at most the wish, which looks at no sample."""
    if most is None:
        return rows
    found = [row for row in rows if getattr(row, what) <= most]
    if not found:
        nearest = min(rows, key=lambda row: (getattr(row, what), -(row.m or 0)))
        raise NoChoiceError(refuse(nearest, most, rows), {**_plain(nearest), "edge_macs": nearest.edge_macs})
    return found


def _too_dear(nearest: Row, most: float, rows: list[Row]) -> str:
    who = "no cut needs" if len({row.layer for row in rows}) > 1 else f"{nearest.place} never needs"
    return (
        f"{who} at most {_macs(most)} multiply-accumulates on the edge; the cheapest, {_named(nearest)}, needs "
        f"{_macs(nearest.edge_macs)}"
    )


def _too_long(nearest: Row, most: float, rows: list[Row]) -> str:
    return (
        f"no message at {_places(rows)} has at most {most:g} bytes; the shortest, {_named(nearest)}, has "
        f"{nearest.bytes_most}"
    )


def _affordable(rows: Sequence[Row], max_edge_macs: float | None, max_bytes: float | None) -> str:
    places = _places(rows)
    if max_edge_macs is None and max_bytes is None:
        return places
    return f"the affordable {places}" if places.startswith("cut") else f"the affordable places {places}"


def _places(rows: Sequence[Row]) -> str:
    """Cuts in words: "cut 4", "cuts 2 to 4", or layers' names."""
    numbers = sorted({row.cut for row in rows if row.cut is not None})
    if not numbers:
        return ", ".join(dict.fromkeys(repr(row.layer) for row in rows))
    if len(numbers) == 1:
        return f"cut {numbers[0]}"
    if len(numbers) == 2:
        return f"cuts {numbers[0]} and {numbers[1]}"
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"cuts {numbers[0]} to {numbers[-1]}"
    return "cuts " + ", ".join(map(str, numbers))


def _check_wishes(
    max_edge_macs: float | None, max_drop: float | None, max_bytes: float | None, confidence: float
) -> None:
    for name, wish in (("max_edge_macs", max_edge_macs), ("max_bytes", max_bytes)):
        if wish is not None and not (_is_number(wish) and math.isfinite(wish) and wish > 0):
            raise ProfileError(f"{name} must be a number above 0, not {wish!r}")
    if max_drop is not None and not (_is_number(max_drop) and 0 <= max_drop <= 100):  # NaN is not, either
        raise ProfileError(f"max_drop must be a number of points from 0 to 100, not {max_drop!r}")
    if not (_is_number(confidence) and CONFIDENCE[0] <= confidence <= CONFIDENCE[1]):
        raise ProfileError(f"confidence must be from {CONFIDENCE[0]} to {CONFIDENCE[1]}, not {confidence}")


def _is_number(wish: object) -> bool:
    return isinstance(wish, int | float) and not isinstance(wish, bool)


def _plain(row: Row) -> dict[str, Any]:
    return row.model_dump(mode="json")


def _named(row: Row) -> str:
    if row.messages is not None:
        return f"{row.place} with {row.messages} different messages"
    return f"{row.place} with m'={row.m} in {row.coding}"


def _macs(count: float) -> str:
    """A count as people write it: 950, 67.5k, 1.2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= 0.99995 * size:  # what would be rounded up to it anyway
            return f"{count / size:.4g}{letter}"
    return f"{count:g}"


def _points(limit: float) -> float:
    """A limit in points, rounded up to a hundredth."""
    return math.ceil(1e4 * limit - 1e-6) / 100
