"""``splitveil attack``: what an adversary learns from a run's messages."""

import warnings
from typing import Annotated, Any, Literal

import typer

from splitveil.cli.options import AsJson, DataRoot, Operator, Quiet, RunFolder
from splitveil.cli.output import note, print_json, print_table, progress_bar

Method = Literal["none", "free", "top", "bounded"]
_LINES = ("prior", "label", "logits", "attack", "raw")
_SHARES = ("excess", "excess_over_label", "advantage", "balanced", "auc", "target", "undefended")


def attack(
    run: RunFolder,
    split: Annotated[str, typer.Option("--split", help="A cut's number, or a module's name.")],
    method: Annotated[Method, typer.Option("--method", help="The obfuscator.")] = "top",
    m: Annotated[int | None, typer.Option("--m", min=0, help="Components kept (method top).")] = None,
    epsilon: Annotated[float | None, typer.Option("--epsilon", help="Distortion allowed (method bounded).")] = None,
    relative: Annotated[bool, typer.Option("--relative", help="Epsilon as a share of each ‖Wz‖.")] = False,
    operator: Annotated[Operator, typer.Option("--operator", help="Of convolutions.")] = "dense",
    hidden: Annotated[str | None, typer.Option("--hidden", help="The attribute to guess; all where not given.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of the attacks.")] = 0,
    data_root: DataRoot = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Attack what is sent, with reference lines: the prior, the label, the logits, the raw feature."""
    from splitveil.errors import AttackError
    from splitveil.measure import leakage
    from splitveil.obfuscate import PrivacyWarning
    from splitveil.runs import Run
    from splitveil.split import SplitModel

    _check_options(method, m, epsilon, relative)
    opened = Run(run)
    with progress_bar(quiet) as progress:
        data = opened.data(data_root, progress)
        names = [hidden] if hidden else list(data.hidden_classes)
        if not names:
            raise AttackError(
                f"{data.name} has no hidden attribute, so there is nothing to guess; for a "
                "folder, train with --option hidden_csv=FILE"
            )
        cut = SplitModel(opened.model(), at=split)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", PrivacyWarning)
            veil = _veil(cut, data.train.images(slice(0, 1)), method, m, epsilon, relative, operator)
        found = {name: leakage(cut, veil, data, hidden=name, seed=seed, progress=progress) for name in names}
    for warning in caught:
        note(str(warning.message))
    result: dict[str, Any] = {
        "run": str(run), "data": data.name, "split": split, "method": method, "m": m, "epsilon": epsilon,
        "relative": relative, "operator": _operator(veil), "seed": seed, "message_shape": list(veil.message.shape),
        "hidden": {name: leak.as_row() for name, leak in found.items()},
    }  # fmt: skip
    if as_json:
        print_json(result)
        return
    for name, leak in result["hidden"].items():
        rows = [[key, _percent(leak[key])] for key in (*_LINES, *_SHARES)]
        rows += [["bits", f"{leak['bits']['value']:.3f}"], ["strongest attack", leak["best"]]]
        title = f"{data.name}, cut {split}, {method} ({_operator(veil)}): {name} from {leak['message_bytes']:.0f} bytes"
        print_table(title, ["what", "value [95 % interval]"], rows)


def _check_options(method: Method, m: int | None, epsilon: float | None, relative: bool) -> None:
    """Each option belongs to one method and is refused elsewhere."""
    for name, given, owner in (("--m", m is not None, "top"), ("--epsilon", epsilon is not None, "bounded")):
        if given and method != owner:
            raise typer.BadParameter(f"--method {method} takes no {name}; it belongs to --method {owner}")
        if not given and method == owner:
            raise typer.BadParameter(f"--method {method} needs {name}")
    if relative and method != "bounded":
        raise typer.BadParameter(f"--method {method} takes no --relative; it belongs to --method bounded")


def _veil(
    cut: Any, x: Any, method: Method, m: int | None, epsilon: float | None, relative: bool, operator: Operator
) -> Any:
    """The obfuscator that the options ask for."""
    import torch

    from splitveil.linear import factorise
    from splitveil.obfuscate import DistortionBounded, DistortionFree, Identity, TopComponents

    with torch.no_grad():
        shape = tuple(cut.client(x).shape[1:])
    if method == "none":
        return Identity(shape)
    if method == "top":
        factors = factorise(cut.server_layer, feature_shape=shape, operator=operator)
        if int(m or 0) > len(factors.s) and not factors.complete:  # only the top ones were computed
            factors = factorise(cut.server_layer, feature_shape=shape, operator=operator, rank=m)
        return TopComponents(factors, m=int(m or 0))
    factors = factorise(cut.server_layer, feature_shape=shape, operator=operator)
    if method == "free":
        return DistortionFree(factors)
    return DistortionBounded(factors, epsilon=float(epsilon or 0.0), relative=relative)


def _operator(veil: Any) -> str:
    return veil.factors.operator if hasattr(veil, "factors") else "no operator"


def _percent(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.1%} [{estimate['low']:.1%}, {estimate['high']:.1%}]"
