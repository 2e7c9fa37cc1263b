"""``splitveil choose``: the cut and m' that meet a client's wishes, from a provider's profile; runs without torch."""

import math
import re
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from splitveil.cli.methods import Sent
from splitveil.cli.options import AsJson, Quiet
from splitveil.cli.output import note, print_json, print_table
from splitveil.codec import FrameCoding

_SIZES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def _count(text: str) -> float:
    """A count such as 5000000, 5M, 67.5k."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?(?:E[0-9]+)?)([KMG]?)", text.strip(), flags=re.IGNORECASE | re.ASCII)
    count = float(found[1]) * _SIZES[found[2].upper()] if found else 0.0
    if not 0 < count < math.inf:
        raise typer.BadParameter(f"{text!r} is no count above 0, such as 5000000, 5M or 67.5k")
    return count


def choose(
    profile: Annotated[
        Path, typer.Argument(metavar="PROFILE", help="A profile.json that 'splitveil profile' wrote, or its folder.")
    ],
    max_edge_macs: Annotated[
        float | None,
        typer.Option(
            "--max-edge-macs", parser=_count, metavar="COUNT", help="Multiply-accumulates per query, such as 5M."
        ),
    ] = None,
    max_drop: Annotated[float | None, typer.Option("--max-drop", help="Points of accuracy that may be lost.")] = None,
    max_bytes: Annotated[
        float | None,
        typer.Option("--max-bytes", parser=_count, metavar="COUNT", help="Bytes per query, such as 300 or 2k."),
    ] = None,
    cut: Annotated[str | None, typer.Option("--split", help="A cut's number or name; any where not given.")] = None,
    method: Annotated[
        Sent | None, typer.Option("--method", help="The obfuscator, top with free; all of the profile if not given.")
    ] = None,
    coding: Annotated[
        FrameCoding | None,
        typer.Option("--coding", help="Of the messages; int8 if not given, or float32 where int8 was not measured."),
    ] = None,
    confidence: Annotated[float, typer.Option("--confidence", help="Of the proof that the drop is not larger.")] = 0.95,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """The deepest cut that the edge can afford, and there the smallest m' that is proven to keep the answer."""
    from splitveil.errors import NoChoiceError
    from splitveil.profile import check_weights, read_profile
    from splitveil.profile import choose as pick

    del quiet  # there is nothing to wait for
    profile = profile / "profile.json" if profile.is_dir() else profile
    read = read_profile(profile)
    check_weights(read, profile.parent)
    try:
        choice = pick(
            read, max_edge_macs=max_edge_macs, max_drop=max_drop, max_bytes=max_bytes, cut=cut, method=method,
            coding=coding, confidence=confidence,
        )  # fmt: skip
    except NoChoiceError as error:
        if as_json:
            print_json({"profile": str(profile), "choice": None, "reason": str(error), "nearest": error.nearest})
        raise
    found = choice.as_row()
    if as_json:
        print_json({"profile": str(profile), "choice": found, "reason": None, "nearest": None})
        return
    shown = (
        "cut", "layer", "operator", "method", "m", "coding", "message_shape", "bytes_most", "raw_bytes", "edge_macs",
    )  # fmt: skip
    facts = [[name.replace("_", " "), found[name]] for name in shown]
    if choice.row.bits is not None:
        facts.append(["messages", f"{choice.row.messages}, at most {choice.row.bits:.4g} bits each"])
    facts += [["measured", _measured(choice.row)], ["proven from", f"{choice.by}, against the {choice.reference}"]]
    print_table(choice.sentence, ["fact", "value"], facts)
    proof = "" if max_drop is None else f" --max-drop {max_drop:g} --confidence {confidence:g}"
    run = shlex.quote(str(profile.parent)) if (profile.parent / "run.json").is_file() else "RUN"
    _print_next(choice.row, run, proof)


def _print_next(row: Any, run: str, proof: str) -> None:
    """The commands that go on from a choice, for the run that the profile lies in, or for any."""
    if row.obfuscator is not None:
        kept = "" if row.messages is not None else f" --m {row.m} --coding {row.coding}"
        note(f"to serve it: splitveil export {run} --out FOLDER{kept}{proof}")
        return
    place, messages = f"--split {row.cut or row.layer} --method top", f"--m {row.m} --operator {row.operator}"
    if row.method == "top":
        note(f"what it still tells: splitveil attack {run} {place} {messages}")
    note(f"to serve it: splitveil export {run} --out FOLDER {place} {messages} --coding {row.coding}{proof}")


def _measured(row: Any) -> str:
    agreement = f"agreement {row.agreement.value:.1%}"
    if row.accuracy is None:
        return agreement
    return f"accuracy {row.accuracy.value:.1%}, drop {100 * row.drop.value:.1f} points, {agreement}"
