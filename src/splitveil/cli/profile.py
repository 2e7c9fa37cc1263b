"""``splitveil profile``: what a provider publishes about a run, for clients to choose from."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from splitveil.cli.fitted import check_options, same_data, say_probabilities, say_unbound
from splitveil.cli.methods import Fit, Messages, check_method
from splitveil.cli.options import AsJson, DataRoot, Operator, Quiet, ReferenceRun, RunFolder, Trust
from splitveil.cli.output import note, print_json, print_table, progress_bar

_HEADS = (
    "cut",
    "operator",
    "method",
    "m', ε or M",
    "coding",
    "bytes",
    "edge macs",
    "agreement",
    "accuracy",
    "drop, points",
)
_GRID = ("top", "free", "bounded")  # what is measured where no method is named


def _print_schema(wanted: bool) -> None:
    if wanted:
        from splitveil.profile import Profile

        typer.echo(json.dumps(Profile.model_json_schema(), indent=2, sort_keys=True))
        raise typer.Exit


def profile(
    run: RunFolder,
    reference: ReferenceRun = None,
    cut: Annotated[
        list[str] | None, typer.Option("--split", help="A cut's number or a module's name; may be given again.")
    ] = None,
    method: Annotated[
        Fit | None,
        typer.Option("--method", help="Fit this obfuscator to the training part and measure it, at one cut."),
    ] = None,
    m: Annotated[int | None, typer.Option("--m", min=1, help="Components of that obfuscator.")] = None,
    messages: Messages = None,
    operator: Annotated[
        Operator | None, typer.Option("--operator", help="Of convolutions; patch if not given.")
    ] = None,
    hidden: Annotated[
        list[str] | None,
        typer.Option("--hidden", help="Also measure what leaks of this attribute; takes minutes; may be given again."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of attacks and fits.")] = 0,
    device: Annotated[str, typer.Option("--device", help="Where to measure: cpu, cuda, …")] = "cpu",
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of profile.json and profile.svg; the run's own if not given.")
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", callback=_print_schema, is_eager=True, help="Print the JSON schema and exit.")
    ] = False,
    trust: Trust = False,
    data_root: DataRoot = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure every cut and m', or a run's own obfuscator, on images that no fit has seen; writes RUN/profile.json."""
    from splitveil.figures import profile_figure, write_figure
    from splitveil.files import check_writable
    from splitveil.profile import write_profile
    from splitveil.profiling import measure_profile
    from splitveil.runs import Run
    from splitveil.train import available

    del schema  # the callback has acted on it
    opened, where, folder = Run(run, trust=trust), available(device), out or run
    check_options(opened, {
        "--split": cut or None, "--method": method, "--m": m, "--messages": messages, "--operator": operator,
    })  # fmt: skip
    _check_fit(cut, method, m, messages, operator)
    check_writable(folder)
    say_unbound(opened)
    model, own = opened.model().to(where), _own(opened)
    say_probabilities(model, opened.manifest.model.input_shape)
    _check_nothing_lost(
        folder / "profile.json", model, own.get("cuts", cut), method or (own["obfuscator"].name if own else None),
        operator or "patch", hidden=hidden, referred=reference is not None,
    )  # fmt: skip
    plain = None if reference is None else same_data(opened, Run(reference, trust=trust)).model().to(where)
    with progress_bar(quiet) as progress:
        data = opened.samples(data_root, progress)
        if method is not None:
            own = _fitted(model, data, cut, method, m, messages, seed, progress)
        measured = measure_profile(
            model, data, **(own or {"cuts": cut or None, "operator": operator or "patch"}), hidden=hidden or (),
            reference=plain, seed=seed, progress=progress,
        )  # fmt: skip
    write_profile(folder / "profile.json", measured)
    write_figure(folder / "profile.svg", profile_figure(measured))
    if as_json:
        print_json(measured.model_dump(mode="json"))
        return
    against = "its own uncut model" if measured.reference.own else f"the model of {reference}"
    images = f"validation images of {measured.data.name}" if measured.data.labelled else "images without labels"
    title = f"profile of {run} on {measured.data.samples} {images}; drop against "
    print_table(title + against, _HEADS, [_cells(row) for row in measured.rows])
    if hidden:
        _print_leakage(measured.rows, hidden)
    note(f"written to {folder / 'profile.json'} and {folder / 'profile.svg'}")


def _own(opened: Any) -> dict[str, Any]:
    """The cut and the obfuscator of a run that has one."""
    return {} if opened.fitted is None else {"cuts": [opened.fitted.cut], "obfuscator": opened.obfuscator()}


def _check_fit(
    cut: list[str] | None, method: Fit | None, m: int | None, messages: int | None, operator: Operator | None
) -> None:
    """Settings of a fit come with a method, and a method with one cut."""
    if method is None:
        if m is not None or messages is not None:
            raise typer.BadParameter("--m and --messages belong to an obfuscator; name it with --method")
        return
    check_method(method, m=m, messages=messages)
    if len(cut or ()) != 1:
        raise typer.BadParameter(f"--method {method} is measured at one cut; name it: --split")
    if operator is not None:
        raise typer.BadParameter(f"--method {method} takes no --operator, which belongs to the grid without --method")


def _fitted(
    model: Any, data: Any, cut: Any, method: Fit, m: int | None, messages: int | None, seed: int, progress: Any
) -> dict[str, Any]:
    """An obfuscator that is fitted here to the training part, and its cut."""
    from splitveil.obfuscate import fit_obfuscator
    from splitveil.split import SplitModel

    split = SplitModel(model, at=cut[0])
    veil = fit_obfuscator(method, split, data.train, m=m, messages=messages, seed=seed, progress=progress)
    return {"cuts": cut, "obfuscator": veil}


def _check_nothing_lost(
    path: Path, model: Any, cuts: list[str] | None, method: str | None, operator: Operator, *,
    hidden: list[str] | None, referred: bool,
) -> None:  # fmt: skip
    """A profile must not take the place of one that holds what it does not."""
    from splitveil.errors import ProfileError
    from splitveil.files import is_there
    from splitveil.profile import read_profile
    from splitveil.split import layer_name

    if not is_there(path):
        return
    try:
        there = read_profile(path)
    except ProfileError as error:
        raise ProfileError(f"{path} is there, but is no profile of this version; move it away first") from error
    layers = {layer_name(model, cut) for cut in cuts or model.cut_points}
    methods = _GRID if method is None else (method,)
    lost = {row.layer for row in there.rows} - layers
    lost |= {name for row in there.rows for name in row.leakage} - set(hidden or ())
    lost |= {f"{row.method} at {row.layer}" for row in there.rows if row.layer in layers and row.method not in methods}
    if method is None:
        kept = [row for row in there.rows if row.layer in layers and row.method in methods]
        lost |= {
            f"the {row.operator} operator at {row.layer}" for row in kept
            if row.operator != operator and (row.operator == "patch" or _is_convolution(model, row.layer))
        }  # fmt: skip
    if not there.reference.own and not referred:
        lost.add("drops against --reference")
    if lost:
        raise ProfileError(
            f"{path} also holds {', '.join(sorted(lost))}, which would be lost; name another folder with --out, or "
            "measure all of it again"
        )


def _is_convolution(model: Any, layer: str) -> bool:
    from torch import nn

    from splitveil.errors import NoLinearLayerError
    from splitveil.split import SplitModel

    try:
        return isinstance(SplitModel(model, at=layer).server_layer, nn.Conv2d)
    except NoLinearLayerError:
        return False


def _cells(row: Any) -> list[object]:
    kept: object = f"ε={row.epsilon:g}" if row.m is None else row.m
    if row.messages is not None:
        kept = f"M={row.messages}, {row.bits:.4g} bits"
    sent = f"{row.bytes_mean:.0f}" if row.fixed_length else f"{row.bytes_mean:.0f}, up to {row.bytes_most}"
    drop = "unknown" if row.drop is None else _interval(row.drop)
    accuracy = "unknown" if row.accuracy is None else f"{row.accuracy.value:.1%}"
    return [
        row.cut or row.layer, row.operator, row.method, kept, row.coding, sent, f"{row.edge_macs:,}",
        _interval(row.agreement), accuracy, drop,
    ]  # fmt: skip


def _interval(share: Any) -> str:
    return f"{100 * share.value:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def _print_leakage(rows: Any, hidden: list[str]) -> None:
    lines = ("prior", "logits", "attack", "raw")
    for name in dict.fromkeys(hidden):
        leaks = [(row, row.leakage[name]) for row in rows if name in row.leakage]
        cells = [[row.cut or row.layer, row.m, *(_interval(leak[line]) for line in lines)] for row, leak in leaks]
        print_table(f"what leaks of {name}, accuracy in % on the test part", ["cut", "m'", *lines], cells)
