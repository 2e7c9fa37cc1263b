"""Choosing from a profile: the rule, the guarantee that naive choosing breaks, clear refusals, no torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import splitveil as sv
from splitveil.errors import NoChoiceError, ProfileError
from splitveil.profile import Profile, check_weights, read_profile, write_profile
from splitveil.statistics import drop_p_value
from splitveil.wire import HEADER_BYTES, payload_bytes
from test_house import without_extras

N = 1000
DIGEST = "ab" * 32


def point(share: float) -> dict[str, float]:
    return {"value": share, "low": share, "high": share}


def row(at: int, m: int | None, lost: int = 0, gained: int = 0, n: int = N, **changes: Any) -> dict[str, Any]:
    """A row of cut `at`, which costs `at` million on the edge and `m` thousand for the encoder."""
    right, size = round(0.9 * n) - lost + gained, HEADER_BYTES + payload_bytes(m or 9, changes.get("coding", "float32"))
    return {
        "cut": at, "layer": f"layer{at}", "operator": "dense", "method": "top", "m": m, "epsilon": None,
        "message_shape": (m or 9,), "fixed_length": True, "mean_components": float(m or 9),
        "bytes_mean": float(size), "bytes_most": size, "raw_bytes": 4112,
        "client_macs": at * 10**6, "encoder_macs": (m or 9) * 1000,
        "client_parameters": 10, "encoder_parameters": 10, "samples": n, "agreeing": n - lost - gained,
        "agreement": point((n - lost - gained) / n), "accuracy": point(right / n), "lost": lost, "gained": gained,
        "drop": point((lost - gained) / n), "leakage": {}, **changes,
    }  # fmt: skip


def profile(*rows: dict[str, Any], n: int = N, **changes: Any) -> Profile:
    content = {
        "schema_version": 1,
        "model": {"name": "Net", "input_shape": (1, 8, 8), "classes": 2, "weights": DIGEST},
        "data": {"name": "data", "digest": DIGEST, "part": "val", "samples": n, "labelled": True},
        "reference": {"own": True, "weights": DIGEST, "accuracy": point(round(0.9 * n) / n)},
        "versions": {"splitveil": "0"}, "confidence": 0.95, "rows": rows, **changes,
    }  # fmt: skip
    return Profile.model_validate(content)


def unlabelled(*rows: dict[str, Any]) -> Profile:
    nothing = {"accuracy": None, "lost": None, "gained": None, "drop": None}
    return profile(
        *(one | nothing for one in rows),
        data={"name": "data", "digest": DIGEST, "part": "given", "samples": N, "labelled": False},
        reference={"own": True, "weights": DIGEST, "accuracy": None},
    )


GOOD, POOR = {"lost": 1, "gained": 2}, {"lost": 90, "gained": 10}
THREE_CUTS = profile(
    *(row(1, m) for m in (1, 4, 16)),
    *(row(2, m, **(POOR if m == 1 else GOOD)) for m in (1, 4, 16)),
    *(row(3, m, **POOR) for m in (1, 4, 16)),
)


def chosen(found: Profile, **wishes: Any) -> tuple[int | None, int | None]:
    choice = sv.choose(found, **wishes)
    return choice.row.cut, choice.row.m


def test_the_deepest_proven_cut_and_there_the_smallest_m() -> None:
    assert chosen(THREE_CUTS, max_drop=2) == (2, 4)  # cut 3 is deeper, but loses too much; m'=1 at cut 2 as well
    assert chosen(THREE_CUTS, max_drop=20) == (3, 1)
    assert chosen(THREE_CUTS, max_drop=2, max_edge_macs=1.99e6) == (1, 1)
    assert chosen(THREE_CUTS, max_drop=2, cut=1) == chosen(THREE_CUTS, max_drop=2, cut="layer1") == (1, 1)
    assert chosen(THREE_CUTS, max_drop=2, cut="1") == (1, 1)


def test_the_encoder_counts_towards_the_edge() -> None:
    assert chosen(THREE_CUTS, max_drop=2, max_edge_macs=2.004e6) == (2, 4)
    assert chosen(THREE_CUTS, max_drop=2, max_edge_macs=2.003e6) == (1, 1)  # at cut 2 only m'=1 is affordable now


def test_without_a_limit_for_the_drop_the_largest_m_of_the_deepest_cut_is_taken() -> None:
    choice = sv.choose(THREE_CUTS, max_edge_macs=2.5e6)
    assert (choice.row.cut, choice.row.m) == (2, 16)
    assert choice.level == pytest.approx(0.05)  # nothing was searched
    assert drop_p_value(N, 1, 2, choice.proven / 100) <= 0.05 < drop_p_value(N, 1, 2, choice.proven / 100 - 2e-4)
    assert chosen(THREE_CUTS, max_bytes=20) == (3, 1)


def test_testing_stops_at_the_first_m_that_fails() -> None:
    found = profile(row(1, 1), row(1, 4, **POOR), row(1, 16))
    assert chosen(found, max_drop=2) == (1, 16)
    with pytest.raises(NoChoiceError):
        sv.choose(profile(row(1, 1), row(1, 16, **POOR)), max_drop=2)


def test_all_cuts_share_the_level_so_that_asking_again_proves_no_more() -> None:
    counts = {"lost": 12, "gained": 9}
    p = drop_p_value(N, 12, 9, 0.012)
    assert 0.05 / 3 < p < 0.05  # proven alone, not among three
    rows = [row(cut, 4, **counts) for cut in (1, 2, 3)]
    for wishes in ({}, {"cut": 3}, {"max_edge_macs": 1.5e6}, {"max_bytes": 40}):
        with pytest.raises(NoChoiceError, match=r"at most 1.2 points at 95 % confidence; nearest: cut"):
            sv.choose(profile(*rows), max_drop=1.2, **wishes)
    assert chosen(profile(rows[2]), max_drop=1.2) == (3, 4)
    assert chosen(profile(*rows), max_drop=1.2, confidence=1 - 3 * p - 1e-9) == (3, 4)


def test_the_nearest_choice_is_one_that_would_pass() -> None:
    # The larger m' of cut 2 loses more, and is tested first, though its message is too long to be wished for.
    found = profile(row(1, 4, lost=20, gained=5), row(2, 16, lost=25, gained=5), row(2, 4, lost=10, gained=5))
    for wishes in ({}, {"max_bytes": 40}, {"cut": 2, "max_bytes": 40}):
        with pytest.raises(NoChoiceError) as error:
            sv.choose(found, max_drop=0.5, **wishes)
        nearest = error.value.nearest
        limit = float(str(nearest["proven_drop_points"]))
        assert chosen(found, max_drop=limit, **wishes) == (nearest["cut"], nearest["m"])
        with pytest.raises(NoChoiceError):
            sv.choose(found, max_drop=limit - 0.05, **wishes)


def test_a_message_as_long_as_the_feature_is_never_chosen() -> None:
    long = {"raw_bytes": 80}  # 16 bytes of header and 16 numbers
    assert chosen(profile(row(1, 4, **long), row(1, 16, **POOR, **long), row(2, 16, **long)), max_drop=50) == (1, 4)
    assert chosen(profile(row(1, 4, **long), row(1, 16, **long))) == (1, 4)
    # It is still tested: what it fails, the smaller ones of its cut fail too.
    with pytest.raises(NoChoiceError):
        sv.choose(profile(row(1, 4, **long), row(1, 16, **POOR, **long)), max_drop=2)
    with pytest.raises(ProfileError, match="as many coefficients as the feature itself"):
        sv.choose(profile(row(1, 16, **long)))


def test_two_operators_at_one_cut_are_two_searches() -> None:
    both = profile(row(1, 4), row(1, 4, operator="patch"))
    assert sv.choose(both, max_drop=2).level == pytest.approx(0.05 / 2)


def finite(at: int, messages: int, **changes: Any) -> dict[str, Any]:
    """A row of one digit, of an obfuscator that was fitted."""
    return row(
        at, 1, **{"coding": "index", "messages": messages, "method": "codebook", "obfuscator": DIGEST, **changes}
    )


def test_finite_messages_are_chosen_with_their_bound() -> None:
    choice = sv.choose(profile(finite(2, 8)), max_drop=2)
    assert (choice.row.coding, choice.row.messages, choice.row.bits) == ("index", 8, 3.0)
    assert choice.sentence.startswith("cut 2 with 8 different messages: ")
    assert "17 bytes per query that can tell at most 3 bits, proven" in choice.sentence
    assert (choice.as_row()["messages"], choice.as_row()["bits"]) == (8, 3.0)
    assert sv.choose(profile(row(1, 4)), max_drop=2).as_row()["bits"] is None
    both = profile(finite(2, 8), row(1, 4), row(1, 4, coding="int8"))
    assert chosen(both, max_drop=2) == (1, 4)  # a coding is settled first, and int8 is there
    assert sv.choose(both, max_drop=2, coding="index").row.messages == 8
    assert sv.choose(both, max_drop=2, method="codebook").row.messages == 8


def test_each_obfuscator_is_a_search_of_its_own_unless_one_is_named() -> None:
    fitted = {"method": "distilled", "obfuscator": DIGEST}
    rows = [row(2, 4, **POOR), row(2, 16, method="free"), *(row(2, m, **fitted) for m in (2, 4, 16))]
    found = profile(*rows)
    assert sv.choose(found, max_drop=2).level == pytest.approx(0.05 / 2)
    assert sv.choose(found, max_drop=2, method="distilled").level == pytest.approx(0.05)
    assert chosen(found, max_drop=2, method="distilled") == (2, 2)
    for method in ("top", "free"):
        assert chosen(found, max_drop=2, method=method) == (2, 16)
    with pytest.raises(ProfileError, match="no rows of method codebook to choose from; it has: top, free, distilled"):
        sv.choose(found, method="codebook")
    with pytest.raises(ProfileError, match="there is no method 'magic'"):
        sv.choose(found, method="magic")  # type: ignore[arg-type]


def test_messages_of_varying_length_are_no_candidates() -> None:
    loose = row(1, None, method="bounded", epsilon=0.1, fixed_length=False)
    assert chosen(profile(loose, row(1, 16)), max_drop=2) == (1, 16)
    with pytest.raises(ProfileError, match="no rows of fixed length"):
        sv.choose(profile(loose), max_drop=2)


def test_without_labels_disagreement_bounds_the_drop_and_it_is_said() -> None:
    found = unlabelled(row(1, 1, lost=5, gained=5), row(1, 4, lost=2, gained=2))
    choice = sv.choose(found, max_drop=1.5)
    assert (choice.row.m, choice.by) == (4, "disagreement")
    assert "from disagreement, since the profile has no labels" in choice.sentence
    assert sv.choose(THREE_CUTS, max_drop=2).by == "drop"
    assert "disagreement" not in sv.choose(THREE_CUTS, max_drop=2).sentence
    with pytest.raises(NoChoiceError, match=r"nearest: cut 1 with m'=4 in float32, at most 0\.92 points"):
        sv.choose(found, max_drop=0.3)  # Clopper and Pearson: 4 of 1000 at 95 %


def test_layers_without_numbers_are_ordered_by_the_clients_work() -> None:
    rows = [row(cut, 4, cut=None, layer=name) for cut, name in ((1, "early"), (2, "late"))]
    assert sv.choose(profile(*rows), max_drop=2).row.layer == "late"
    assert sv.choose(profile(*rows), max_drop=2, cut="early").row.layer == "early"
    with pytest.raises(NoChoiceError, match=r"cut 'early' with m'=4 in float32, needs 1\.004M"):
        sv.choose(profile(*rows), max_edge_macs=5)


@pytest.mark.parametrize(
    ("wishes", "sentence", "nearest"),
    [
        (
            {"max_edge_macs": 1000},
            "no cut needs at most 1k multiply-accumulates on the edge; the cheapest, cut 1 with m'=1 in float32, needs "
            "1.001M",
            (1, 1),
        ),
        (
            {"max_edge_macs": 1000, "cut": 3},
            "cut 3 never needs at most 1k multiply-accumulates on the edge; the cheapest, cut 3 with m'=1 in float32, "
            "needs 3.001M",
            (3, 1),
        ),
        (
            {"max_bytes": 19, "max_edge_macs": 2.5e6},
            "no message at cuts 1 and 2 has at most 19 bytes; the shortest, cut 1 with m'=1 in float32, has 20",
            (1, 1),
        ),
        (
            {"max_drop": 0.1, "max_edge_macs": 2.5e6},
            "no m' at the affordable cuts 1 and 2 is proven to drop at most 0.1 points at 95 % confidence; nearest: "
            "cut 2 with m'=16 in float32, at most 0.41 points",
            (2, 16),
        ),
        (
            {"max_drop": 0.1, "cut": 2},
            "no m' at cut 2 is proven to drop at most 0.1 points at 95 % confidence; nearest: cut 2 with m'=16 in "
            "float32, at most 0.41 points",
            (2, 16),
        ),
    ],
)
def test_a_wish_that_cannot_be_met_is_named_with_the_nearest_choice(
    wishes: dict[str, Any], sentence: str, nearest: tuple[int, int]
) -> None:
    with pytest.raises(NoChoiceError) as error:
        sv.choose(THREE_CUTS, **wishes)
    assert str(error.value) == sentence
    assert (error.value.nearest["cut"], error.value.nearest["m"]) == nearest
    json.dumps(error.value.nearest, allow_nan=False)


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        ({"cut": 9}, "the profile has no cut 9; it has: 1, 2, 3"),
        ({"cut": "layer9"}, "the profile has no cut layer9"),
        ({"coding": "int8"}, "no rows coded as int8; it has: float32; choose one of these with --coding, or profile"),
        ({"coding": "int3"}, "coding must be float32, int8, int4 or index, not 'int3'"),
        ({"max_edge_macs": 0}, "max_edge_macs must be a number above 0"),
        ({"max_edge_macs": float("nan")}, "max_edge_macs must be"),
        ({"max_bytes": float("inf")}, "max_bytes must be"),
        ({"max_drop": -0.1}, "max_drop must be a number of points from 0 to 100"),
        ({"max_drop": float("nan")}, "max_drop must be"),
        ({"max_drop": 101}, "max_drop must be"),
        ({"max_drop": "1"}, "max_drop must be a number of points from 0 to 100, not '1'"),
        ({"max_drop": True}, "max_drop must be"),
        ({"max_edge_macs": "5M"}, "max_edge_macs must be a number above 0, not '5M'"),
        ({"confidence": 1.0}, "confidence must be from 0.5 to 0.999"),
        ({"confidence": float("nan")}, "confidence must be"),
    ],
)
def test_nonsense_is_refused(wishes: dict[str, Any], says: str) -> None:
    with pytest.raises(ProfileError, match=says):
        sv.choose(THREE_CUTS, **wishes)


def coded(*rows: dict[str, Any], **poorer: dict[str, int]) -> Profile:
    """These rows in float32, and in every coding named with the counts given for it."""
    others = []
    for coding, counts in poorer.items():
        for one in rows:
            others.append(row(one["cut"], one["m"], **counts, coding=coding))
    return profile(*rows, *others)


SMALL = [row(cut, m, **GOOD) for cut in (1, 2) for m in (1, 4)]


def test_int8_is_chosen_where_it_is_there_whatever_the_samples_say() -> None:
    found = coded(*SMALL, int8=POOR, int4=GOOD)
    with pytest.raises(NoChoiceError, match=r"nearest: cut 2 with m'=4 in int8, at most"):
        sv.choose(found, max_drop=2)  # float32 and int4 would be proven: but then samples had chosen the coding
    for coding in ("float32", "int4"):
        choice = sv.choose(found, max_drop=2, coding=coding)
        assert (choice.row.cut, choice.row.m, choice.row.coding) == (2, 1, coding)
        assert choice.sentence.startswith(f"cut 2 with m'=1 in {coding}: ")
        assert choice.as_row()["coding"] == coding
    assert sv.choose(coded(*SMALL, int4=GOOD)).row.coding == "float32"
    assert sv.choose(coded(*SMALL, int4=GOOD, int8=GOOD)).row.coding == "int8"


def test_more_codings_cost_no_proof() -> None:
    found = coded(*SMALL, int8=GOOD, int4=POOR)
    alone = sv.choose(profile(*SMALL), max_drop=2)
    for coding in ("float32", "int8"):
        choice = sv.choose(found, max_drop=2, coding=coding)
        assert (choice.level, choice.cuts) == (alone.level, alone.cuts) == (pytest.approx(0.05 / 2), 2)


def test_bytes_are_those_of_the_coding() -> None:
    found = coded(*SMALL, int8=GOOD, int4=GOOD)
    assert [sv.choose(found, coding=coding).row.bytes_most for coding in ("float32", "int8", "int4")] == [32, 20, 18]
    assert chosen(found, max_bytes=18, coding="int4") == (2, 4)
    assert chosen(found, max_bytes=18, coding="int8") == (2, 1)
    with pytest.raises(NoChoiceError, match=r"the shortest, cut 1 with m'=1 in float32, has 20"):
        sv.choose(found, max_bytes=18, coding="float32")


def test_integers_do_not_make_a_message_shorter_than_the_feature() -> None:
    long = {"raw_bytes": 80}  # 16 bytes of header and 16 numbers, as many as the coefficients of m'=16
    found = profile(*(row(1, m, coding=coding, **long) for m in (4, 16) for coding in ("float32", "int8")))
    assert chosen(found) == chosen(found, coding="float32") == (1, 4)


def naive(found: Profile, max_drop: float) -> dict[str, Any] | None:
    """The deepest cut's smallest m' whose observed drop is small enough: what the guarantee is not to be had with."""
    fits = [one for one in found.rows if one.drop is not None and 100 * one.drop.value <= max_drop]
    return max(fits, key=lambda one: (one.cut or 0, -(one.m or 0))).model_dump() if fits else None


def test_the_guarantee_holds_where_choosing_by_point_estimates_breaks_it() -> None:
    """Every m' below 16 truly drops by slightly more than is allowed, m'=16 by much less."""
    random = np.random.default_rng(11)
    n, trials, limit = 400, 200, 3.0
    drops = {(cut, m): 0.005 if m == 16 else 0.0305 for cut in (1, 2, 3) for m in (1, 2, 4, 8, 16)}
    broken = {"ours": 0, "naive": 0}
    answered = 0
    for _ in range(trials):
        rows = []
        for (cut, m), drop in drops.items():
            lost, gained, _ = random.multinomial(n, [0.02 + drop / 2, 0.02 - drop / 2, 0.96])
            rows.append(row(cut, m, int(lost), int(gained), n))
        found = profile(*rows, n=n)
        by_eye = naive(found, limit)
        broken["naive"] += by_eye is not None and 100 * drops[by_eye["cut"], by_eye["m"]] > limit
        try:
            choice = sv.choose(found, max_drop=limit).row
        except NoChoiceError:
            continue
        answered += 1
        broken["ours"] += 100 * drops[choice.cut or 0, choice.m or 0] > limit
    assert broken["naive"] > 0.9 * trials
    assert broken["ours"] <= 0.05 * trials
    assert answered > 0.5 * trials  # a guarantee that never answers is worth nothing


def safetensors(values: bytes) -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(values)], "data_offsets": [0, len(values)]}}).encode()
    return len(header).to_bytes(8, "little") + header + values


def test_a_profile_of_another_model_is_refused(tmp_path: Path) -> None:
    check_weights(THREE_CUTS, tmp_path)  # no weights beside it: nothing to compare with
    (tmp_path / "model.safetensors").write_bytes(safetensors(b"abc"))
    with pytest.raises(ProfileError, match=r"profile of another model: it was made for weights abababababab…"):
        check_weights(THREE_CUTS, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(ProfileError, match="not a safetensors file"):
        check_weights(THREE_CUTS, tmp_path)


def test_a_choice_survives_json(tmp_path: Path) -> None:
    write_profile(tmp_path / "profile.json", THREE_CUTS)
    assert read_profile(tmp_path / "profile.json") == THREE_CUTS
    found = json.loads(json.dumps(sv.choose(THREE_CUTS, max_drop=2).as_row(), allow_nan=False))
    assert (found["cut"], found["m"], found["edge_macs"]) == (2, 4, 2_004_000)
    assert (found["proven_drop_points"], found["by"], found["reference"], found["cuts"]) == (
        2, "drop", "own uncut model", 3,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "out", "err"),
    [
        (
            ["--max-edge-macs", "2.5e6", "--max-drop", "2"],
            0,
            "cut 2 with m'=4 in float32: 2.004M multiply-accumulates",
            "note: what it still tells: splitveil attack RUN --split 2 --method top --m 4 --operator dense\n"
            "note: to serve it: splitveil export RUN --out FOLDER --split 2 --method top --m 4 --operator dense "
            "--coding float32 --max-drop 2 --confidence 0.95\n",
        ),
        (["--max-edge-macs", "2500k", "--max-drop", "2", "--json"], 0, '"m": 4', ""),
        (
            ["--max-drop", "2", "--coding", "int4"],
            2,
            "",
            "the profile has no rows coded as int4; it has: float32; choose one of these with --coding",
        ),
        (["--max-edge-macs", "1k"], 2, "", "no cut needs at most 1k multiply-accumulates"),
        (["--max-edge-macs", "1k", "--json"], 2, '"reason": "no cut needs at most 1k', "no cut needs at most 1k"),
    ],
)
def test_choosing_runs_without_the_extra(tmp_path: Path, arguments: list[str], code: int, out: str, err: str) -> None:
    path = tmp_path / "profile.json"
    write_profile(path, THREE_CUTS)
    words = ["splitveil", "choose", str(path), *arguments]
    done = without_extras(f"sys.argv = {words}\nfrom splitveil.cli import main\nmain()")
    assert done.returncode == code
    assert out in " ".join(done.stdout.split())
    assert bool(out) == bool(done.stdout)
    assert err in done.stderr
    assert done.stderr.count("\n") == max(bool(err), err.count("\n"))
    if "--json" in arguments:
        found = json.loads(done.stdout)
        assert (found["choice"] is None) == bool(code)
        assert (found["nearest"] or found["choice"])["m"] in (1, 4)
