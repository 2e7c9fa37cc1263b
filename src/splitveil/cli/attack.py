"""``splitveil attack``: what an adversary learns from a run's messages."""

import warnings
from typing import Annotated, Any

import typer

from splitveil.cli.fitted import check_options
from splitveil.cli.methods import FITTED, Attacked, Messages, check_method
from splitveil.cli.options import AsJson, DataRoot, Operator, Quiet, RunFolder, Trust
from splitveil.cli.output import note, print_json, print_table, progress_bar

_LINES = ("prior", "label", "logits", "attack", "raw")
_SHARES = ("excess", "excess_over_label", "advantage", "balanced", "auc", "target", "undefended")


def attack(
    run: RunFolder,
    split: Annotated[
        str | None, typer.Option("--split", help="A cut's number, or a module's name; a run's obfuscator has its own.")
    ] = None,
    method: Annotated[
        Attacked | None, typer.Option("--method", help="The obfuscator; top, or the run's own, if not given.")
    ] = None,
    m: Annotated[
        int | None, typer.Option("--m", min=0, help="Components kept (all but none, free, bounded and codebook).")
    ] = None,
    messages: Messages = None,
    epsilon: Annotated[float | None, typer.Option("--epsilon", help="Distortion allowed (method bounded).")] = None,
    relative: Annotated[bool, typer.Option("--relative", help="Epsilon as a share of each ‖Wz‖.")] = False,
    operator: Annotated[
        Operator | None, typer.Option("--operator", help="Of convolutions; dense if not given.")
    ] = None,
    hidden: Annotated[str | None, typer.Option("--hidden", help="The attribute to guess; all where not given.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of attacks and fits.")] = 0,
    trust: Trust = False,
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

    opened = Run(run, trust=trust)
    check_options(opened, {
        "--split": split, "--method": method, "--m": m, "--messages": messages, "--epsilon": epsilon,
        "--relative": relative, "--operator": operator,
    })  # fmt: skip
    if opened.fitted is not None:
        split, kind, m = opened.fitted.cut, opened.fitted.method, opened.fitted.m
    else:
        kind = method or "top"
        _check_options(split, kind, relative, operator)
        check_method(kind, m=m, messages=messages, epsilon=epsilon)
    with progress_bar(quiet) as progress:
        data = opened.data(data_root, progress)
        names = [hidden] if hidden else list(data.hidden_classes)
        if not names:
            raise AttackError(
                f"{data.name} has no hidden attribute, so there is nothing to guess; for a "
                "folder, train with --option hidden_csv=FILE"
            )
        cut = SplitModel(opened.model(), at=str(split))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", PrivacyWarning)
            if opened.fitted is not None:
                veil = opened.obfuscator()
            elif kind in FITTED:
                veil = _fitted(cut, data, kind, m, messages, seed, progress)
            else:
                veil = _veil(cut, data.train.images(slice(0, 1)), kind, m, epsilon, relative, operator)
        found = {name: leakage(cut, veil, data, hidden=name, seed=seed, progress=progress) for name in names}
    for sentence in dict.fromkeys(str(warning.message) for warning in caught):
        note(sentence)
    result: dict[str, Any] = {
        "run": str(run), "data": data.name, "split": split, "method": kind, "m": m, "epsilon": epsilon,
        "relative": relative, "operator": _operator(veil), "seed": seed, "message_shape": list(veil.message.shape),
        "messages": veil.message.distinct,
        "hidden": {name: leak.as_row() for name, leak in found.items()},
    }  # fmt: skip
    if as_json:
        print_json(result)
        return
    for name, leak in result["hidden"].items():
        rows = [[key, _percent(leak[key])] for key in (*_LINES, *_SHARES)]
        rows += [["bits", f"{leak['bits']['value']:.3f}"], ["strongest attack", leak["best"]]]
        title = f"{data.name}, cut {split}, {kind} ({_operator(veil)}): {name} from {leak['message_bytes']:.0f} bytes"
        print_table(title, ["what", "value [95 % interval]"], rows)


def _check_options(split: str | None, method: Attacked, relative: bool, operator: Operator | None) -> None:
    """Options that belong to some methods and are refused elsewhere, beside those of `check_method`."""
    if split is None:
        raise typer.BadParameter("the run has no obfuscator of its own; say where to cut: --split")
    if relative and method != "bounded":
        raise typer.BadParameter(f"--method {method} takes no --relative; it belongs to bounded")
    if operator is not None and method in FITTED:
        raise typer.BadParameter(f"--method {method} takes no --operator; it belongs to top, free and bounded")


def _fitted(cut: Any, data: Any, method: Any, m: int | None, messages: int | None, seed: int, progress: Any) -> Any:
    """An obfuscator that is fitted to the training part, whose labels are not read."""
    from splitveil.obfuscate import fit_obfuscator

    return fit_obfuscator(method, cut, data.train, m=m, messages=messages, seed=seed, progress=progress)


def _veil(
    cut: Any, x: Any, method: str, m: int | None, epsilon: float | None, relative: bool, given: Operator | None
) -> Any:
    """The obfuscator that the options ask for."""
    import torch

    from splitveil.linear import factorise
    from splitveil.obfuscate import DistortionBounded, DistortionFree, Identity, TopComponents

    with torch.no_grad():
        shape = tuple(cut.client(x).shape[1:])
    operator: Operator = given or "dense"
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
