"""``splitveil export``: an edge bundle and a server bundle from a run."""

from pathlib import Path
from typing import Annotated

import typer

from splitveil.cli.options import AsJson, DataRoot, Operator, Quiet, RunFolder
from splitveil.cli.output import note, print_json, print_table, progress_bar
from splitveil.codec import Coding


def export(
    run: RunFolder,
    out: Annotated[Path, typer.Option("--out", help="Folder for the two bundles, edge and server.")],
    cut: Annotated[str, typer.Option("--split", help="A cut's number, or a module's name.")],
    m: Annotated[
        int | None,
        typer.Option("--m", min=1, help="Components at most; all that the server sees (distortion-free) if not given."),
    ] = None,
    operator: Annotated[Operator, typer.Option("--operator", help="Of convolutions.")] = "patch",
    coding: Annotated[
        Coding, typer.Option("--coding", help="Of coefficients, unless a client says otherwise.")
    ] = "int8",
    max_drop: Annotated[
        float | None,
        typer.Option("--max-drop", help="Points that may be lost: clients then send the fewest components proven to."),
    ] = None,
    confidence: Annotated[float, typer.Option("--confidence", help="Of that proof.")] = 0.95,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Of the model on the server (letters, digits, . - _); else the data set's."),
    ] = None,
    sign: Annotated[
        Path | None, typer.Option("--sign", metavar="KEY", help="PEM file of an Ed25519 private key to sign with.")
    ] = None,
    data_root: DataRoot = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write OUT/edge (photo to frame, without PyTorch) and OUT/server (frame to answer)."""
    from splitveil.export import export as write
    from splitveil.files import is_there
    from splitveil.profile import read_profile
    from splitveil.runs import Run

    opened = Run(run)
    there = opened.folder / "profile.json"
    with progress_bar(quiet) as progress:
        data = opened.data(data_root, progress)
        exported = write(
            opened.model(), data, out, cut=cut, m=m, operator=operator, coding=coding, max_drop=max_drop,
            confidence=confidence, profile=read_profile(there) if is_there(there) else None,
            name=name or _plain(data.name), private_key=sign, progress=progress,
        )  # fmt: skip
    policy = exported.edge.policy
    facts = {
        "edge": str(exported.folder / "edge"), "server": str(exported.folder / "server"), "name": exported.edge.name,
        "identity": exported.edge.identity, "cut": exported.edge.cut, "layer": exported.edge.layer,
        "operator": exported.edge.operator, "components": exported.edge.messages.components,
        "policy": policy.model_dump(mode="json"), "frame_bytes": exported.frame_bytes,
        "edge_bytes": exported.edge_bytes, "server_bytes": exported.server_bytes, "signed": sign is not None,
    }  # fmt: skip
    if as_json:
        print_json(facts)
        return
    facts["policy"] = f"m'={policy.m} as {policy.coding}" + (
        f", proven to drop at most {policy.proven_drop:g} points" if policy.proven_drop is not None else ""
    )
    print_table(f"exported {run}", ["fact", "value"], [[key.replace("_", " "), facts[key]] for key in facts])
    note(f"serve it: splitveil serve {exported.folder / 'server'}")


def _plain(name: str) -> str:
    """A data set's name as a model's: folder:PATH may hold what a URL does not take."""
    return "folder" if name.startswith("folder:") else name
