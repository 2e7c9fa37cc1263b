"""``splitveil export``: an edge bundle and a server bundle from a run."""

import re
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from splitveil.cli.fitted import PROBABILITIES, check_options, same_data, say_unbound
from splitveil.cli.methods import Messages, Sent, check_method
from splitveil.cli.options import AsJson, DataRoot, Operator, Quiet, ReferenceRun, RunFolder, Trust
from splitveil.cli.output import note, print_json, print_table, progress_bar
from splitveil.codec import Coding


def export(
    run: RunFolder,
    out: Annotated[Path, typer.Option("--out", help="Folder for the two bundles, edge and server.")],
    cut: Annotated[
        str | None, typer.Option("--split", help="A cut's number, or a module's name; a run's obfuscator has its own.")
    ] = None,
    m: Annotated[
        int | None,
        typer.Option("--m", min=1, help="Components at most; all of a run's own obfuscator if not given."),
    ] = None,
    method: Annotated[
        Sent | None,
        typer.Option(
            "--method", help="The obfuscator, fitted to the training part; distilled, or the run's own, if not given."
        ),
    ] = None,
    messages: Messages = None,
    operator: Annotated[
        Operator | None, typer.Option("--operator", help="Of convolutions; patch if not given (top and free).")
    ] = None,
    coding: Annotated[
        Coding | None, typer.Option("--coding", help="Of coefficients, unless a client says otherwise; else int8.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option("--max-drop", help="Points that may be lost: clients then send the fewest components proven to."),
    ] = None,
    confidence: Annotated[float, typer.Option("--confidence", help="Of that proof.")] = 0.95,
    reference: ReferenceRun = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            help="Of the model on the server (letters, digits, . - _); else the data set's, or the obfuscated run's.",
        ),
    ] = None,
    sign: Annotated[
        Path | None, typer.Option("--sign", metavar="KEY", help="PEM file of an Ed25519 private key to sign with.")
    ] = None,
    replace_signed: Annotated[
        bool,
        typer.Option("--replace-signed", help="Let bundles without a signature take the place of signed ones in OUT."),
    ] = False,
    trust: Trust = False,
    data_root: DataRoot = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write OUT/edge (photo to frame, without PyTorch) and OUT/server (frame to answer)."""
    from splitveil.export import check_target
    from splitveil.export import export as write
    from splitveil.files import is_there
    from splitveil.profile import read_profile
    from splitveil.runs import Run

    check_target(out, name, sign, replace_signed=replace_signed)
    opened = Run(run, trust=trust)
    say_unbound(opened)
    replaces = is_there(out / "edge" / "manifest.json")
    check_options(opened, {"--split": cut, "--method": method, "--messages": messages, "--operator": operator})
    there = opened.folder / "profile.json"
    plain = None if reference is None else same_data(opened, Run(reference, trust=trust)).model()
    with progress_bar(quiet) as progress:
        data = opened.samples(data_root, progress)
        exported = write(
            opened.model(), data, out, **_sent(opened, cut, method, m, messages, operator), coding=coding,
            max_drop=max_drop, confidence=confidence, profile=read_profile(there) if is_there(there) else None,
            reference=plain, name=name or _name(opened, data), private_key=sign,
            replace_signed=replace_signed, progress=progress,
        )  # fmt: skip
    policy = exported.edge.policy
    facts = {
        "edge": str(exported.folder / "edge"), "server": str(exported.folder / "server"), "name": exported.edge.name,
        "identity": exported.edge.identity, "cut": exported.edge.cut, "layer": exported.edge.layer,
        "operator": exported.edge.operator, "method": exported.edge.method,
        "components": exported.edge.messages.components, "messages": exported.edge.messages.distinct,
        "policy": policy.model_dump(mode="json"), "frame_bytes": exported.frame_bytes,
        "edge_bytes": exported.edge_bytes, "server_bytes": exported.server_bytes, "signed": sign is not None,
    }  # fmt: skip
    if replaces:
        note(f"the bundle that was in {out} is replaced: its edge halves elsewhere will find no server for them here")
    if exported.probabilities:
        note(PROBABILITIES)
    if as_json:
        print_json(facts)
        return
    kept = exported.edge.messages.distinct
    sent = f"m'={policy.m} as {policy.coding}" if kept is None else _certified(kept)
    facts["policy"] = sent
    if policy.proven_drop is not None:
        against = "its own uncut model" if exported.reference.own else "the reference"
        facts["policy"] = f"{sent}, proven to drop at most {policy.proven_drop:g} points against {against}"
    print_table(f"exported {run}", ["fact", "value"], [[key.replace("_", " "), facts[key]] for key in facts])
    note(f"serve it: splitveil serve {shlex.quote(str(exported.folder / 'server'))}")


def _certified(messages: int) -> str:
    from splitveil.certificate import Certificate

    return f"certified: one of {messages} different messages, at most {Certificate(messages).bits:.4g} bits"


def _sent(
    opened: Any, cut: str | None, method: Sent | None, m: int | None, messages: int | None, operator: Operator | None
) -> dict[str, Any]:
    """Where the model is cut and what is sent there: as the run has it, or as the options say."""
    if opened.fitted is not None:
        own = {"cut": opened.fitted.cut, "obfuscator": opened.obfuscator(), "classes": opened.manifest.classes}
        return {**own, "m": m}
    if cut is None:
        raise typer.BadParameter(f"{opened.folder} has no obfuscator of its own; say where to cut: --split")
    kind = method or "distilled"
    check_method(kind, m=m, messages=messages)
    return {"cut": cut, "method": kind, "m": m, "messages": messages, "operator": operator}


def _name(opened: Any, data: Any) -> str:
    """A data set's name as a model's, where it is one: folder:PATH may hold what a URL does not take."""
    name = getattr(data, "name", None)
    if name is None:
        return re.sub(r"[^A-Za-z0-9._-]+", "-", opened.folder.resolve().name).strip("-.")[:100] or "splitveil"
    return "folder" if name.startswith("folder:") else str(name)
